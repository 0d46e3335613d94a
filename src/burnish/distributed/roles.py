"""The verbs an algorithm speaks. It knows neither ranks nor devices; a backend does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from burnish.records import Completion, GenerationRequest, Metric, Scored, TokenBatch

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from torch import Tensor

    from burnish.losses.loss import Loss
    from burnish.models.divergence import Divergence
    from burnish.rollout.play import Sample
    from burnish.training.checkpoint import TrainState

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticNeeds:
    """A value model of its own: where it starts (None: where the policy does), and its optimizer's peak rate."""

    path: str | None
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleNeeds:
    """What an algorithm asks of the roles.

    `kind` is the head of the trained model. With `reference` the weights it starts from are kept. `temperature`
    divides the learner's logits. `max_rows` completions are decoded at once; 0 where nothing is sampled. `teachers` are
    models to learn from, and `divergence` is what a batch that names one is scored with. A shared `critic` is a
    value head on the trained model.
    """

    kind: Literal["language", "value"] = "language"
    reference: bool = False
    temperature: float = 1.0
    max_rows: int = 0
    teachers: tuple[str, ...] = ()
    divergence: Divergence | None = None
    critic: CriticNeeds | Literal["shared"] | None = None

    @property
    def other_models(self) -> tuple[str, ...]:
        """The paths of what is loaded beside the trained model."""
        critic = self.critic.path if isinstance(self.critic, CriticNeeds) else None
        return self.teachers if critic is None else (*self.teachers, critic)


class Trainable(Protocol):
    """Weights that are scored with and trained."""

    def score(self, batch: TokenBatch, *, with_collisions: bool = False) -> Scored:
        """Log-probabilities, entropies and values [S] under the current weights, without gradient."""
        ...

    def forward_backward(self, batch: TokenBatch, loss: Loss) -> list[dict[str, Metric]]:
        """Accumulate the gradient of a loss."""
        ...

    def optim_step(self, learning_rate: float) -> dict[str, Metric]:
        """Apply the accumulated gradient."""
        ...


class Roles(Trainable, Protocol):
    """Sampler and learner of one run."""

    def sample(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """Completions from the weights published last."""
        ...

    def aside(self, job: Callable[[Sample], T]) -> Future[T]:
        """Let a job sample, from the weights published last whatever is published while it does; beside what follows
        where there are processes for it, otherwise before this returns. One job is done after the other.
        """
        ...

    @property
    def critic(self) -> Trainable:
        """A value model of its own, where one was asked for."""
        ...

    def reference_logprobs(self, batch: TokenBatch) -> Tensor:
        """Log-probabilities [S] under the weights that the run started from."""
        ...

    def teacher_logprobs(self, batch: TokenBatch, teacher: int) -> Tensor:
        """Log-probabilities [S] under a teacher."""
        ...

    def publish_weights(self, version: int) -> None:
        """Let the sampler use the learner's weights from now on, under this version."""
        ...


class Backend(Roles, Protocol):
    """Roles with what a run does around its algorithm."""

    def save(self, folder: Path, state: TrainState, *, keep_last: int) -> Path:
        """Write a checkpoint; see `save_checkpoint`."""
        ...

    def load(self, checkpoint: Path) -> TrainState:
        """Go on from a checkpoint; see `load_checkpoint`."""
        ...

    notice: Callable[[str], None]
    """Called with what a person should know at once; whoever runs the roles sets it."""

    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint."""
        ...

    def observed(self) -> dict[str, float]:
        """What the roles have to tell of the time since they were asked last, for the metrics of a step."""
        ...

    def restart(self) -> None:
        """Start anew what is lost, with the weights that the run began with. Raises a MachineError if it cannot."""
        ...
