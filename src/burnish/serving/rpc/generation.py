"""burnish.v1.Generation: answers to a prompt, whole or in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from burnish.serving.answers import Answers
from burnish.serving.asking import ask_for
from burnish.serving.asks import Done, Event, Token
from burnish.serving.openai import ChatRequest, CompletionRequest, checked
from burnish.serving.parts import Parts
from burnish.serving.proto import burnish_pb2 as pb
from burnish.serving.proto.burnish_pb2_grpc import GenerationServicer
from burnish.serving.refusals import RefusedError
from burnish.serving.rpc.door import Context, owner_in
from burnish.serving.service import Wish

_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}


class Generation(GenerationServicer):
    """The service."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._service, self._keys = parts, parts.service, parts.keys

    async def Generate(self, request: pb.GenerateRequest, context: Context[Any, Any]) -> pb.GenerateResponse:
        """All answers at once."""
        answers, wish = await self._asked(request, context)
        whole = _head(answers)
        texts = [""] * answers.num_answers
        for index in range(answers.num_answers):
            whole.answers.add(index=index)
        async with aclosing(answers.events()) as events:
            async for number, event in events:
                piece = _piece(number, event, wish)
                texts[number] += piece.text
                whole.answers[number].MergeFrom(piece)
        for answer, text in zip(whole.answers, texts, strict=True):
            answer.text = text
        whole.usage.CopyFrom(_usage(answers, sum(len(answer.token_ids) for answer in whole.answers)))
        return whole

    async def GenerateStream(
        self, request: pb.GenerateRequest, context: Context[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        """The same in pieces."""
        answers, wish = await self._asked(request, context)
        num_tokens, num_left = 0, answers.num_answers
        async with aclosing(answers.events()) as events:
            async for number, event in events:
                said = _head(answers)
                said.answers.append(_piece(number, event, wish))
                num_tokens += isinstance(event, Token)
                num_left -= isinstance(event, Done)
                if not num_left:
                    said.usage.CopyFrom(_usage(answers, num_tokens))
                yield said

    async def _asked(self, request: pb.GenerateRequest, context: Context[Any, Any]) -> tuple[Answers, Wish]:
        owner = await owner_in(context, self._keys)
        self._service.count(owner)
        body = _body(request)
        num_top = request.sampling.top_logprobs if request.sampling.HasField("top_logprobs") else None
        wish = body.wish(max_tokens=body.max_tokens, num_top=num_top)
        return await ask_for(self._parts, body, wish, owner=owner), wish


def _body(request: pb.GenerateRequest) -> ChatRequest | CompletionRequest:
    """The request as it would come over HTTP, whose checks hold here, too."""
    sampling = request.sampling
    fields: dict[str, Any] = {field.name: value for field, value in sampling.ListFields()}
    fields.pop("top_logprobs", None)  # each kind has its own word for it
    fields["model"] = request.model
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): value for token, value in sampling.logit_bias.items()}
    match request.WhichOneof("prompt"):
        case "text":
            return checked(CompletionRequest, fields | {"prompt": request.text})
        case "token_ids":
            return checked(CompletionRequest, fields | {"prompt": [list(request.token_ids.ids)]})
        case "chat":
            messages = [
                {field.name: value for field, value in message.ListFields()} for message in request.chat.messages
            ]
            return checked(ChatRequest, fields | {"messages": messages})
        case _:
            raise RefusedError("invalid", "there is no prompt: give text, token_ids or chat", parameter="prompt")


def _head(answers: Answers) -> pb.GenerateResponse:
    weights = answers.weights
    return pb.GenerateResponse(
        model=weights.name, weights=pb.Weights(version=weights.version, fingerprint=weights.fingerprint)
    )


def _piece(number: int, event: Event, wish: Wish) -> pb.Answer:
    piece = pb.Answer(index=number)
    if isinstance(event, Token | Done):
        piece.text = event.text
    if isinstance(event, Done):
        piece.finish_reason = _REASONS[event.reason]
    if isinstance(event, Token):
        piece.token_ids.append(event.id)
        if wish.num_top is not None:
            piece.logprobs.append(event.logprob)
            top = pb.TopLogprobs(token_ids=[each for each, _ in event.top], logprobs=[value for _, value in event.top])
            piece.top_logprobs.append(top)
    return piece


def _usage(answers: Answers, num_tokens: int) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=sum(map(len, answers.prompts)),
        completion_tokens=num_tokens,
        cached_tokens=answers.cached_tokens,
    )
