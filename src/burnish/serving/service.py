"""What every door of the server does with a request: check it, turn it into asks, hand on what comes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from burnish.config.serving import LimitsConfig
from burnish.data.chat import Chat
from burnish.environments.tools import described_tools
from burnish.errors import DataError, MachineError
from burnish.records import SamplingSettings
from burnish.reproducibility.seeds import seed_for
from burnish.serving.answers import Answered, Answers, Asked
from burnish.serving.asks import Arm, Ask, Event, Weights
from burnish.serving.constraints import Constraint
from burnish.serving.engine import Engine
from burnish.serving.refusals import RefusedError

ResultT = TypeVar("ResultT")

_LOG = logging.getLogger(__name__)
_MOST_BIAS = 100.0  # as OpenAI's
_COLDEST = 1e-4  # a lower temperature is greedy: logits over it are no numbers any more


def any_seed() -> int:
    """A seed for a request that names none."""
    return int.from_bytes(os.urandom(8), "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How answers are to be made. `max_tokens` None is what the context leaves; `num_top` None tells no
    log-probabilities. Without a seed it gets one, so that what is asked again is drawn alike. `echoes` repeats the
    prompt before the answer, which alone may have no token.
    """

    num_answers: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stops: tuple[str, ...] = ()
    seed: int = field(default_factory=any_seed)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    num_top: int | None = None
    ignores_end: bool = False
    schema: str | None = None
    """JSON schema that answers must have."""
    echoes: bool = False

    @property
    def tells_prompts(self) -> bool:
        """Whether the log-probabilities of prompts are asked for."""
        return self.echoes and self.num_top is not None


