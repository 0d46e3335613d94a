"""The Open Inference Protocol, version 2, and Triton's stream: its clients' way to the same answers.

A request has its prompts in the input `text_input`; the output `text_output` has the answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from burnish import __version__
from burnish.serving.answers import Answers
from burnish.serving.asking import ask_for
from burnish.serving.asks import Done, Event, Token, Weights
from burnish.serving.openai import CompletionRequest, checked
from burnish.serving.parts import Parts
from burnish.serving.proto import inference_pb2 as pb
from burnish.serving.proto.inference_pb2_grpc import GRPCInferenceServiceServicer
from burnish.serving.refusals import RefusedError
from burnish.serving.rpc.door import Context, owner_in
from burnish.serving.rpc.tensors import fields_of, integers_output, texts_output

_INPUTS = (
    *(("text_input", "BYTES"), ("stream", "BOOL"), ("max_tokens", "INT32"), ("temperature", "FP32")),
    *(("top_p", "FP32"), ("top_k", "INT32"), ("min_p", "FP32"), ("n", "INT32"), ("stop", "BYTES"), ("seed", "INT64")),
    *(("presence_penalty", "FP32"), ("frequency_penalty", "FP32"), ("ignore_eos", "BOOL")),
    ("sampling_parameters", "BYTES"),
)
_OUTPUTS = (("text_output", "BYTES"), ("finish_reason", "BYTES"), ("index", "INT32"))
_WANTS_AN_END = "triton_enable_empty_final_response"  # there always is one: it has the reason


@dataclass(slots=True)
class _Row:
    """An answer, or the next piece of it."""

    index: int
    text: str = ""
    reason: str = ""
    num_tokens: int = 0

    def add(self, event: Event) -> None:
        """Add what happened."""
        self.num_tokens += isinstance(event, Token)
        self.text += event.text if isinstance(event, Token | Done) else ""
        self.reason = event.reason if isinstance(event, Done) else ""


class Inference(GRPCInferenceServiceServicer):
    """The service."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._service, self._keys = parts, parts.service, parts.keys

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context[Any, Any]) -> pb.ServerLiveResponse:
        """Whether there is an engine to answer; needs no key."""
        return pb.ServerLiveResponse(live=self._service.engine.is_alive)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context[Any, Any]) -> pb.ServerReadyResponse:
        """Whether requests are taken; needs no key."""
        return pb.ServerReadyResponse(ready=self._service.is_ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context[Any, Any]) -> pb.ModelReadyResponse:
        """Whether requests are taken for a model."""
        await owner_in(context, self._keys)
        try:
            self._weights(request.name, request.version)
        except RefusedError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._service.is_ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context[Any, Any]
    ) -> pb.ServerMetadataResponse:
        """What this is."""
        await owner_in(context, self._keys)
        return pb.ServerMetadataResponse(name="burnish", version=__version__)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context[Any, Any]
    ) -> pb.ModelMetadataResponse:
        """The tensors that a request may have, and an answer has."""
        await owner_in(context, self._keys)
        weights = self._weights(request.name, request.version)
        of = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=weights.name,
            versions=[str(weights.version)],
            platform="burnish",
            inputs=[of(name=name, datatype=kind, shape=[-1]) for name, kind in _INPUTS],
            outputs=[of(name=name, datatype=kind, shape=[-1]) for name, kind in _OUTPUTS],
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context[Any, Any]) -> pb.ModelInferResponse:
        """All answers at once."""
        answers, streams = await self._asked(request, await owner_in(context, self._keys))
        if streams:
            raise RefusedError("invalid", "stream: needs ModelStreamInfer", parameter="stream")
        return await _whole(request, answers)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context[Any, Any]
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """The answers to each request in turn. One that is refused gets a response that says so."""
        owner = await owner_in(context, self._keys)
        async for request in requests:
            try:
                answers, streams = await self._asked(request, owner)
                if streams:
                    async with aclosing(_pieces(request, answers)) as pieces:
                        async for piece in pieces:
                            yield pb.ModelStreamInferResponse(infer_response=piece)
                else:
                    whole = await _whole(request, answers)
                    whole.parameters["triton_final_response"].bool_param = True
                    yield pb.ModelStreamInferResponse(infer_response=whole)
            except RefusedError as error:
                refused = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
                refused.parameters["triton_final_response"].bool_param = True
                yield pb.ModelStreamInferResponse(error_message=str(error), infer_response=refused)

    def _weights(self, model: str, version: str) -> Weights:
        weights = self._service.weights(model)
        if version not in ("", str(weights.version)):
            raise RefusedError("not_found", f"the version of {model} is {weights.version}", parameter="model_version")
        return weights

    async def _asked(self, request: pb.ModelInferRequest, owner: str) -> tuple[Answers, bool]:
        """The answers, and whether they are to come in pieces."""
        self._service.count(owner)
        self._weights(request.model_name, request.model_version)
        known = [name for name, _ in _OUTPUTS]
        if unknown := next((each.name for each in request.outputs if each.name not in known), None):
            raise RefusedError("invalid", f"there is no output {unknown}", parameter="outputs")
        fields = fields_of(request)
        fields.pop(_WANTS_AN_END, None)
        body = checked(CompletionRequest, fields | {"model": request.model_name})
        if body.echo:
            raise RefusedError("invalid", "echo: over HTTP alone", parameter="echo")
        return await ask_for(self._parts, body, body.as_wish(), owner=owner), bool(body.stream)


async def _whole(request: pb.ModelInferRequest, answers: Answers) -> pb.ModelInferResponse:
    rows = [_Row(index) for index in range(len(answers.prompts) * answers.num_answers)]
    async with aclosing(answers.events()) as events:
        async for number, event in events:
            rows[number].add(event)
    response = _response(request, answers, rows)
    _add_usage(response, answers, sum(row.num_tokens for row in rows))
    return response


async def _pieces(request: pb.ModelInferRequest, answers: Answers) -> AsyncGenerator[pb.ModelInferResponse, None]:
    num_left, num_tokens = len(answers.prompts) * answers.num_answers, 0
    async with aclosing(answers.events()) as events:
        async for number, event in events:
            row = _Row(number)
            row.add(event)
            num_tokens += row.num_tokens
            num_left -= bool(row.reason)
            if not (row.text or row.reason):
                continue
            response = _response(request, answers, [row])
            response.parameters["triton_final_response"].bool_param = not num_left
            if not num_left:
                _add_usage(response, answers, num_tokens)
            yield response


def _response(request: pb.ModelInferRequest, answers: Answers, rows: Sequence[_Row]) -> pb.ModelInferResponse:
    """Rows as the outputs that were asked for; all, where none were named."""
    weights = answers.weights
    response = pb.ModelInferResponse(model_name=weights.name, model_version=str(weights.version), id=request.id)
    response.parameters["weight_fingerprint"].string_param = weights.fingerprint
    wanted = {each.name for each in request.outputs}
    for tensor, raw in (
        texts_output("text_output", [row.text for row in rows]),
        texts_output("finish_reason", [row.reason for row in rows]),
        integers_output("index", [row.index for row in rows]),
    ):
        if not wanted or tensor.name in wanted:
            response.outputs.append(tensor)
            response.raw_output_contents.append(raw)
    return response


def _add_usage(response: pb.ModelInferResponse, answers: Answers, num_tokens: int) -> None:
    response.parameters["prompt_tokens"].int64_param = sum(map(len, answers.prompts))
    response.parameters["completion_tokens"].int64_param = num_tokens
