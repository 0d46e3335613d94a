"""What the engine needs of whoever makes the tokens, and what it hands over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from burnish.serving.asks import Ask, PromptRead, Weights
from burnish.serving.streaming import TextStream


@dataclass(slots=True, eq=False)
class Row:
    """An answer in the making. The engine counts its tokens; `cached_tokens` of its prompt were known before."""

    ask: Ask
    served: Served
    text: TextStream
    token_ids: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    cached_tokens: int = 0
    is_waiting: bool = True
    is_over: bool = False
    asked_at: float = field(default_factory=time.monotonic)
    begun_at: float = 0.0
    first_at: float = 0.0


class Drawn(NamedTuple):
    """A token of an answer, with its log-probability under the model (NaN where that is not known), and the likeliest
    ones.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


Made = Drawn | PromptRead | Exception
"""What came of an answer; an exception ends it."""


class Sampler(Protocol):
    """Makes the tokens of one set of weights. It is called from the engine's thread alone."""

    mismatch: float
    """Mean difference, in nats, between the log-probabilities that it tells and the learner's."""

    @property
    def is_ready(self) -> bool:
        """Whether `step` has something to do."""
        ...

    @property
    def works_elsewhere(self) -> bool:
        """Whether another process makes the tokens and lives: then it may be at work, however long `step` has nothing
        to do.
        """
        ...

    def check(self, ask: Ask) -> None:
        """Look at an ask before it is taken; from any thread.

        Raises:
            RefusedError: it cannot be answered as it is asked.
        """
        ...

    def check_alive(self) -> None:
        """Find out whether it can still make something; from any thread.

        Raises:
            EngineGoneError: never again.
        """
        ...

    def begin(self, row: Row) -> None:
        """Begin an answer."""
        ...

    def step(self) -> Sequence[tuple[Row, Made]]:
        """What was made of answers that are under way, in order; never waits for another process. An error ends all of
        them.
        """
        ...

    def end(self, row: Row) -> None:
        """Make no more of an answer, whether it was begun or not."""
        ...

    def close(self) -> None:
        """Let go of everything, without waiting."""
        ...


MakeSampler = Callable[[Weights, Callable[[], None]], Sampler]
"""Makes one for weights; it calls the other argument, from any thread, when it has become ready.

Raises:
    BurnishError: the weights cannot be served, or would be otherwise than they were trained.
"""


class Served:
    """Weights that serve, with whoever makes their tokens."""

    def __init__(self, weights: Weights, sampler: Sampler) -> None:
        self.weights, self.sampler = weights, sampler
        self.rows: list[Row] = []
        self.num_bound = 0  # answers that wait or are in the making

    def decode(self, token_ids: Iterable[int]) -> str:
        """Their text."""
        return str(self.weights.policy.tokenizer.decode(list(token_ids), skip_special_tokens=True))
