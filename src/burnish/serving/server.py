"""The server: load the weights, open the doors, and leave when it is told to, with every answer given."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from burnish.config.serving import ServeConfig
from burnish.errors import ConfigError, MachineError
from burnish.models.load import compute_repeatably
from burnish.serving.admin import create_admin_app
from burnish.serving.certificates import certificate_end, grpc_credentials
from burnish.serving.connections import Connection
from burnish.serving.deployments import Deployments
from burnish.serving.drifting import watch_drift
from burnish.serving.engine import Engine
from burnish.serving.journal import Journal
from burnish.serving.keys import read_keys
from burnish.serving.loading import WeightLoader
from burnish.serving.metrics import ServeMetrics
from burnish.serving.native import native_samplers
from burnish.serving.parts import Parts
from burnish.serving.proto import burnish_pb2_grpc, inference_pb2_grpc
from burnish.serving.rest import create_app
from burnish.serving.rpc.admin import Admin
from burnish.serving.rpc.door import GrpcDoor
from burnish.serving.rpc.generation import Generation
from burnish.serving.rpc.inference import Inference
from burnish.serving.sampler import MakeSampler
from burnish.serving.service import Service
from burnish.serving.tracing import require_opentelemetry, trace_answers
from burnish.serving.vllm import vllm_samplers
from burnish.serving.weights import load_weights

_KEEP_ALIVE_SECONDS = 5
_MAX_HEADER_BYTES = 65_536
_STOP_SECONDS = 10.0
_LAST_WORD_SECONDS = 2.0  # for answers over gRPC to arrive; a watched health, or a stream that rests, would never end
_LOOK_SECONDS = 0.05


class _Door(uvicorn.Server):
    """One of several servers of a process, which itself looks after signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"{'https' if self.config.is_ssl else 'http'}://{host}:{port}"


