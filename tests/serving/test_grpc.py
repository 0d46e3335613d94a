"""The gRPC door as its clients meet it: the real command in its own process, channels, Triton's client."""

import asyncio
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from burnish.config.serving import GrpcConfig, LimitsConfig
from burnish.serving.parts import Parts
from burnish.serving.proto import burnish_pb2 as pb
from burnish.serving.proto import inference_pb2 as v2
from burnish.serving.proto.burnish_pb2_grpc import AdminStub, GenerationStub, add_GenerationServicer_to_server
from burnish.serving.proto.inference_pb2_grpc import GRPCInferenceServiceStub
from burnish.serving.refusals import RefusedError
from burnish.serving.rpc.admin import Admin
from burnish.serving.rpc.door import GrpcDoor
from burnish.serving.rpc.generation import Generation
from burnish.serving.service import Service

from .conftest import MakeEngine, wait_for
from .test_rest import ADMIN, CHAT, KEY, Server, ended, free_port, started

ROOT = Path(__file__).parents[2]
CLIENTS = os.environ.get("CLIENTS_PYTHON", str(ROOT / ".venv-clients/bin/python"))
PROTO = ROOT / "src/burnish/serving/proto"
STATUS = grpc.StatusCode
MESSAGE_BYTES = 150_000

T = TypeVar("T")


