"""OpenAI's requests and answers: what a client may send, and what it gets."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from burnish.serving.answers import Answers
from burnish.serving.asks import Done, Event, PromptRead, Token, Weights
from burnish.serving.body import Body
from burnish.serving.constraints import ANY_OBJECT
from burnish.serving.journal import Feedback
from burnish.serving.refusals import RefusedError
from burnish.serving.service import Wish, any_seed, prompt_of_messages
from burnish.serving.tools import CallReader, CallTurn, Tool, ToolChoice, forced_schema

_MAX_SEED = 2**63 - 1
_DEFAULT_COMPLETION_TOKENS = 16  # as OpenAI's
_TOLD_FAULTS = 1000

BodyT = TypeVar("BodyT", bound=BaseModel)


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[CallTurn], Field(fail_fast=True, max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=100)] | None = None
    # OpenAI's client may send an answer back with all that it could have had
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None

    def as_template(self, place: str) -> dict[str, Any]:
        """The turn as a chat template takes it; `place` is where it stands in the request.

        Raises:
            RefusedError: it says nothing.
        """
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise RefusedError("invalid", f"{place}.content: is needed", parameter=f"{place}.content")
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        named = {"name": self.name, "tool_call_id": self.tool_call_id}
        calls = {"tool_calls": [each.as_template() for each in self.tool_calls]} if self.tool_calls else {}
        return {"role": self.role, "content": text, **{k: v for k, v in named.items() if v is not None}, **calls}


class SchemaFormat(Body):
    """A named JSON schema."""

    name: Annotated[str, Field(max_length=100)]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer must be: text, some JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    def schema_text(self) -> str | None:
        """The schema that answers must have.

        Raises:
            RefusedError: there is none, or one that has no use.
        """
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise RefusedError(
                "invalid", "response_format: json_schema goes with type json_schema", parameter="response_format"
            )
        if self.json_schema is not None:
            return json.dumps(self.json_schema.schema_)
        return ANY_OBJECT if self.type == "json_object" else None


class StreamOptions(Body):
    """What a stream carries beside the answers."""

    include_usage: bool = False
    continuous_usage_stats: bool = False  # vLLM's: the count so far comes with every piece


class _Request(Body):
    """What both kinds of request share. null stands for the default."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    n: Annotated[int, Field(ge=1, le=2**31)] | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-_MAX_SEED, le=_MAX_SEED)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], float] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    def wish(self, *, max_tokens: int | None, num_top: int | None) -> Wish:
        """How answers are to be made."""
        if self.stream_options is not None and not self.stream:
            raise RefusedError("invalid", "stream_options needs stream: true", parameter="stream_options")
        return Wish(
            num_answers=self.n or 1,
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            stops=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            seed=any_seed() if self.seed is None else self.seed,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={int(token): value for token, value in (self.logit_bias or {}).items()},
            num_top=num_top,
            ignores_end=bool(self.ignore_eos),
        )

    def settings(self) -> dict[str, Any]:
        """What was set, beside what was said."""
        return self.model_dump(exclude={"messages", "prompt"}, exclude_none=True, exclude_defaults=True)

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with the number of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class FeedbackRequest(Body):
    """POST /v1/feedback: of the answer `index` to a request, whose id the response had.

    `best` says that it is the best of that request's answers; `correction` is what it should have been.
    """

    response_id: Annotated[str, Field(min_length=1, max_length=100)]
    index: Annotated[int, Field(ge=0, le=10_000)] = 0
    rating: Literal["good", "bad"] | None = None
    best: bool = False
    correction: Annotated[str, Field(min_length=1)] | None = None
    comment: Annotated[str, Field(max_length=10_000)] | None = None

    def feedback(self, owner: str) -> Feedback:
        """What an owner says.

        Raises:
            RefusedError: nothing is said.
        """
        if self.rating is None and self.correction is None and self.comment is None and not self.best:
            raise RefusedError("invalid", "give a rating, best, a correction or a comment", parameter="rating")
        return Feedback(
            request_id=self.response_id.rpartition("-")[2],
            number=self.index,
            owner=owner,
            rating=self.rating,
            is_preferred=self.best,
            correction=self.correction,
            comment=self.comment,
        )


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def num_prompts(self) -> int:
        """How many prompts there are."""
        return 1

    def prompts(self, weights: Weights) -> list[tuple[int, ...]]:
        """The conversation as token ids."""
        offered = [each.model_dump(exclude_none=True) for each in self.offered]
        return [prompt_of_messages(weights, self.said(), offered)]

    def said(self) -> list[dict[str, Any]]:
        """The turns, as a chat template takes them."""
        return [each.as_template(f"messages.{place}") for place, each in enumerate(self.messages)]

    @property
    def offered(self) -> list[Tool]:
        """The tools that may be called."""
        return [] if self.tool_choice == "none" else list(self.tools or ())

    def call_reader(self) -> CallReader | None:
        """What finds the calls in an answer, where there may be some."""
        names = [each.function.name for each in self.offered]
        return CallReader(names, most=1 if self.parallel_tool_calls is False else None) if names else None

    def as_wish(self) -> Wish:
        """How answers are to be made."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RefusedError("invalid", "top_logprobs needs logprobs: true", parameter="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise RefusedError(
                "invalid", "give max_completion_tokens or max_tokens, which it replaces", parameter="max_tokens"
            )
        schema = forced_schema(self.offered, self.tool_choice)
        if self.response_format is not None and (wanted := self.response_format.schema_text()) is not None:
            if schema is not None:
                raise RefusedError(
                    "invalid",
                    "response_format: an answer cannot have a form and be a call",
                    parameter="response_format",
                )
            schema = wanted
        wish = self.wish(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            num_top=(self.top_logprobs or 0) if self.logprobs else None,
        )
        return replace(wish, schema=schema)


class CompletionRequest(_Request):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[int], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None

    def as_wish(self) -> Wish:
        """How answers are to be made."""
        max_tokens = _DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        return replace(self.wish(max_tokens=max_tokens, num_top=self.logprobs), echoes=bool(self.echo))

    def echoed(self, answers: Answers) -> list[str]:
        """The prompts as text, where they are to be repeated."""
        if not self.echo:
            return []
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        decode = answers.weights.policy.tokenizer.decode
        pairs = zip(given, answers.prompts, strict=False)  # one prompt of token ids is not a list of prompts
        return [each if isinstance(each, str) else str(decode(list(ids))) for each, ids in pairs]

    @property
    def num_prompts(self) -> int:
        """How many prompts there are."""
        is_one = isinstance(self.prompt, str) or (bool(self.prompt) and isinstance(self.prompt[0], int))
        return 1 if is_one else len(self.prompt)

    def prompts(self, weights: Weights) -> list[tuple[int, ...]]:
        """The prompts as token ids."""
        tokenizer = weights.policy.tokenizer
        if isinstance(self.prompt, str):
            return [tuple(tokenizer(self.prompt)["input_ids"])]
        if self.prompt and isinstance(self.prompt[0], int):
            return [tuple(self.prompt)]
        return [
            tuple(tokenizer(each)["input_ids"]) if isinstance(each, str) else tuple(each)  # type: ignore[arg-type]
            for each in self.prompt
        ]


def checked(kind: type[BodyT], content: bytes | Mapping[str, Any]) -> BodyT:
    """A request from JSON, or from its fields.

    Raises:
        RefusedError: it is not what was expected.
    """
    try:
        return kind.model_validate_json(content) if isinstance(content, bytes) else kind.model_validate(content)
    except ValidationError as error:
        if error.error_count() > _TOLD_FAULTS:  # to tell them all would take long, and gigabytes
            raise RefusedError("invalid", f"the request has {error.error_count():,} faults") from error
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        message = f"unknown parameter: {place}" if fault["type"] == "extra_forbidden" else f"{place}: {fault['msg']}"
        raise RefusedError("invalid", message, parameter=place or None) from error


@dataclass(slots=True)
class _Choice:
    reader: CallReader | None = None
    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    read: PromptRead | None = None
    tokens: list[Token] = field(default_factory=list)
    reason: str | None = None
    offset: int = 0  # characters of the tokens whose log-probabilities were told


class Writer:
    """Writes the answers to one request, whole or piece by piece."""

    def __init__(self, answers: Answers, wish: Wish, decode: Any, body: ChatRequest | CompletionRequest) -> None:
        """`decode(token id)` is the token as text."""
        self._is_chat = isinstance(body, ChatRequest)
        self._tells_usage = body.stream_options is not None and body.stream_options.continuous_usage_stats
        echoed = body.echoed(answers) if isinstance(body, CompletionRequest) else ()
        self._echoed = [text for text in echoed for _ in range(answers.num_answers)]
        self._answers, self._wish, self._decode = answers, wish, decode
        self._choices = [
            _Choice(reader=body.call_reader() if isinstance(body, ChatRequest) else None)
            for _ in range(len(answers.prompts) * answers.num_answers)
        ]
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{answers.id}"
        self._created = int(time.time())

    def take(self, number: int, event: Event) -> str:
        """Add what happened to an answer; returns the text that it makes certain."""
        choice = self._choices[number]
        if isinstance(event, PromptRead):
            choice.read = event
        if isinstance(event, Token):
            choice.tokens.append(event)
        text = event.text if isinstance(event, Token | Done) else ""
        if choice.reader is not None:
            text = choice.reader.take(text)
        if isinstance(event, Done):
            choice.reason = event.reason
            if choice.reader is not None:
                rest, choice.calls = choice.reader.end()
                text += rest
            if choice.calls:
                choice.reason = "tool_calls"
        choice.text += text
        return text

    def whole(self) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        choices = []
        for number, choice in enumerate(self._choices):
            before = self._prompt_logprobs(number, choice.read)
            logprobs = self._logprobs(choice.tokens, choice.offset)
            if before is not None and logprobs is not None:
                logprobs = {name: [*before[name], *logprobs[name]] for name in before}
            content: dict[str, Any] = {"text": "".join(self._echoed[number : number + 1]) + choice.text}
            if self._is_chat:
                calls = {"tool_calls": choice.calls} if choice.calls else {}
                said = choice.text if choice.text.strip() or not choice.calls else None
                content = {"message": {"role": "assistant", "content": said, **calls}}
            choices.append({"index": number, **content, "logprobs": logprobs, "finish_reason": choice.reason})
        return self._head("") | {"choices": choices, "usage": self.usage()}

    def opening(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        if not self._is_chat:
            texts = [] if self._wish.tells_prompts else self._echoed  # else they come with their log-probabilities
            return [self._piece(number, {"text": text, "logprobs": None}, None) for number, text in enumerate(texts)]
        return [
            self._piece(number, {"delta": {"role": "assistant", "content": ""}}, None)
            for number in range(len(self._choices))
        ]

    def piece(self, number: int, event: Event, text: str) -> dict[str, Any] | None:
        """A piece of a stream; None where there is nothing to say."""
        if isinstance(event, PromptRead):
            before = self._prompt_logprobs(number, event)
            return self._piece(number, {"text": self._echoed[number], "logprobs": before}, None)
        tokens = [event] if isinstance(event, Token) and self._wish.num_top is not None else []
        offset, choice = 0, self._choices[number]
        if tokens and not self._is_chat:
            offset, choice.offset = choice.offset, choice.offset + len(self._decode(tokens[0].id))
        reason = choice.reason if isinstance(event, Done) else None
        if not (text or tokens or reason):
            return None
        content: dict[str, Any] = {"delta": {"content": text} if text else {}} if self._is_chat else {"text": text}
        if reason == "tool_calls":
            content["delta"]["tool_calls"] = [{"index": place, **call} for place, call in enumerate(choice.calls)]
        return self._piece(number, content | {"logprobs": self._logprobs(tokens, offset) if tokens else None}, reason)

    def closing(self) -> dict[str, Any]:
        """The piece with the number of tokens."""
        return self._head(".chunk") | {"choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens that were read and written."""
        read = sum(map(len, self._answers.prompts))
        written = sum(len(choice.tokens) for choice in self._choices)
        found: dict[str, Any] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return found | {"prompt_tokens_details": {"cached_tokens": self._answers.cached_tokens}}

    def _head(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self._is_chat else "text_completion"
        weights = self._answers.weights
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": weights.name,
            "system_fingerprint": f"v{weights.version}-{weights.fingerprint[:16]}",
        }

    def _piece(self, number: int, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        usage = {"usage": self.usage()} if self._tells_usage else {}
        return self._head(".chunk") | {"choices": [{"index": number, **content, "finish_reason": reason}]} | usage

    def _logprobs(self, tokens: Sequence[Token], offset: int = 0) -> dict[str, Any] | None:
        if self._wish.num_top is None:
            return None
        if self._is_chat:
            return {
                "content": [
                    self._named(token.id, token.logprob) | {"top_logprobs": [self._named(*each) for each in token.top]}
                    for token in tokens
                ]
            }
        texts = [self._decode(token.id) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._by_text(token.top) for token in tokens],
            "text_offset": list(accumulate(map(len, texts), initial=offset))[:-1],
        }

    def _prompt_logprobs(self, number: int, read: PromptRead | None) -> dict[str, Any] | None:
        """Of an answer's prompt, if they were asked for; the answer's own stand behind it from then on."""
        if read is None:
            return None
        texts = [self._decode(each) for each in self._answers.prompts[number // self._answers.num_answers]]
        ends = list(accumulate(map(len, texts)))
        self._choices[number].offset = ends[-1]
        return {
            "tokens": texts,
            "token_logprobs": [None, *read.logprobs],  # nothing stands before the first
            "top_logprobs": [None, *map(self._by_text, read.tops)],
            "text_offset": [0, *ends[:-1]],
        }

    def _by_text(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        """The likeliest tokens by their text; of those that look alike the likeliest."""
        return {self._decode(each): value for each, value in reversed(top)}

    def _named(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._decode(token_id)
        # of a part of a character the tokenizer does not tell the bytes
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