def serve(config: ServeConfig, name: str, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UserError: the model, a key or a folder cannot be used.
        MachineError: a port is taken.
    """
    keys = () if config.keys_file is None else read_keys(config.keys_file)
    if config.admin.port is not None and all(key.role != "admin" for key in keys):
        raise ConfigError(f"admin.port: keys_file={config.keys_file} has no key of the role admin")
    if name in config.also:
        raise ConfigError(f"also: {name} is the name of the first model; give --name, or call the other one otherwise")
    if config.tracing.endpoint is not None:
        require_opentelemetry()
    ends = None if config.tls is None else certificate_end(config.tls)
    with ExitStack() as at_the_end:
        stopping = threading.Event()
        make_sampler, device = _sampling(config, say, stopping)
        journal = _journal(config, at_the_end)
        compute_repeatably(config.model.num_threads)
        say(f"loading {', '.join([config.model.path, *config.also.values()])}")
        options = config.engine
        engine = Engine(
            make_sampler, max_rows=options.max_rows, max_waiting=options.max_waiting, cache_tokens=options.cache_tokens
        )
        at_the_end.callback(engine.stop, _STOP_SECONDS)
        service = Service(engine, config.limits)
        metrics = ServeMetrics(service)
        for each, path in {name: config.model.path, **config.also}.items():
            engine.install(load_weights(config.model.model_copy(update={"path": path}), each, 1, device=device))
            metrics.name_model(each)
        if ends is not None:
            metrics.exporter.set("burnish_serve_certificate_expiry_timestamp_seconds", ends)
        if journal is not None:
            service.on_answered.append(journal.answered)
            journal.on_lost = lambda: metrics.exporter.count("burnish_serve_unstored_total", 1)
        folder = config.admin.weights_folder
        history = None if folder is None else folder / "deployments.jsonl"
        deployments = Deployments(service, config.deploy, history, metrics.deployed)
        at_the_end.callback(deployments.close)
        parts = Parts(service=service, keys=keys, metrics=metrics, deployments=deployments, journal=journal)
        watch_drift(config.drift, parts, say)
        if config.tracing.endpoint is not None:
            at_the_end.callback(trace_answers(config.tracing.endpoint, service))
        asyncio.run(_serve(config, parts, device, say, stopping))


def _sampling(
    config: ServeConfig, say: Callable[[str], None], stopping: threading.Event
) -> tuple[MakeSampler, torch.device | None]:
    """Who makes the tokens, and where weights are loaded for it: vLLM reads them itself, and their shape does here."""
    if config.engine.kind == "native":
        return native_samplers(config.engine), None
    return vllm_samplers(config, say, stopping), torch.device("meta")


def _journal(config: ServeConfig, at_the_end: ExitStack) -> Journal | None:
    if config.store.url is None:
        return None
    journal = Journal(config.store.url, keep_days=config.store.keep_days, redact=config.store.redact)
    at_the_end.callback(journal.close)
    return journal


async def _serve(
    config: ServeConfig,
    parts: Parts,
    device: torch.device | None,
    say: Callable[[str], None],
    stopping: threading.Event,
) -> None:
    told: asyncio.Queue[None] = asyncio.Queue()
    for each in (signal.SIGTERM, signal.SIGINT):  # before a door opens, or the signal would cut off who came first
        asyncio.get_running_loop().add_signal_handler(each, told.put_nowait, None)
    loader, folder = None, config.admin.weights_folder
    if config.admin.port is not None and folder is not None:
        loader = WeightLoader(parts.service, parts.metrics, config.model, folder, device=device)
    async with AsyncExitStack() as closing:
        credentials = None if config.tls is None else grpc_credentials(config.tls)
        for name, grpc_door, port in _grpc_doors(config, parts, loader):
            address = await grpc_door.open(config.host, port, credentials=credentials)
            closing.push_async_callback(grpc_door.close, _LAST_WORD_SECONDS)
            say(f"{name} on {address}")
        doors = [_Door(_options(create_app(parts), config, config.port))]
        if loader is not None and config.admin.port is not None:
            doors.append(_Door(_options(create_admin_app(parts, loader), config, config.admin.port)))
        tasks = [asyncio.create_task(_opened(door)) for door in doors]
        while not all(door.started for door in doors):
            if failed := next((task for task in tasks if task.done()), None):
                for task in tasks:
                    task.cancel()
                failed.result()
            await asyncio.sleep(_LOOK_SECONDS)
        say(f"{', '.join(parts.service.engine.models())} on {doors[0].address}/v1")
        for door in doors[1:]:
            say(f"admin on {door.address}/admin")
        await _told_to_stop(parts, config, tasks, told, say)
        stopping.set()  # the thread that brings in other weights would be waited for
        for door in doors:
            door.should_exit = True
        has_engine = parts.service.engine.is_alive
        await asyncio.gather(*tasks)
        if not has_engine:
            raise MachineError("the engine has failed: what was said before tells how; start the server anew")


def _grpc_doors(config: ServeConfig, parts: Parts, loader: WeightLoader | None) -> Iterator[tuple[str, GrpcDoor, int]]:
    """(what it is, the door, its port) of those for gRPC that the settings ask for."""
    service, max_calls = parts.service, config.limits.connections
    if config.grpc.port is not None:
        door = GrpcDoor(service, config.grpc, max_calls=max_calls, on_refused=parts.metrics.refused)
        door.add("burnish.v1.Generation", burnish_pb2_grpc.add_GenerationServicer_to_server, Generation(parts))
        register = inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
        door.add("inference.GRPCInferenceService", register, Inference(parts))
        yield "gRPC", door, config.grpc.port
    if loader is not None and config.admin.grpc_port is not None:
        door = GrpcDoor(service, config.grpc, max_calls=max_calls, on_refused=parts.metrics.refused)
        door.add("burnish.v1.Admin", burnish_pb2_grpc.add_AdminServicer_to_server, Admin(parts, loader))
        yield "admin by gRPC", door, config.admin.grpc_port


async def _told_to_stop(
    parts: Parts,
    config: ServeConfig,
    tasks: Sequence[asyncio.Task[None]],
    told: asyncio.Queue[None],
    say: Callable[[str], None],
) -> None:
    """Until SIGTERM, Ctrl-C, the end of a door or of the engine, and the answers that are under way."""
    asked = asyncio.create_task(told.get())
    ended = asyncio.create_task(_ended(parts.service))
    await asyncio.wait({asked, ended, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    parts.service.is_draining = True
    parts.deployments.end_shadows()
    if asked.done():
        say("stopping: no new requests; answers that are under way end; once more ends at once")
        await _drained(parts.service, config.drain_seconds, told, say)


async def _ended(service: Service) -> None:
    while service.engine.is_alive:
        await asyncio.sleep(_LOOK_SECONDS)


async def _drained(service: Service, seconds: float, told: asyncio.Queue[None], say: Callable[[str], None]) -> None:
    """Wait for the answers that are under way, unless it takes too long or is told once more."""
    try:
        async with asyncio.timeout(seconds):
            while service.engine.num_left and told.empty():
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        say(f"{service.engine.num_left} answers were not ready within {seconds:g} s and are cut off")


async def _opened(door: _Door) -> None:
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    try:
        await door.serve()
    except SystemExit as error:  # uvicorn's word for a port that is taken
        options = door.config
        raise MachineError(f"cannot listen on {options.host}:{options.port}: is the port taken?") from error


def _is_news(record: logging.LogRecord) -> bool:
    """Whether nobody else says it: of a port that is taken the error itself is logged, and then told by us."""
    return not isinstance(record.msg, OSError)


def _options(app: FastAPI, config: ServeConfig, port: int) -> Any:
    limits = config.limits
    connection: Any = partial(Connection, head_seconds=limits.head_seconds, unread_seconds=limits.unread_seconds)
    return uvicorn.Config(
        app,
        host=config.host,
        port=port,
        limit_concurrency=limits.connections,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(_STOP_SECONDS),
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        http=connection,
        ssl_certfile=None if config.tls is None else config.tls.certificate,
        ssl_keyfile=None if config.tls is None else config.tls.key,
    )
