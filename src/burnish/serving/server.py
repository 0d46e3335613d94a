"""The server: load the weights, open the doors, and leave when it is told to, with every answer given."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from burnish.config.serving import ServeConfig
from burnish.errors import ConfigError, MachineError
from burnish.models.load import compute_repeatably
from burnish.serving.admin import Exchange, create_admin_app
from burnish.serving.engine import Engine
from burnish.serving.keys import Key, read_keys
from burnish.serving.proto import burnish_pb2_grpc, inference_pb2_grpc
from burnish.serving.rest import create_app
from burnish.serving.rpc.admin import Admin
from burnish.serving.rpc.door import GrpcDoor
from burnish.serving.rpc.generation import Generation
from burnish.serving.rpc.inference import Inference
from burnish.serving.service import Service
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
        return f"http://{host}:{port}"


def serve(config: ServeConfig, name: str, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UserError: the model, a key or a folder cannot be used.
        MachineError: a port is taken.
    """
    keys = () if config.keys_file is None else read_keys(config.keys_file)
    if config.admin.port is not None and all(key.role != "admin" for key in keys):
        raise ConfigError(f"admin.port: keys_file={config.keys_file} has no key of the role admin")
    compute_repeatably(config.model.num_threads)
    say(f"loading {config.model.path}")
    weights = load_weights(config.model, name, 1)
    options = config.engine
    engine = Engine(
        max_rows=options.max_rows,
        max_waiting=options.max_waiting,
        prefill_tokens=options.prefill_tokens,
        cache_tokens=options.cache_tokens,
        prefix_bytes=options.prefix_bytes,
    )
    engine.install(weights)
    service = Service(engine, config.limits)
    try:
        asyncio.run(_serve(service, config, keys, say))
    finally:
        engine.stop(_STOP_SECONDS)


async def _serve(service: Service, config: ServeConfig, keys: Sequence[Key], say: Callable[[str], None]) -> None:
    exchange = None
    if config.admin.port is not None and config.admin.weights_folder is not None:
        exchange = Exchange(service, config.model, config.admin.weights_folder)
    async with AsyncExitStack() as closing:
        for name, grpc_door, port in _grpc_doors(service, config, keys, exchange):
            address = await grpc_door.open(config.host, port)
            closing.push_async_callback(grpc_door.close, _LAST_WORD_SECONDS)
            say(f"{name} on {address}")
        doors = [_Door(_options(create_app(service, keys), config, config.port))]
        if exchange is not None and config.admin.port is not None:
            doors.append(_Door(_options(create_admin_app(service, keys, exchange), config, config.admin.port)))
        tasks = [asyncio.create_task(_opened(door)) for door in doors]
        while not all(door.started for door in doors):
            if failed := next((task for task in tasks if task.done()), None):
                for task in tasks:
                    task.cancel()
                failed.result()
            await asyncio.sleep(_LOOK_SECONDS)
        say(f"{', '.join(service.engine.models())} on {doors[0].address}/v1")
        for door in doors[1:]:
            say(f"admin on {door.address}/admin")
        await _told_to_stop(service, config, tasks, say)
        for door in doors:
            door.should_exit = True
        await asyncio.gather(*tasks)


def _grpc_doors(
    service: Service, config: ServeConfig, keys: Sequence[Key], exchange: Exchange | None
) -> Iterator[tuple[str, GrpcDoor, int]]:
    """(what it is, the door, its port) of those for gRPC that the settings ask for."""
    max_calls = config.limits.connections
    if config.grpc.port is not None:
        door = GrpcDoor(service, config.grpc, max_calls=max_calls)
        generation, inference = Generation(service, keys), Inference(service, keys)
        door.add("burnish.v1.Generation", burnish_pb2_grpc.add_GenerationServicer_to_server, generation)
        register = inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
        door.add("inference.GRPCInferenceService", register, inference)
        yield "gRPC", door, config.grpc.port
    if exchange is not None and config.admin.grpc_port is not None:
        door = GrpcDoor(service, config.grpc, max_calls=max_calls)
        door.add("burnish.v1.Admin", burnish_pb2_grpc.add_AdminServicer_to_server, Admin(service, keys, exchange))
        yield "admin by gRPC", door, config.admin.grpc_port


async def _told_to_stop(
    service: Service, config: ServeConfig, tasks: Sequence[asyncio.Task[None]], say: Callable[[str], None]
) -> None:
    """Until SIGTERM, Ctrl-C or the end of a door, and the answers that are under way."""
    told: asyncio.Queue[None] = asyncio.Queue()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, told.put_nowait, None)
    asked = asyncio.create_task(told.get())
    await asyncio.wait({asked, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    service.is_draining = True
    if asked.done():
        say("stopping: no new requests; answers that are under way end; once more ends at once")
        await _drained(service, config.drain_seconds, told, say)


async def _drained(service: Service, seconds: float, told: asyncio.Queue[None], say: Callable[[str], None]) -> None:
    """Wait for the answers that are under way, unless it takes too long or is told once more."""
    try:
        async with asyncio.timeout(seconds):
            while service.engine.num_left and told.empty():
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        say(f"{service.engine.num_left} answers were not ready within {seconds:g} s and are cut off")


async def _opened(door: _Door) -> None:
    try:
        await door.serve()
    except SystemExit as error:  # uvicorn's word for a port that is taken
        options = door.config
        raise MachineError(f"cannot listen on {options.host}:{options.port}: is the port taken?") from error


def _options(app: FastAPI, config: ServeConfig, port: int) -> Any:
    return uvicorn.Config(
        app,
        host=config.host,
        port=port,
        limit_concurrency=config.limits.connections,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(_STOP_SECONDS),
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        http="h11",
    )
