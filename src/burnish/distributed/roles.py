"""The verbs an algorithm speaks. It knows neither ranks nor devices; a backend does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from burnish.records import Completion, GenerationRequest, Metric, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.training.learner import Loss


class Roles(Protocol):
    """Sampler and learner of one run."""

    def sample(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """Completions from the weights published last."""
        ...

    def logprobs(self, batch: TokenBatch) -> Tensor:
        """Log-probabilities [S] under the learner's weights, without gradient."""
        ...

    def reference_logprobs(self, batch: TokenBatch) -> Tensor:
        """Log-probabilities [S] under the weights that the run started from."""
        ...

    def forward_backward(self, batch: TokenBatch, loss: Loss) -> list[dict[str, Metric]]:
        """Accumulate the gradient of a loss."""
        ...

    def optim_step(self, learning_rate: float) -> dict[str, Metric]:
        """Apply the accumulated gradient."""
        ...

    def publish_weights(self, version: int) -> None:
        """Let the sampler use the learner's weights from now on, under this version."""
        ...
