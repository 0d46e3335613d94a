"""The clipped policy loss of the GRPO family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.losses.kl import KLEstimator, kl_estimate
from burnish.losses.loss import need
from burnish.records import LossOutput, Metric, Scored, TokenBatch

Aggregation = Literal["token", "sequence", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedPolicyLoss:
    """-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) + kl_coefficient * KL, per scored token.

    PPO (Schulman et al. 2017, eq. 7) with DAPO's two clips (Yu et al. 2025, eq. 8); ratio = exp(logprob - old).
    `aggregation` weighs the tokens before the learner divides by the global count `normalizer`:

    - "token": every token equally, over all scored tokens of the step (DAPO);
    - "sequence": the mean of each sequence's mean (GRPO, Shao et al. 2024, eq. 3);
    - "constant": each sequence's sum over `max_tokens`, so length earns nothing (Dr. GRPO, Liu et al. 2025).

    `max_importance_weight` multiplies each token by min(old / sampler, max): the truncated importance correction for
    a sampler whose probabilities differ from the learner's (Yao et al. 2025). None leaves it out.
    """

    clip_low: float
    clip_high: float
    aggregation: Aggregation
    max_tokens: int
    kl_coefficient: float
    kl_estimator: KLEstimator
    max_importance_weight: float | None

    @property
    def normalizer(self) -> Literal["scored_tokens", "sequences"]:
        """The global count that the learner divides the sum by."""
        return "scored_tokens" if self.aggregation == "token" else "sequences"

    @property
    def needs_whole_groups(self) -> bool:
        """The comparison inside a group is already in its advantages."""
        return False

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """The sum over the scored tokens of `batch`."""
        logprobs_S = scored.logprobs_S
        current_S = logprobs_S.detach()
        old_S = current_S if batch.old_logprobs_S is None else batch.old_logprobs_S
        ratio_S = (logprobs_S - old_S).exp()
        clipped_S = ratio_S.clamp(1 - self.clip_low, 1 + self.clip_high)
        advantages_S = need(batch.advantages_S, "advantages_S")
        surrogate_S = ratio_S * advantages_S
        clipped_surrogate_S = clipped_S * advantages_S
        loss_S = -torch.minimum(surrogate_S, clipped_surrogate_S)
        weights_S = batch.weights_S * self._token_weights(batch)
        is_clipped_S = (clipped_surrogate_S < surrogate_S).float()
        metrics = {
            "clip_fraction": Metric(is_clipped_S.sum(), "mean", len(loss_S)),
            "ratio_max": Metric(ratio_S.detach().max(), "max"),
        }
        if self.max_importance_weight is not None:
            importance_S = (old_S - need(batch.sampler_logprobs_S, "sampler_logprobs_S")).exp()
            loss_S = loss_S * importance_S.clamp(max=self.max_importance_weight)
            is_truncated_S = (importance_S > self.max_importance_weight).float()
            metrics["importance_truncated"] = Metric(is_truncated_S.sum(), "mean", len(loss_S))
        if batch.reference_logprobs_S is not None:
            kl_S = kl_estimate(logprobs_S, batch.reference_logprobs_S, self.kl_estimator)
            loss_S = loss_S + self.kl_coefficient * kl_S
            unbiased_S = kl_estimate(current_S, batch.reference_logprobs_S, "k3")
            metrics["kl"] = Metric(unbiased_S.sum(), "mean", len(loss_S))
        return LossOutput(total=(loss_S * weights_S).sum(), metrics=metrics)

    def _token_weights(self, batch: TokenBatch) -> Tensor | float:
        if self.aggregation == "token":
            return 1.0
        if self.aggregation == "constant":
            return 1.0 / self.max_tokens
        # A sequence is never split over micro-batches, so its length here is its length.
        lengths_B = torch.bincount(batch.sequence_S, minlength=len(batch.group_B))
        return 1.0 / lengths_B[batch.sequence_S]


def mismatch_metrics(learner_logprobs_S: Tensor, sampler_logprobs_S: Tensor) -> dict[str, Metric]:
    """How far the learner's log-probabilities lie from the sampler's, for the same tokens and weights.

    `mismatch_kl` estimates KL(sampler || learner) by k3, which no sample makes negative.
    """
    difference_S = (learner_logprobs_S - sampler_logprobs_S).detach()
    kl_S = difference_S.expm1() - difference_S
    count = len(difference_S)
    return {
        "mismatch_mean": Metric(difference_S.abs().sum(), "mean", count),
        "mismatch_max": Metric(difference_S.abs().max(), "max"),
        "mismatch_kl": Metric(kl_S.sum(), "mean", count),
    }