def prompt_of_messages(
    weights: Weights, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[int, ...]:
    """Token ids of a conversation up to where the assistant speaks. Special tokens in what a client sends are broken.
    Tools, and earlier calls of them, are put into words where the template does not know them.

    Raises:
        RefusedError: the template refuses it.
    """
    chat = Chat(tokenizer=weights.policy.tokenizer, stop_token_ids=weights.policy.stop_token_ids)

    def defused(value: Any) -> Any:
        if isinstance(value, str):
            return chat.defused(value)
        if isinstance(value, Mapping):
            return {defused(key): defused(each) for key, each in value.items()}
        return [defused(each) for each in value] if isinstance(value, list) else value

    said, offered = [defused(message) for message in messages], [defused(tool) for tool in tools]
    if "tools" not in str(chat.tokenizer.chat_template):
        said = [_in_words(message) for message in said]
        if offered:
            begin = 1 if said[0]["role"] == "system" else 0
            before = [f"{said[0]['content']}\n\n"] if begin else [""]
            said = [{"role": "system", "content": before[0] + described_tools(offered)}, *said[begin:]]
            offered = []
    try:
        return tuple(chat.prompt_ids(chat.render(said, asks=True, tools=offered)))
    except DataError as error:
        raise RefusedError("invalid", str(error), parameter="messages") from error


def _in_words(message: Mapping[str, Any]) -> dict[str, Any]:
    """A turn whose calls are text, as the model was told to write them."""
    calls = [json.dumps(each["function"], ensure_ascii=False) for each in message.get("tool_calls", ())]
    written = [message["content"], *(f"<tool_call>{call}</tool_call>" for call in calls)]
    return {"role": message["role"], "content": "\n".join(each for each in written if each)}


class Service:
    """Asks the engine. One for all doors; its methods are called from one event loop."""

    def __init__(self, engine: Engine, limits: LimitsConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine, self.limits = engine, limits
        self.is_draining = False
        self.on_answered: list[Callable[[Answered], None]] = []
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # of an owner: requests, and when that was
        self._tokenizing = ThreadPoolExecutor(1, "burnish-tokenizer")  # so that a long prompt stops nobody else

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self.engine.is_alive and bool(self.engine.models()) and not self.is_draining

    async def tokenize(self, call: Callable[[], ResultT]) -> ResultT:
        """What a call of a tokenizer gives. It runs beside the event loop, after those before it.

        Raises:
            RefusedError: they took too long.
        """
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await asyncio.get_running_loop().run_in_executor(self._tokenizing, call)
        except TimeoutError as error:
            raise RefusedError("too_slow", "the prompt was not read in time") from error

    def weights(self, model: str) -> Weights:
        """The weights that answer for a name now.

        Raises:
            RefusedError: there are none.
        """
        found = self.engine.models().get(model)
        if found is None:
            known = ", ".join(self.engine.models())
            raise RefusedError("not_found", f"the model {model!r} does not exist; there is {known}", parameter="model")
        return found

    @contextmanager
    def lease(self, model: str, arm: Arm = "stable") -> Iterator[Weights]:
        """The weights of a name, for as long as a request is prepared for them; the stable ones where an arm has none.

        Raises:
            RefusedError: there are none.
        """
        self.weights(model)
        with self.engine.lease(model, arm if model in self.engine.models(arm) else "stable") as weights:
            yield weights

    def count(self, owner: str) -> None:
        """Refuse whoever asks too often: a bucket that fills by so many requests a minute, and holds as many.

        Raises:
            RefusedError: it is empty.
        """
        limit = self.limits.requests_per_minute
        if limit is None:
            return
        now, size = self._clock(), max(1.0, limit)
        left, since = self._left.get(owner, (size, now))
        left = min(size, left + (now - since) * limit / 60)
        self._left[owner] = left, now
        if left < 1:
            raise RefusedError(
                "too_many", f"more than {limit:g} requests a minute", retry_seconds=(1 - left) * 60 / limit
            )
        self._left[owner] = left - 1, now

    def check_number(self, num_prompts: int, wish: Wish) -> None:
        """Refuse more answers than one request may have, before anything is made of its prompts.

        Raises:
            RefusedError: there are too many.
        """
        limit = min(self.limits.completions, self.limits.answers, self.engine.max_rows + self.engine.max_waiting)
        if num_prompts * wish.num_answers > limit:
            raise RefusedError("invalid", f"n: at most {limit} answers, of all prompts together", parameter="n")

    def check_form(self, wish: Wish, num_tools: int) -> None:
        """Refuse a schema that is too long, or too many tools, before anything is made of them.

        Raises:
            RefusedError: it is.
        """
        if num_tools > self.limits.tools:
            raise RefusedError("invalid", f"tools: at most {self.limits.tools}", parameter="tools")
        if len(wish.schema or "") > (limit := self.limits.schema_characters):
            raise RefusedError("invalid", f"response_format: at most {limit} characters", parameter="response_format")

    def ask(
        self,
        weights: Weights,
        prompts: Sequence[tuple[int, ...]],
        wish: Wish,
        request: Asked,
        constraint: Constraint | None = None,
    ) -> Answers:
        """Ask leased weights for answers to prompts.

        Raises:
            RefusedError: the request is not taken.
        """
        if self.is_draining:
            raise RefusedError("busy", "the server is about to stop", retry_seconds=5)
        self.check_number(len(prompts), wish)
        self._check(weights, prompts, wish)
        deadline = time.monotonic() + self.limits.seconds
        samplings = [self._sampling(weights, prompt, wish) for prompt in prompts]
        answers = Answers(
            weights,
            prompts,
            wish.num_answers,
            request=request,
            max_tokens=[each.max_tokens for each in samplings],
            deadline=deadline,
            on_answered=self._tell,
        )
        loop = asyncio.get_running_loop()

        def listener(number: int) -> Callable[[Event], None]:
            def listen(event: Event) -> None:
                loop.call_soon_threadsafe(answers.queue.put_nowait, (number, event))

            return listen

        asks = [
            Ask(
                prompt_ids=prompt,
                sampling=samplings[number // wish.num_answers],
                seed=seed_for(wish.seed, "served answer", number % wish.num_answers),
                on_event=listener(number),
                presence_penalty=wish.presence_penalty,
                frequency_penalty=wish.frequency_penalty,
                logit_bias=wish.logit_bias,
                num_top=wish.num_top,
                constraint=None if constraint is None else constraint.copy(),
                tells_prompt=wish.tells_prompts,
                owner=request.owner,
                deadline=deadline,
            )
            for number, prompt in enumerate(each for each in prompts for _ in range(wish.num_answers))
        ]
        try:
            answers.cancel = self.engine.submit(weights, asks, max_of_owner=self.limits.answers)
        except MachineError as error:
            raise RefusedError("busy", str(error), retry_seconds=5) from error
        return answers

    def _tell(self, answered: Answered) -> None:
        for listener in self.on_answered:
            try:
                listener(answered)
            except Exception:  # the answer is given, whatever those who only listen make of it
                _LOG.exception("somebody who listens to answers failed")

    def _sampling(self, weights: Weights, prompt: tuple[int, ...], wish: Wish) -> SamplingSettings:
        room = min(weights.policy.context_length - len(prompt), self.limits.tokens)
        return SamplingSettings(
            max_tokens=room if wish.max_tokens is None else wish.max_tokens,
            temperature=wish.temperature if wish.temperature >= _COLDEST else 0.0,
            top_k=wish.top_k,
            top_p=wish.top_p,
            min_p=wish.min_p,
            stop=wish.stops,
            stop_token_ids=() if wish.ignores_end else weights.policy.stop_token_ids,
        )

    def _check(self, weights: Weights, prompts: Sequence[tuple[int, ...]], wish: Wish) -> None:
        """Refuse what no answer can be made of, or what is more than the limits."""
        limits, context = self.limits, weights.policy.context_length
        vocabulary = weights.policy.head.weight_VH.shape[0]
        echoed = wish.num_answers * sum(map(len, prompts)) if wish.tells_prompts else 0
        counted: list[tuple[str, float, str]] = [
            ("max_tokens", (wish.max_tokens or 1) - limits.tokens, f"at most {limits.tokens}"),
            ("echo", echoed - limits.echo_tokens, f"at most {limits.echo_tokens} tokens of prompts with logprobs"),
            ("top_logprobs", (wish.num_top or 0) - limits.logprobs, f"at most {limits.logprobs}"),
            ("stop", len(wish.stops) - limits.stops, f"at most {limits.stops} strings"),
            (
                "stop",
                max(map(len, wish.stops), default=0) - limits.stop_characters,
                f"at most {limits.stop_characters} characters each",
            ),
            ("logit_bias", len(wish.logit_bias) - limits.biases, f"at most {limits.biases} entries"),
        ]
        for parameter, excess, allowed in counted:
            if excess > 0:
                raise RefusedError("invalid", f"{parameter}: {allowed}", parameter=parameter)
        if wish.max_tokens == 0 and not wish.echoes:
            raise RefusedError("invalid", "max_tokens: 0 needs echo: true", parameter="max_tokens")
        if "" in wish.stops:
            raise RefusedError("invalid", "stop: a stop string is empty", parameter="stop")
        if bad := next((token for token in wish.logit_bias if not 0 <= token < vocabulary), None):
            raise RefusedError("invalid", f"logit_bias: there is no token {bad}", parameter="logit_bias")
        if any(abs(each) > _MOST_BIAS for each in wish.logit_bias.values()):
            raise RefusedError("invalid", "logit_bias: values lie between -100 and 100", parameter="logit_bias")
        if not prompts:
            raise RefusedError("invalid", "there is no prompt", parameter="prompt")
        for prompt in prompts:
            if not prompt:
                raise RefusedError("invalid", "a prompt is empty", parameter="prompt")
            if any(not 0 <= token < vocabulary for token in prompt):
                raise RefusedError("invalid", "a prompt has a token that is not the model's", parameter="prompt")
            least = 1 if wish.max_tokens is None else wish.max_tokens
            if len(prompt) + least > context:
                raise RefusedError(
                    "invalid",
                    f"the prompt has {len(prompt)} tokens and the answer may have {least}: together more than the "
                    f"model's context of {context}",
                    parameter="max_tokens",
                )