class GrpcServer:
    """A server with its gRPC ports."""

    def __init__(self, folder: Path, model: Path, *settings: str) -> None:
        self.port, self.admin_port = free_port(), free_port()
        ports = ["--grpc.port", str(self.port), "--admin.grpc_port", str(self.admin_port)]
        self.rest: Server = started(folder, model, *ports, *settings)

    def talk(self, conversation: Callable[[grpc.aio.Channel], Awaitable[T]], *, admin: bool = False, **kinds: Any) -> T:
        """What a conversation over a channel of its own gives."""

        async def talked() -> T:
            address = f"127.0.0.1:{self.admin_port if admin else self.port}"
            async with grpc.aio.insecure_channel(address, **kinds) as channel:
                await asyncio.wait_for(channel.channel_ready(), 20)
                return await conversation(channel)

        return asyncio.run(talked())

    def generate(self, request: pb.GenerateRequest, *, key: str = KEY) -> pb.GenerateResponse:
        return self.talk(lambda channel: GenerationStub(channel).Generate(request, metadata=with_key(key), timeout=30))

    def stream(self, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
        async def read(channel: grpc.aio.Channel) -> list[pb.GenerateResponse]:
            return [each async for each in GenerationStub(channel).GenerateStream(request, metadata=with_key())]

        return self.talk(read)

    def infer(self, request: v2.ModelInferRequest) -> v2.ModelInferResponse:
        stub = GRPCInferenceServiceStub
        return self.talk(lambda channel: stub(channel).ModelInfer(request, metadata=with_key(), timeout=30))

    def refusal(self, ask: Callable[[], object]) -> grpc.aio.AioRpcError:
        """How something is refused; the next request must be answered."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            ask()
        assert self.generate(asks(text="Hi", max_tokens=1)).usage.completion_tokens == 1
        return caught.value


def with_key(key: str = KEY) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def asks(*, model: str = "tiny", text: str | None = None, ids: Any = None, chat: Any = None, **sampling: Any) -> Any:
    """A request: of a text, of token ids, or of (role, content)s."""
    request = pb.GenerateRequest(model=model, sampling=pb.Sampling(**sampling))
    if text is not None:
        request.text = text
    if ids is not None:
        request.token_ids.CopyFrom(pb.TokenIds(ids=ids))
    if chat is not None:
        request.chat.CopyFrom(pb.Chat(messages=[pb.Message(role=role, content=content) for role, content in chat]))
    return request


def strings(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def infers(*texts: bytes, parameters: Any = None, **tensors: tuple[str, list[int], bytes]) -> v2.ModelInferRequest:
    """A request of the Open Inference Protocol with raw contents."""
    request = v2.ModelInferRequest(model_name="tiny", id="7")
    for name, (kind, shape, raw) in {"text_input": ("BYTES", [len(texts)], strings(*texts)), **tensors}.items():
        request.inputs.add(name=name, datatype=kind, shape=shape)
        request.raw_input_contents.append(raw)
    for name, value in (parameters or {}).items():
        choice = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], choice, value)
    return request


def texts_of(response: v2.ModelInferResponse, name: str = "text_output") -> list[str]:
    place = [output.name for output in response.outputs].index(name)
    raw, found = response.raw_output_contents[place], []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    assert list(response.outputs[place].shape) == [len(found)]
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[GrpcServer]:
    folder = tmp_path_factory.mktemp("served")
    limits = ["--limits.completions", "4", "--grpc.message_bytes", str(MESSAGE_BYTES)]
    made = GrpcServer(folder, tiny_folder, *limits)
    yield made
    said = ended(made.rest)
    assert "Traceback" not in said and f"gRPC on 127.0.0.1:{made.port}" in said


def test_answers_are_those_of_the_other_door(server: GrpcServer) -> None:
    """Of a text, of tokens and of a conversation; greedy, and drawn with a seed."""
    body = {"model": "tiny", "prompt": "One two", "max_tokens": 12, "temperature": 0.8, "top_k": 50, "top_p": 0.9}
    body |= {"min_p": 0.01, "seed": 5, "n": 3, "logprobs": 2, "logit_bias": {"70": 5.0}, "presence_penalty": 0.5}
    sampling = {**body, "logit_bias": {70: 5.0}, "top_logprobs": 2, "frequency_penalty": 0.0, "ignore_eos": False}
    for name in ("model", "prompt", "logprobs"):
        del sampling[name]
    ids = server.rest.request("/tokenize", {"model": "tiny", "prompt": "One two"})[1]["tokens"]
    _, rest, headers = server.rest.request("/v1/completions", body)
    for request in (asks(text="One two", **sampling), asks(ids=ids, **sampling)):
        found = server.generate(request)
        assert [answer.text for answer in found.answers] == [choice["text"] for choice in rest["choices"]]
        assert [answer.index for answer in found.answers] == [0, 1, 2]
        for answer, choice in zip(found.answers, rest["choices"], strict=True):
            assert list(answer.logprobs) == pytest.approx(choice["logprobs"]["token_logprobs"], rel=1e-6)
            assert pb.FinishReason.Name(answer.finish_reason) == f"FINISH_REASON_{choice['finish_reason'].upper()}"
            assert all(len(top.token_ids) == len(top.logprobs) == 2 for top in answer.top_logprobs)
            assert len(answer.top_logprobs) == len(answer.token_ids) == len(answer.logprobs)
        assert found.usage.prompt_tokens == rest["usage"]["prompt_tokens"] == len(ids)
        assert found.usage.completion_tokens == rest["usage"]["completion_tokens"]
        assert (str(found.weights.version), found.weights.fingerprint) == (
            headers["x-weight-version"],
            headers["x-weight-fingerprint"],
        )
    chat = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]}
    _, rest, _ = server.rest.request(
        "/v1/chat/completions", {"model": "tiny", "max_tokens": 9, "temperature": 0} | chat
    )
    found = server.generate(asks(chat=[("system", "Be brief."), ("user", "Hello")], max_tokens=9, temperature=0))
    assert found.answers[0].text == rest["choices"][0]["message"]["content"] and not found.answers[0].logprobs


def test_a_stream_is_the_same_answers_in_pieces(server: GrpcServer) -> None:
    request = asks(chat=[("user", "Hi")], max_tokens=15, n=2, seed=4, top_logprobs=1)
    whole, pieces = server.generate(request), server.stream(request)
    for answer in whole.answers:
        mine = [each for piece in pieces for each in piece.answers if each.index == answer.index]
        assert "".join(each.text for each in mine) == answer.text
        assert [token for each in mine for token in each.token_ids] == list(answer.token_ids)
        assert [value for each in mine for value in each.logprobs] == pytest.approx(list(answer.logprobs), abs=1e-5)
        assert [each.finish_reason for each in mine] == [0] * (len(mine) - 1) + [answer.finish_reason]
    assert len(pieces) > 10 and all(piece.weights == whole.weights for piece in pieces)
    assert [piece.HasField("usage") for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.answers[0].token_ids != whole.answers[1].token_ids


def test_a_stop_string_ends_an_answer(server: GrpcServer) -> None:
    free = server.generate(asks(text="One", max_tokens=30, temperature=0, ignore_eos=True)).answers[0]
    stop = free.text[5:7]
    cut = server.generate(asks(text="One", max_tokens=30, temperature=0, ignore_eos=True, stop=[stop])).answers[0]
    assert cut.text == free.text[: free.text.index(stop)] and cut.finish_reason == pb.FINISH_REASON_STOP
    assert free.finish_reason == pb.FINISH_REASON_LENGTH


LIMIT = {"max_tokens": 2}
BAD_SAMPLING: list[tuple[dict[str, Any], str]] = [
    *(({"n": value}, "n") for value in (0, -1, 5, 10**9, 2**63 - 1)),
    *(({"max_tokens": value}, "max_tokens") for value in (0, -1, 2**31, 5000)),
    *(({"temperature": value}, "temperature") for value in (-1, 1e308, float("nan"), float("inf"))),
    *(({"top_p": value}, "top_p") for value in (0, 1.1, float("nan"))),
    *(({"top_k": value}, "top_k") for value in (-2, 2**40)),
    *(({"min_p": value}, "min_p") for value in (1, -0.1, float("nan"))),
    *(({"top_logprobs": value}, "top_logprobs") for value in (21, 10**6)),
    *(({"logit_bias": value}, "logit_bias") for value in ({-1: 1}, {99999: 1}, {5: 101}, {5: float("nan")})),
    ({"logit_bias": dict.fromkeys(range(1025), 1)}, "logit_bias"),
    *(({"stop": value}, "stop") for value in ([""], ["a"] * 9, ["x" * 300])),
    ({"seed": -(2**63)}, "seed"),
    *(({name: 2.1}, name) for name in ("presence_penalty", "frequency_penalty")),
]
BAD_PROMPTS: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"text": ""}, "prompt"),
    ({"ids": []}, "prompt"),
    ({"ids": [5, 10**6]}, "prompt"),
    ({"ids": [-1]}, "prompt"),
    ({"ids": [5] * 600}, "max_tokens"),
    ({"chat": []}, "messages"),
    ({"chat": [("boss", "x")]}, "messages.0.role"),
    ({"chat": [("", "")]}, "messages.0.role"),
    ({"chat": [("user", "x" * 5000)]}, "max_tokens"),
]


@pytest.mark.parametrize(
    ("request_fields", "parameter"),
    [*(({"text": "Hi"} | LIMIT | change, name) for change, name in BAD_SAMPLING), *BAD_PROMPTS],
    ids=lambda each: str(each)[:60],
)
def test_a_bad_request_is_refused_with_its_parameter(
    server: GrpcServer, request_fields: dict[str, Any], parameter: str
) -> None:
    for ask in (server.generate, server.stream):
        error = server.refusal(lambda ask=ask: ask(asks(**request_fields)))  # type: ignore[misc]  # of this turn
        assert error.code() == STATUS.INVALID_ARGUMENT and error.details()
        assert str(dict(error.trailing_metadata())["parameter"]).startswith(parameter)


def test_a_model_that_is_not_there(server: GrpcServer) -> None:
    for model in ("", "gpt-9", "../x", "\x00"):
        error = server.refusal(lambda model=model: server.generate(asks(model=model, text="x")))  # type: ignore[misc]
        assert error.code() == STATUS.NOT_FOUND and "there is tiny" in str(error.details())


@pytest.mark.parametrize(
    "raw", [b"\xff", b"\x0a\x04tiny\x12\x02\xff\xfe", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a" * 1000], ids=repr
)
def test_a_message_that_is_none(server: GrpcServer, raw: bytes) -> None:
    """Another protocol, invalid UTF-8, a length that lies."""

    async def one(channel: grpc.aio.Channel) -> None:
        await channel.unary_unary("/burnish.v1.Generation/Generate", None, None)(raw, metadata=with_key(), timeout=30)

    async def several(channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer", None, None)
        async for _ in call(iter([raw]), metadata=with_key(), timeout=30):
            pass

    for conversation in (one, several):
        error = server.refusal(lambda conversation=conversation: server.talk(conversation))  # type: ignore[misc]
        assert (error.code(), error.details()) == (STATUS.INVALID_ARGUMENT, "the message cannot be read")


def test_messages_that_are_too_large(server: GrpcServer) -> None:
    """Both ways, and one that would be large when it is unpacked."""
    error = server.refusal(lambda: server.generate(asks(text="x" * MESSAGE_BYTES)))
    assert error.code() == STATUS.RESOURCE_EXHAUSTED
    answer = asks(text="x", n=4, max_tokens=400, top_logprobs=20, ignore_eos=True)  # 4 x 400 x 21 x 6 bytes and more
    assert server.refusal(lambda: server.generate(answer)).code() == STATUS.RESOURCE_EXHAUSTED
    packed = {"compression": grpc.Compression.Gzip}
    large = asks(text="x" * 10_000_000)
    error = server.refusal(
        lambda: server.talk(lambda it: GenerationStub(it).Generate(large, metadata=with_key(), timeout=30), **packed)
    )
    assert error.code() == STATUS.UNIMPLEMENTED


@pytest.mark.parametrize("key", ["", "x" * 19, KEY[:-1], KEY + "x"])
def test_who_has_no_key_gets_nothing(server: GrpcServer, key: str) -> None:
    request = v2.ModelInferRequest()

    async def ask(channel: grpc.aio.Channel) -> list[grpc.StatusCode]:
        generation, inference, codes = GenerationStub(channel), GRPCInferenceServiceStub(channel), []
        sent = {"metadata": with_key(key), "timeout": 30}
        for call in (
            generation.Generate(pb.GenerateRequest(), **sent),
            generation.GenerateStream(pb.GenerateRequest(), **sent),
            inference.ModelInfer(request, **sent),
            inference.ModelStreamInfer(**sent),  # which is refused before it says anything
            inference.ModelMetadata(v2.ModelMetadataRequest(), **sent),
            inference.ModelReady(v2.ModelReadyRequest(name="tiny"), **sent),
            inference.ServerMetadata(v2.ServerMetadataRequest(), **sent),
        ):
            codes.append(await call.code())  # noqa: PERF401  # the calls go on one after the other
        return codes

    assert set(server.talk(ask)) == {STATUS.UNAUTHENTICATED}


def test_whether_it_lives_is_told_without_a_key(server: GrpcServer) -> None:
    async def ask(channel: grpc.aio.Channel) -> tuple[Any, ...]:
        inference, health = GRPCInferenceServiceStub(channel), HealthStub(channel)
        return (
            (await inference.ServerLive(v2.ServerLiveRequest())).live,
            (await inference.ServerReady(v2.ServerReadyRequest())).ready,
            (await health.Check(HealthCheckRequest())).status,
            (await health.Check(HealthCheckRequest(service="burnish.v1.Generation"))).status,
            (await health.Check(HealthCheckRequest(service="inference.GRPCInferenceService"))).status,
            (await health.Check(HealthCheckRequest(service="liveness"))).status,
        )

    assert server.talk(ask) == (True, True, *[HealthCheckResponse.SERVING] * 4)


def test_a_client_that_leaves_or_whose_time_is_up_stops_its_answer(server: GrpcServer) -> None:
    long = asks(text="Hi", max_tokens=450, n=4, ignore_eos=True)
    streaming = infers(b"Hi", parameters={"stream": True, "max_tokens": 450, "n": 4, "ignore_eos": True})

    def running() -> int:
        return int(server.rest.request("/progress")[1]["running"])

    async def leave(call: Any) -> None:
        until = time.monotonic() + 20
        while not await asyncio.to_thread(running):
            assert time.monotonic() < until
        call.cancel()
        assert await call.code() == STATUS.CANCELLED

    async def late(call: Any) -> None:
        assert await call.code() == STATUS.DEADLINE_EXCEEDED

    for ending, sent in ((leave, {}), (late, {"timeout": 0.3}), (late, {"timeout": 0.0})):
        for call in (
            lambda channel, **kinds: GenerationStub(channel).Generate(long, **kinds),
            lambda channel, **kinds: GenerationStub(channel).GenerateStream(long, **kinds),
            lambda channel, **kinds: GRPCInferenceServiceStub(channel).ModelInfer(
                infers(b"Hi", parameters={"max_tokens": 450, "n": 4, "ignore_eos": True}), **kinds
            ),
            lambda channel, **kinds: GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([streaming]), **kinds),
        ):
            before = server.rest.request("/progress")[1]["steps"]

            async def conversation(channel: grpc.aio.Channel, call=call, ending=ending, sent=sent) -> None:
                await ending(call(channel, metadata=with_key(), **sent))

            server.talk(conversation)
            wait_for(lambda: running() == 0)
            assert server.rest.request("/progress")[1]["steps"] - before < 450


def test_health_follows_the_engine(make_engine: MakeEngine) -> None:
    async def follow() -> None:
        engine = make_engine()
        service = Service(engine, LimitsConfig())
        door = GrpcDoor(service, GrpcConfig(), max_calls=10)
        address = await door.open("127.0.0.1", 0)
        async with grpc.aio.insecure_channel(address) as channel:
            watched = HealthStub(channel).Watch(HealthCheckRequest(), timeout=30)
            states = [(await watched.read()).status]
            service.is_draining = True
            states.append((await watched.read()).status)
            service.is_draining = False
            states.append((await watched.read()).status)
            engine.stop(10)
            states.append((await watched.read()).status)
            assert states == [1, 2, 1, 2]
            live = await HealthStub(channel).Check(HealthCheckRequest(service="liveness"), timeout=30)
            assert live.status == HealthCheckResponse.NOT_SERVING
        await door.close(1)

    asyncio.run(follow())


@pytest.mark.parametrize(
    ("fault", "code", "details", "trailing"),
    [
        (RefusedError("invalid", "no", parameter="n"), STATUS.INVALID_ARGUMENT, "no", {"parameter": "n"}),
        (RefusedError("invalid", "x" * 10**6, parameter="\u00e9"), STATUS.INVALID_ARGUMENT, "x" * 1000, {}),
        (RefusedError("invalid", "\u00e9\n", parameter="a\nb"), STATUS.INVALID_ARGUMENT, "\u00e9\n", {}),
        (RefusedError("not_found", "no"), STATUS.NOT_FOUND, "no", {}),
        (RefusedError("too_many", "no", retry_seconds=7.2), STATUS.RESOURCE_EXHAUSTED, "no", {"retry-after": "7"}),
        (RefusedError("busy", "no", retry_seconds=0.1), STATUS.UNAVAILABLE, "no", {"retry-after": "1"}),
        (RefusedError("too_slow", "no"), STATUS.DEADLINE_EXCEEDED, "no", {}),
        (RefusedError("failed", "no"), STATUS.INTERNAL, "no", {}),
        (ValueError("secret"), STATUS.INTERNAL, "the server made a mistake; its log says which", {}),
    ],
    ids=lambda each: str(each)[:30],
)
def test_each_kind_of_refusal_has_its_status(
    make_parts: Callable[..., Parts],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Exception,
    code: grpc.StatusCode,
    details: str,
    trailing: dict[str, str],
) -> None:
    """And none tells an exception that was not meant for who called."""

    def refuse(self: Service, owner: str) -> None:
        raise fault

    monkeypatch.setattr(Service, "count", refuse)

    async def ask() -> None:
        parts = make_parts()
        door = GrpcDoor(parts.service, GrpcConfig(), max_calls=10)
        door.add("burnish.v1.Generation", add_GenerationServicer_to_server, Generation(parts))
        async with grpc.aio.insecure_channel(await door.open("127.0.0.1", 0)) as channel:
            stub = GenerationStub(channel)
            for call in (stub.Generate(asks(), timeout=30), stub.GenerateStream(asks(), timeout=30)):
                assert (await call.code(), await call.details()) == (code, details)
                assert dict(await call.trailing_metadata()) == trailing
        await door.close(1)

    asyncio.run(ask())
    assert ("secret" in caplog.text) == isinstance(fault, ValueError)


def test_an_exchange_ends_though_who_asked_is_gone(make_parts: Callable[..., Parts]) -> None:
    """Weights that are half loaded would be beside the next ones."""

    async def leave() -> None:
        begun, told, swapped = asyncio.Event(), asyncio.Event(), asyncio.Event()

        class Slow:
            async def swap(self, name: str, path: str) -> None:
                begun.set()
                await told.wait()
                swapped.set()

        admin = Admin(make_parts(), Slow())  # type: ignore[arg-type]
        asking = asyncio.create_task(admin.SwapWeights(pb.SwapWeightsRequest(model="tiny", path="x"), None))  # type: ignore[arg-type]
        await asyncio.wait_for(begun.wait(), 10)
        asking.cancel()
        await asyncio.wait({asking}, timeout=10)
        told.set()
        await asyncio.wait_for(swapped.wait(), 10)

    asyncio.run(leave())


def test_reflection_is_off_unless_it_is_asked_for(server: GrpcServer, make_engine: MakeEngine) -> None:
    def services(address: str) -> list[str]:
        with grpc.insecure_channel(address) as channel:
            return list(ProtoReflectionDescriptorDatabase(channel).get_services())

    async def reflect() -> list[str]:
        door = GrpcDoor(Service(make_engine(), LimitsConfig()), GrpcConfig(reflection=True), max_calls=10)
        door.add("burnish.v1.Generation", lambda servicer, to: None, None)
        found = await asyncio.to_thread(services, await door.open("127.0.0.1", 0))
        await door.close(1)
        return found

    assert {"burnish.v1.Generation", "grpc.health.v1.Health"} <= set(asyncio.run(reflect()))
    with pytest.raises(grpc.RpcError) as caught:
        services(f"127.0.0.1:{server.port}")
    assert caught.value.code() == STATUS.UNIMPLEMENTED  # type: ignore[attr-defined]  # it is a call, too


def test_the_open_inference_protocol(server: GrpcServer) -> None:
    """Two prompts and two answers each; parameters, tensors and JSON say the same; typed contents, too."""
    body = {"model": "tiny", "prompt": ["One two", "Other"], "max_tokens": 7, "temperature": 0.5, "n": 2, "seed": 3}
    expected = [choice["text"] for choice in server.rest.request("/v1/completions", body)[1]["choices"]]
    common = {"max_tokens": 7, "temperature": 0.5, "n": 2, "seed": 3}
    typed = v2.ModelInferRequest(model_name="tiny", model_version="1")
    contents = {"bytes_contents": [b"One two", b"Other"]}
    typed.inputs.add(name="text_input", datatype="BYTES", shape=[2, 1], contents=contents)
    for name, kind, values in (
        ("max_tokens", "INT32", {"int_contents": [7]}),
        ("temperature", "FP32", {"fp32_contents": [0.5]}),
        ("n", "UINT64", {"uint64_contents": [2]}),
        ("seed", "INT64", {"int64_contents": [3]}),
    ):
        typed.inputs.add(name=name, datatype=kind, shape=[1], contents=values)
    for request in (
        infers(b"One two", b"Other", parameters=common),
        infers(
            b"One two",
            b"Other",
            parameters={"n": 2, "seed": 3},
            max_tokens=("INT32", [1], struct.pack("<i", 7)),
            temperature=("FP64", [1, 1], struct.pack("<d", 0.5)),
        ),
        infers(b"One two", b"Other", parameters={"sampling_parameters": json.dumps(common)}),
        typed,
    ):
        found = server.infer(request)
        assert texts_of(found) == expected
        assert found.id == request.id and (found.model_name, found.model_version) == ("tiny", "1")
        assert set(texts_of(found, "finish_reason")) <= {"stop", "length"}
        assert found.raw_output_contents[2] == struct.pack("<4i", 0, 1, 2, 3)
    one = infers(b"One two", parameters={"temperature": 0})
    one.outputs.add(name="text_output")
    assert [output.name for output in server.infer(one).outputs] == ["text_output"]


def test_a_stream_of_the_open_inference_protocol(server: GrpcServer) -> None:
    """Of several requests, one of them refused."""
    settings = {"max_tokens": 9, "temperature": 0, "ignore_eos": True}
    whole = infers(b"One two", parameters=settings)
    bad = infers(b"One two", parameters={"n": 0})
    streaming = infers(b"One two", parameters={**settings, "stream": True, "triton_enable_empty_final_response": True})
    bad.id, streaming.id = "8", "9"

    async def requests() -> AsyncIterator[v2.ModelInferRequest]:
        for request in (whole, bad, streaming):
            yield request

    async def read(channel: grpc.aio.Channel) -> list[v2.ModelStreamInferResponse]:
        call = GRPCInferenceServiceStub(channel).ModelStreamInfer(requests(), metadata=with_key(), timeout=30)
        return [each async for each in call]

    first, refused, *pieces = server.talk(read)
    text = texts_of(server.infer(whole))[0]
    assert texts_of(first.infer_response) == [text]
    assert refused.error_message.startswith("n: ") and refused.infer_response.id == "8"
    assert "".join(texts_of(piece.infer_response)[0] for piece in pieces) == text and len(pieces) > 2
    assert {piece.infer_response.id for piece in pieces} == {"9"}
    assert all(texts_of(piece.infer_response)[0] for piece in pieces[:-1])  # none of them says nothing
    finals = [each.infer_response.parameters["triton_final_response"].bool_param for each in (first, refused, *pieces)]
    assert finals == [True, True, *[False] * (len(pieces) - 1), True]
    assert pieces[-1].infer_response.parameters["completion_tokens"].int64_param == 9


def renamed(request: v2.ModelInferRequest, **fields: str) -> v2.ModelInferRequest:
    for name, value in fields.items():
        setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    ("request_", "parameter"),
    [
        (infers(parameters={"n": 1}), "prompt"),
        (infers(b""), "prompt"),
        (infers(b"\xff\xfe"), "text_input"),
        (infers(b"Hi", parameters={"n": 0}), "n"),
        (infers(b"Hi", parameters={"temperature": float("nan")}), "temperature"),
        (infers(b"Hi", parameters={"max_tokens": "7"}), "max_tokens"),
        (infers(b"Hi", parameters={"nonsense": 7}), "nonsense"),
        (infers(b"Hi", parameters={"model": "other"}), "model"),
        (infers(b"Hi", parameters={"prompt": "other"}), "prompt"),
        (infers(b"Hi", parameters={"text_input": "other"}), "text_input"),
        (infers(b"Hi", parameters={"stream": True}), "stream"),
        (infers(b"Hi", parameters={"sampling_parameters": "[" * 50_000}), "sampling_parameters"),
        (infers(b"Hi", parameters={"sampling_parameters": "[1]"}), "sampling_parameters"),
        (infers(b"Hi", parameters={"sampling_parameters": '{"n": 2}', "n": 2}), "n"),
        (infers(b"Hi", parameters={"sampling_parameters": '{"temperature": NaN}'}), "temperature"),
        (infers(b"Hi", parameters={"sampling_parameters": '{"logit_bias": {"99999": 1}}'}), "logit_bias"),
        (infers(b"Hi", n=("INT32", [1], b"\x01\x00")), "n"),
        (infers(b"Hi", n=("INT32", [2], b"\x01\x00\x00\x00" * 2)), "n"),
        (infers(b"Hi", n=("INT32", [0], b"")), "n"),
        (infers(b"Hi", n=("INT32", [-1], b"")), "n"),
        (infers(b"Hi", n=("INT32", [2**62] * 9, b"")), "n"),
        (infers(b"Hi", n=("INT32", [-1, -1], b"\x01\x00\x00\x00")), "n"),
        (infers(b"Hi", n=("INT32", [1] * 10_000, b"\x01\x00\x00\x00")), "n"),
        (infers(b"Hi", n=("FP16", [1], b"\x00\x00")), "n"),
        (infers(b"Hi", stop=("BYTES", [1], b"\xff\xff\xff\xffx")), "stop"),
        (infers(b"Hi", stop=("BYTES", [9], strings(*[b"x"] * 9))), "stop"),
        (infers(*[b"Hi"] * 1025), "text_input"),
        (infers(*[b"Hi"] * 5), "n"),
        (infers(b"Hi", parameters={f"key{number}": 1 for number in range(100)}), None),
        (v2.ModelInferRequest(model_name="tiny"), "text_input"),
        (v2.ModelInferRequest(model_name="tiny", raw_input_contents=[b""]), "raw_input_contents"),
        (v2.ModelInferRequest(model_name="tiny", outputs=[{"name": "logits"}]), "outputs"),
        (renamed(infers(b"Hi"), model_name="other"), "model"),
        (renamed(infers(b"Hi"), model_version="99"), "model_version"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_tensors_that_say_nothing(server: GrpcServer, request_: v2.ModelInferRequest, parameter: str | None) -> None:
    error = server.refusal(lambda: server.infer(request_))
    lacks = parameter in ("model", "model_version") and "model" not in request_.parameters
    assert error.code() == (STATUS.NOT_FOUND if lacks else STATUS.INVALID_ARGUMENT) and error.details()
    assert str(dict(error.trailing_metadata() or ()).get("parameter")).startswith(str(parameter))


TRITON = """
import json, queue, sys
import numpy as np
import tritonclient.grpc as triton

address, key = sys.argv[1:]
headers = {"authorization": f"Bearer {key}"}
client = triton.InferenceServerClient(address)
found = {"live": client.is_server_live(headers), "ready": client.is_server_ready(headers)}
found["models"] = [client.is_model_ready(name, headers=headers) for name in ("tiny", "other")]
found["metadata"] = client.get_model_metadata("tiny", headers=headers, as_json=True)
found["server"] = client.get_server_metadata(headers=headers, as_json=True)["name"]

def tensor(name, values, kind):
    array = np.array(values, dtype=np.object_ if kind == "BYTES" else triton_types[kind])
    made = triton.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array)
    return made

