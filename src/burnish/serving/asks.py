"""What is asked of the engine, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from burnish.errors import MachineError
from burnish.models.policy import Policy
from burnish.records import SamplingSettings

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length"]
Arm = Literal["stable", "canary", "shadow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model under the name that it is asked for by. `version` counts the weights of a name, from 1.

    The stable ones answer; canary and shadow are tried beside them (see deployment.py).
    """

    name: str
    version: int
    fingerprint: str
    policy: Policy
    arm: Arm = "stable"


@dataclass(frozen=True, slots=True)
class Token:
    """A sampled token: the text that it makes certain, its log-probability under the model (NaN where that is not
    known), and the likeliest ones.
    """

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The prompt was read: of each of its tokens but the first, its log-probability under the model, after those before
    it, and the likeliest ones. Comes before the first token.
    """

    logprobs: tuple[float, ...]
    tops: tuple[tuple[tuple[int, float], ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of an answer: until its turn came, from there to its first token, and from there to its last."""

    queue: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The answer is over. `text` is what was still held back; `cached_tokens` of the prompt were known before."""

    text: str
    reason: FinishReason
    cached_tokens: int
    timing: Timing


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no answer."""

    error: Exception


Event = PromptRead | Token | Done | Failed


class Constraint(Protocol):
    """The form that an answer must have."""

    schema: str
    """It as a JSON schema."""

    def forbidden(self) -> Tensor:
        """Which tokens [V] may not come next."""
        ...

    def take(self, token_id: int) -> None:
        """The next token. Raises a ValueError where it may not come."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One answer that is asked for. `on_event` is called from the engine's thread and must return at once.

    The penalties are of OpenAI's kind: on what the answer itself said already. `num_top` likeliest tokens come with
    each token; None says that nobody asked for log-probabilities either. With `tells_prompt` the prompt's own
    log-probabilities come first, and all of it is read. `max_tokens` may be 0, which ends when the prompt is read.
    Whoever is the same `owner` shares a turn with the others. `deadline` is by time.monotonic().
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingSettings
    seed: int
    on_event: Callable[[Event], None]
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    num_top: int | None = None
    constraint: Constraint | None = None
    tells_prompt: bool = False
    owner: str = ""
    deadline: float = float("inf")

    @property
    def num_tokens(self) -> int:
        """The most that the answer and its prompt can have."""
        return len(self.prompt_ids) + self.sampling.max_tokens

    @property
    def shapes_logits(self) -> bool:
        """Whether the model's own distribution is changed before a token is drawn."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias or self.constraint)


class QueueFullError(MachineError):
    """So many answers wait, or are one owner's, that another one would wait too long."""


class EngineGoneError(MachineError):
    """The engine has ended, or is about to."""
