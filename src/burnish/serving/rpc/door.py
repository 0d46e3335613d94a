"""A port for gRPC: who may call, how a refusal is told, health, and the limits of all its services."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from burnish.config.serving import GrpcConfig
from burnish.errors import MachineError
from burnish.serving.keys import Key, owner_of
from burnish.serving.refusals import Kind, RefusedError
from burnish.serving.service import Service

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 0.1  # how often health is told anew
_TOLD_CHARACTERS = 1000  # of a refusal: more than a few thousand bytes of metadata do not arrive
_LIVE = "liveness"  # the name under which health tells whether the engine lives; all others are whether it may be asked
_OURS = ("/burnish.v1.", "/inference.")
_CODES: dict[Kind, grpc.StatusCode] = {
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "too_many": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "busy": grpc.StatusCode.UNAVAILABLE,
    "too_slow": grpc.StatusCode.DEADLINE_EXCEEDED,
    "failed": grpc.StatusCode.INTERNAL,
}

Context = grpc.aio.ServicerContext  # its generic form is in the type stubs alone


class GrpcDoor:
    """A port with services, and their health. It is made where its event loop runs."""

    def __init__(
        self,
        service: Service,
        config: GrpcConfig,
        *,
        max_calls: int,
        on_refused: Callable[[str], None] = lambda kind: None,
    ) -> None:
        """`on_refused` hears of what kind each refusal is."""
        self._service, self._reflects = service, config.reflection
        self._names: list[str] = []
        self._server = grpc.aio.server(
            interceptors=[_Guard(on_refused)],
            maximum_concurrent_rpcs=max_calls,
            options=[
                ("grpc.max_receive_message_length", config.message_bytes),
                ("grpc.max_send_message_length", config.message_bytes),
                ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a small message could become gigabytes
                ("grpc.so_reuseport", 0),  # a port that is taken is an error
            ],
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # made when it is imported
        add_HealthServicer_to_server(self._health, self._server)
        self._following: asyncio.Task[None] | None = None

    def add(self, name: str, register: Callable[[Any, grpc.aio.Server], None], servicer: object) -> None:
        """Add a service under its full name, by the generated function that registers it."""
        register(servicer, self._server)
        self._names.append(name)

    async def open(self, host: str, port: int, *, credentials: grpc.ServerCredentials | None = None) -> str:
        """Listen, with TLS where there are credentials. Returns the address.

        Raises:
            MachineError: the port is taken.
        """
        if self._reflects:
            reflection.enable_server_reflection(
                [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
            )
        where = f"[{host}]" if ":" in host else host
        try:
            if credentials is None:
                bound = self._server.add_insecure_port(f"{where}:{port}")
            else:
                bound = self._server.add_secure_port(f"{where}:{port}", credentials)
        except RuntimeError as error:
            raise MachineError(f"cannot listen on {host}:{port}: is the port taken?") from error
        await self._tell_health()
        await self._server.start()
        self._following = asyncio.create_task(self._follow())
        return f"{where}:{bound}"

    async def close(self, grace_seconds: float) -> None:
        """End: calls that are under way have so long."""
        if self._following is not None:
            self._following.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self._tell_health()

    async def _tell_health(self) -> None:
        ready = dict.fromkeys(("", *self._names), self._service.is_ready)
        for name, holds in (ready | {_LIVE: self._service.engine.is_alive}).items():
            await self._health.set(name, HealthCheckResponse.SERVING if holds else HealthCheckResponse.NOT_SERVING)


async def owner_in(context: Context[Any, Any], keys: Sequence[Key], *, is_admin: bool = False) -> str:
    """Who calls, by the key in the call's metadata. Without keys it is anyone; else the call ends where there is none,
    or where an admin's is needed and it is not one.
    """
    if not keys:
        return "anyone"
    authorization = dict(context.invocation_metadata() or ()).get("authorization", "")
    key = owner_of(authorization, keys) if isinstance(authorization, str) else None
    if key is None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "an API key is needed: authorization: Bearer KEY")
    if is_admin and key.role != "admin":
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "this needs a key of the role admin")
    return key.name


@asynccontextmanager
async def _told(context: Context[Any, Any], on_refused: Callable[[str], None]) -> AsyncIterator[None]:
    """What goes wrong within ends the call with a status that tells no more than whoever called may know."""
    try:
        yield
    except grpc.aio.AbortError:  # it has its status
        raise
    except RefusedError as error:
        on_refused(error.kind)
        trailing = []
        if error.retry_after is not None:
            trailing.append(("retry-after", error.retry_after))
        if error.parameter is not None and error.parameter.isascii() and error.parameter.isprintable():
            trailing.append(("parameter", error.parameter[:_TOLD_CHARACTERS]))
        await context.abort(_CODES[error.kind], str(error)[:_TOLD_CHARACTERS], tuple(trailing))
    except Exception:
        _LOG.exception("a call failed")
        await context.abort(grpc.StatusCode.INTERNAL, "the server made a mistake; its log says which")


class _Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # as above
    """Reads the messages of our own services and tells what goes wrong in them; grpc would tell the exception."""

    def __init__(self, on_refused: Callable[[str], None]) -> None:
        self._on_refused = on_refused

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_OURS):
            return handler

        def read(raw: bytes) -> Any:
            try:
                return handler.request_deserializer(raw)
            except DecodeError as error:
                raise RefusedError("invalid", "the message cannot be read") from error

        async def unary(raw: bytes, context: Context[Any, Any]) -> Any:
            async with _told(context, self._on_refused):
                return await handler.unary_unary(read(raw), context)

        async def stream(raw: bytes, context: Context[Any, Any]) -> AsyncIterator[Any]:
            async with _told(context, self._on_refused), aclosing(handler.unary_stream(read(raw), context)) as answers:
                async for answer in answers:
                    yield answer

        async def both(raws: AsyncIterator[bytes], context: Context[Any, Any]) -> AsyncIterator[Any]:
            async def messages() -> AsyncIterator[Any]:
                async for raw in raws:
                    yield read(raw)

            async with (
                _told(context, self._on_refused),
                aclosing(handler.stream_stream(messages(), context)) as answers,
            ):
                async for answer in answers:
                    yield answer

        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(both, None, handler.response_serializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)
