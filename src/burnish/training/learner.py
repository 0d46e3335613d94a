"""The learner: scores a batch, accumulates the gradient of a loss, takes the optimizer's step."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from burnish.data.packing import split_batch
from burnish.losses.policy_gradient import mismatch_metrics
from burnish.models.attention import SegmentAttention
from burnish.models.logprobs import scored_logprobs
from burnish.models.policy import Policy
from burnish.records import LossOutput, Metric, TokenBatch
from burnish.training.optimizer import MasterAdamW


class Loss(Protocol):
    """From the log-probabilities of the scored tokens to a sum; `normalizer` names the count it is divided by."""

    @property
    def normalizer(self) -> Literal["scored_tokens", "sequences", "groups"]:
        """A field of GlobalCounts."""
        ...

    def __call__(self, logprobs_S: Tensor, batch: TokenBatch) -> LossOutput:
        """The sum over the scored tokens of a micro-batch."""
        ...


class Learner:
    """Trains a policy. `temperature` divides the logits, so that it scores the distribution that was sampled."""

    def __init__(
        self, policy: Policy, optimizer: MasterAdamW, *, micro_batch_tokens: int, temperature: float = 1.0
    ) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self.micro_batch_tokens = micro_batch_tokens
        self.temperature = temperature
        self._accumulated_loss = torch.zeros(())

    def forward_backward(self, batch: TokenBatch, loss: Loss) -> list[dict[str, Metric]]:
        """Add the gradient of loss / global count to what is accumulated. Metrics of each micro-batch."""
        normalizer = getattr(batch.counts, loss.normalizer)
        metrics = []
        for micro in split_batch(batch, self.micro_batch_tokens):
            logprobs_S, entropy_S = self._score(micro)
            output = loss(logprobs_S, micro)
            share = output.total / normalizer
            share.backward()
            self._accumulated_loss = self._accumulated_loss + share.detach()
            # The sampler's weights are those before the first of several optimizer steps.
            same_weights_S = logprobs_S if micro.old_logprobs_S is None else micro.old_logprobs_S
            metrics.append(
                {
                    "entropy": Metric(entropy_S.sum(), "mean", len(entropy_S)),
                    **mismatch_metrics(same_weights_S, micro.sampler_logprobs_S),
                    **output.metrics,
                }
            )
        return metrics

    def optim_step(self, learning_rate: float) -> dict[str, Metric]:
        """Apply the accumulated gradient. Metrics of this optimizer step, its loss among them."""
        norm = self.optimizer.step(learning_rate)
        loss, self._accumulated_loss = self._accumulated_loss, torch.zeros(())
        return {
            "loss": Metric(loss, "mean"),
            "grad_norm": Metric(norm, "mean"),
            "learning_rate": Metric(learning_rate, "mean"),
        }

    @torch.no_grad()
    def logprobs(self, batch: TokenBatch) -> Tensor:
        """Log-probability [S] of every scored token under the current weights."""
        parts = [self._score(micro)[0] for micro in split_batch(batch, self.micro_batch_tokens)]
        return torch.cat(parts)

    def _score(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return score(self.policy, batch, self.temperature)


def score(policy: Policy, batch: TokenBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """(log-probabilities [S], entropies [S]) of a batch's scored tokens."""
    plan = SegmentAttention(batch.segments)
    hidden_TH = policy.hidden_states(batch.token_ids_T, batch.position_ids_T, plan)
    return scored_logprobs(hidden_TH[batch.predictor_S], policy.head_VH, batch.target_ids_S, temperature)