triton_types = {"INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}
inputs = [tensor("text_input", [b"One two"], "BYTES"), tensor("max_tokens", [9], "INT32")]
inputs += [tensor("temperature", [0.0], "FP32")]
outputs = [triton.InferRequestedOutput("text_output")]
whole = client.infer("tiny", inputs, outputs=outputs, request_id="a", headers=headers, parameters={"ignore_eos": True})
found["text"] = whole.as_numpy("text_output")[0].decode()
heard = queue.Queue()
client.start_stream(lambda result, error: heard.put((result, error)), headers=headers)
client.async_stream_infer(
    "tiny", [*inputs, tensor("stream", [True], "BOOL")], outputs=outputs, request_id="b",
    enable_empty_final_response=True, parameters={"ignore_eos": True},
)
found["pieces"], is_over = [], False
while not is_over:
    result, error = heard.get(timeout=30)
    assert error is None, error
    found["pieces"].append(result.as_numpy("text_output")[0].decode())
    is_over = result.get_response().parameters["triton_final_response"].bool_param
client.async_stream_infer("tiny", inputs, parameters={"n": 0})
found["error"] = str(heard.get(timeout=30)[1])
client.stop_stream()
try:
    client.infer("tiny", inputs)
except triton.InferenceServerException as error:
    found["refused"] = error.status()
print(json.dumps(found))
"""


@pytest.mark.clients
@pytest.mark.skipif(
    shutil.which(CLIENTS) is None,
    reason="needs Triton's client in an interpreter of its own: name one in CLIENTS_PYTHON",
)
def test_tritons_own_client(server: GrpcServer) -> None:
    command = [CLIENTS, "-c", TRITON, f"127.0.0.1:{server.port}", KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    body = {"model": "tiny", "prompt": "One two", "max_tokens": 9, "temperature": 0, "ignore_eos": True}
    text = server.rest.request("/v1/completions", body)[1]["choices"][0]["text"]
    assert (found["live"], found["ready"], found["models"], found["server"]) == (True, True, [True, False], "burnish")
    assert found["text"] == text == "".join(found["pieces"]) and len(found["pieces"]) > 2
    assert {each["name"] for each in found["metadata"]["outputs"]} == {"text_output", "finish_reason", "index"}
    assert "n: " in found["error"] and "UNAUTHENTICATED" in found["refused"]


def test_the_admin_door(server: GrpcServer, tiny_teacher_folder: Path) -> None:
    shutil.copytree(tiny_teacher_folder, server.rest.folder / "other")

    def swap(path: str, *, key: str = ADMIN, model: str = "tiny", admin: bool = True) -> pb.SwapWeightsResponse:
        request = pb.SwapWeightsRequest(model=model, path=path)
        return server.talk(
            lambda channel: AdminStub(channel).SwapWeights(request, metadata=with_key(key), timeout=60), admin=admin
        )

    def models(key: str) -> pb.ListModelsResponse:
        request = pb.ListModelsRequest()
        return server.talk(
            lambda channel: AdminStub(channel).ListModels(request, metadata=with_key(key), timeout=60), admin=True
        )

    (before,) = models(ADMIN).models
    for ask, code in (
        (lambda: swap("other", key=KEY), STATUS.PERMISSION_DENIED),
        (lambda: models(KEY), STATUS.PERMISSION_DENIED),
        (lambda: swap("other", key="x"), STATUS.UNAUTHENTICATED),
        (lambda: swap("other", admin=False), STATUS.UNIMPLEMENTED),
        (lambda: swap("other", model="none"), STATUS.NOT_FOUND),
        (lambda: swap("../.."), STATUS.INVALID_ARGUMENT),
        (lambda: swap(""), STATUS.INVALID_ARGUMENT),
        (
            lambda: server.talk(lambda it: GenerationStub(it).Generate(asks(), metadata=with_key(ADMIN)), admin=True),
            STATUS.UNIMPLEMENTED,
        ),
    ):
        assert server.refusal(ask).code() == code
    assert models(ADMIN).models[0] == before
    swapped = swap("other").model
    assert swapped.weights.version == before.weights.version + 1
    assert swapped.weights.fingerprint != before.weights.fingerprint
    assert server.generate(asks(text="Hi", max_tokens=1)).weights == swapped.weights == models(ADMIN).models[0].weights


def test_answers_that_are_under_way_end_before_the_server(tmp_path: Path, tiny_folder: Path) -> None:
    server = GrpcServer(tmp_path, tiny_folder, "--limits.requests_per_minute", "2", "--limits.answers", "3")
    found: list[Any] = []
    long = asks(text="Hi", max_tokens=450, ignore_eos=True)
    asking = threading.Thread(target=lambda: found.append(server.stream(long)))
    asking.start()
    wait_for(lambda: server.rest.request("/progress")[1]["running"] > 0)
    server.rest.request("/v1/chat/completions", CHAT)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        server.generate(asks(text="Hi"))
    assert caught.value.code() == STATUS.RESOURCE_EXHAUSTED
    assert 1 <= int(dict(caught.value.trailing_metadata())["retry-after"]) <= 30
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        server.generate(asks(text="Hi", n=3), key=ADMIN)
        server.generate(asks(text="Hi", n=4), key=ADMIN)
    assert caught.value.code() == STATUS.INVALID_ARGUMENT
    said = ended(server.rest)
    asking.join(30)
    assert found[0][-1].usage.completion_tokens == 450 and "Traceback" not in said


def test_a_port_that_is_taken_is_one_line(tiny_folder: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # with which two servers could share it
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "burnish", "serve", str(tiny_folder), "--port", "0", "--grpc.port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == f"burnish: cannot listen on 127.0.0.1:{port}: is the port taken?"


def test_what_is_generated_is_of_these_protocols(tmp_path: Path) -> None:
    folder = tmp_path / "burnish/serving/proto"
    folder.mkdir(parents=True)
    for proto in PROTO.glob("*.proto"):
        shutil.copy(proto, folder)
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "--grpc_python_out=.", "--pyi_out=."]
    command += [str(each.relative_to(tmp_path)) for each in sorted(folder.glob("*.proto"))]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    made = {path.name: path.read_text() for path in folder.iterdir()} | {"__init__.py": ""}
    assert made == {path.name: path.read_text() for path in PROTO.iterdir() if path.is_file()}
