"""The answers to a request while they are made, and each of them when it is over."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from burnish.serving.asks import Done, Event, Failed, PromptRead, Timing, Token, Weights
from burnish.serving.refusals import Kind, RefusedError

Ending = Literal["stop", "length", "cancelled", "late", "failed"]

_GRACE_SECONDS = 5.0  # after which an answer that the engine should have ended by itself is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request: of whom, when (since 1970), the messages if it is a chat, and the settings that it named."""

    owner: str
    user: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    traceparent: str | None = None
    """The span that the request belongs to, as W3C's header names it."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)

    @property
    def unit(self) -> str:
        """Who is given an arm: a user that the request names stays with one, else each request is for itself."""
        return f"{self.owner} {self.user}" if self.user else self.id

    @property
    def unit_hash(self) -> str:
        """The same without the name."""
        return hashlib.sha256(self.unit.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(slots=True, kw_only=True)
class Answered:
    """An answer, over when `ending` is set. `gaps` are the seconds between its tokens, as they were told, and
    `first_seconds` those from the request to the first; `number` counts the answers to a request. `logprobs` are those
    of the tokens of which they are known.
    """

    request: Asked
    number: int
    weights: Weights
    prompt_ids: tuple[int, ...]
    max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    text: str = ""
    ending: Ending | None = None
    cached_tokens: int = 0
    timing: Timing | None = None
    seconds: float = 0.0
    first_seconds: float | None = None
    _last: float = 0.0

    def take(self, event: Event) -> None:
        """Add what happened."""
        now = time.monotonic()
        self.seconds = now - self.request.began
        if isinstance(event, Failed):
            self.ending = "late" if isinstance(event.error, TimeoutError) else "failed"
            return
        if isinstance(event, PromptRead):
            return
        self.text += event.text
        if isinstance(event, Token):
            if self.token_ids:
                self.gaps.append(now - self._last)
            else:
                self.first_seconds = self.seconds
            self._last = now
            self.token_ids.append(event.id)
            if not math.isnan(event.logprob):
                self.logprobs.append(event.logprob)
        else:
            self.ending, self.cached_tokens, self.timing = event.reason, event.cached_tokens, event.timing


class Answers:
    """The answers to a request, in the making: several to each prompt, numbered one after the other."""

    def __init__(
        self,
        weights: Weights,
        prompts: Sequence[tuple[int, ...]],
        num_answers: int,
        *,
        request: Asked,
        max_tokens: Sequence[int],
        deadline: float,
        on_answered: Callable[[Answered], None] = lambda answered: None,
    ) -> None:
        """`max_tokens` is that of each prompt; `deadline` is by time.monotonic(); `on_answered` hears of every answer
        that is over, however it ended.
        """
        self.id = request.id
        self.weights, self.prompts, self.num_answers = weights, prompts, num_answers
        self.cancel: Callable[[], None] = lambda: None
        self.queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._deadline = deadline + _GRACE_SECONDS
        self._on_answered = on_answered
        self.all = [
            Answered(
                request=request,
                number=place * num_answers + each,
                weights=weights,
                prompt_ids=prompt,
                max_tokens=max_tokens[place],
            )
            for place, prompt in enumerate(prompts)
            for each in range(num_answers)
        ]

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were known before, each prompt counted once."""
        return sum(each.cached_tokens for each in self.all[:: self.num_answers])

    async def events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """(number of the answer, what happened to it) until all are over. Whoever stops listening cancels the rest.

        Raises:
            RefusedError: an answer cannot be finished.
        """
        unfinished: Ending = "cancelled"
        try:
            while not self.are_over:
                try:
                    async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                        number, event = await self.queue.get()
                except TimeoutError as error:
                    unfinished = "late"
                    raise RefusedError("too_slow", "the answer was not ready in time") from error
                self._take(number, event)
                if isinstance(event, Failed):
                    kind: Kind = "too_slow" if isinstance(event.error, TimeoutError) else "failed"
                    raise RefusedError(kind, str(event.error)) from event.error
                yield number, event
        finally:
            self.close(unfinished)

    def close(self, ending: Ending = "cancelled") -> None:
        """End what is not over; nobody listens any more."""
        self.cancel()
        for each in self.all:
            if each.ending is None:
                each.ending, each.seconds = ending, time.monotonic() - each.request.began
                self._on_answered(each)

    @property
    def are_over(self) -> bool:
        """Whether all have ended."""
        return all(each.ending is not None for each in self.all)

    async def finish(self) -> None:
        """Wait until all are over, whoever listens.

        Raises:
            RefusedError: an answer cannot be finished.
        """
        async for _ in self.events():
            pass

    def _take(self, number: int, event: Event) -> None:
        answered = self.all[number]
        answered.take(event)
        if isinstance(event, Done | Failed):
            self._on_answered(answered)
