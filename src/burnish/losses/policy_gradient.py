"""The policy losses of the GRPO family, by choice of ratio, surrogate and aggregation.

With the ratio r = exp(log p - log p_old) of a token, its advantage A, and sg() for what carries no gradient:

    ratio            token           r                                                    PPO, Schulman et al. 2017
                     sequence        exp(mean over the sequence of log r)                 GSPO, Zheng et al. 2025, eq. 7
                     sequence_token  sg(that mean's exp) x r / sg(r)                      GSPO-token, ibid., eq. 13
                     none            r / sg(r), so the gradient is A grad log p           REINFORCE
    surrogate        clip            min(r A, clip(r, 1 - low, 1 + high) A)               DAPO, Yu et al. 2025, eq. 8
                                     with dual_clip c: for A < 0 not below c A            Ye et al. 2020, eq. 5
                     cispo           sg(min(r, 1 + high)) A log p                         MiniMax-M1, 2025, eq. 4
                     sapo            (4 / t) s(t (r - 1)) A, t by the sign of A           Gao et al. 2025, eq. 6
                     gmpo            A exp(mean of log r clipped to [-low, high])         Zhao et al. 2025, eq. 4
                     dppo            r A, but 0 where a step leads away from the old      Qi et al. 2026, eq. 12, binary
                                     policy and |p - p_old| > trust_region already        total variation
    aggregation      token           mean over all tokens of the step                     DAPO
                     sequence        mean over sequences of their means                   GRPO, Shao et al. 2024, eq. 3
                     constant        sums over max_tokens, mean over sequences            Dr. GRPO, Liu et al. 2025
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from burnish.losses.kl import KLEstimator, kl_estimate
from burnish.losses.loss import need
from burnish.records import LossOutput, Metric, Scored, TokenBatch

Ratio = Literal["token", "sequence", "sequence_token", "none"]
Surrogate = Literal["clip", "cispo", "sapo", "gmpo", "dppo"]
Aggregation = Literal["token", "sequence", "constant"]
ImportanceLevel = Literal["token", "sequence", "geometric"]
ImportanceMode = Literal["truncate", "mask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceCorrection:
    """Weights for a sampler whose probabilities differ from the learner's: w = p_old / p_sampler.

    Of a token, of a whole sequence (the product of its tokens'), or the geometric mean of a sequence. "truncate" caps
    w at `high` (Yao et al. 2025); "mask" gives weight 0 outside [low, high] (IcePop, Zhao et al. 2025; sequence and
    geometric masks, Liu et al. 2025).
    """

    level: ImportanceLevel = "token"
    mode: ImportanceMode = "truncate"
    low: float = 0.0
    high: float = 2.0

    def __call__(self, old_logprobs_S: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Metric]]:
        """(weights [S], metrics)."""
        log_weights_S = old_logprobs_S - need(batch.sampler_logprobs_S, "sampler_logprobs_S")
        if self.level != "token":
            sums_B = log_weights_S.new_zeros(len(batch.group_B))
            sums_B = sums_B.index_add(0, batch.sequence_S, log_weights_S)
            if self.level == "geometric":
                sums_B = sums_B / lengths_of(batch)
            log_weights_S = sums_B[batch.sequence_S]
        weights_S = log_weights_S.clamp(max=20).exp()
        is_outside_S = (weights_S > self.high) | (weights_S < self.low)
        metrics = {
            "importance_outside": Metric(is_outside_S.float().sum(), "mean", len(weights_S)),
            "importance_mean": Metric(weights_S.sum(), "mean", len(weights_S)),
        }
        if self.mode == "mask":
            return weights_S.masked_fill(is_outside_S, 0.0), metrics
        return weights_S.clamp(max=self.high), metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """-(surrogate of ratio and advantage) + kl_coefficient KL - entropy_coefficient entropy, per scored token.

    The table above says what the names mean. `importance` multiplies the surrogate's part.
    """

    needs_whole_groups: ClassVar[bool] = False
    ratio: Ratio = "token"
    surrogate: Surrogate = "clip"
    aggregation: Aggregation = "token"
    max_tokens: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    soft_positive: float = 1.0
    soft_negative: float = 1.05
    trust_region: float = 0.15
    kl_coefficient: float = 0.0
    kl_estimator: KLEstimator = "k3"
    entropy_coefficient: float = 0.0
    importance: ImportanceCorrection | None = None

    @property
    def normalizer(self) -> Literal["scored_tokens", "sequences"]:
        """The global count that the learner divides the sum by."""
        return "scored_tokens" if self.aggregation == "token" else "sequences"

    @property
    def stops_gradient(self) -> bool:
        """Whether the gradient is on purpose not the derivative of the value."""
        return self.surrogate == "cispo" or self.ratio in ("none", "sequence_token")

    @property
    def unused_settings(self) -> frozenset[str]:
        """Settings that these choices do not read."""
        has_ratio = self.ratio != "none"
        return frozenset(name for name, users in USED_BY.items() if not (has_ratio and self.surrogate in users))

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """The sum over the scored tokens of `batch`."""
        logprobs_S = scored.logprobs_S
        current_S = logprobs_S.detach()
        old_S = current_S if batch.old_logprobs_S is None else batch.old_logprobs_S
        advantages_S = need(batch.advantages_S, "advantages_S")
        ratio_S = self._ratio(logprobs_S, old_S, batch).exp()
        gain_S, is_clipped_S = self._surrogate(ratio_S, logprobs_S, old_S, advantages_S, batch)
        loss_S = -gain_S
        metrics = {
            "clip_fraction": Metric(is_clipped_S.float().sum(), "mean", len(loss_S)),
            "ratio_max": Metric(ratio_S.detach().max(), "max"),
        }
        if self.importance is not None:
            importance_S, found = self.importance(old_S, batch)
            loss_S, metrics = loss_S * importance_S, metrics | found
        if batch.reference_logprobs_S is not None:
            kl_S = kl_estimate(logprobs_S, batch.reference_logprobs_S, self.kl_estimator)
            loss_S = loss_S + self.kl_coefficient * kl_S
            unbiased_S = kl_estimate(current_S, batch.reference_logprobs_S, "k3")
            metrics["kl"] = Metric(unbiased_S.sum(), "mean", len(loss_S))
        if self.entropy_coefficient:
            loss_S = loss_S - self.entropy_coefficient * scored.entropy_S
        weights_S = batch.weights_S * self._token_weights(batch)
        return LossOutput(total=(loss_S * weights_S).sum(), metrics=metrics)

    def _ratio(self, logprobs_S: Tensor, old_S: Tensor, batch: TokenBatch) -> Tensor:
        """Log of the ratio of each token."""
        log_ratio_S = logprobs_S - old_S
        if self.ratio == "token":
            return log_ratio_S
        if self.ratio == "none":
            return logprobs_S - logprobs_S.detach()
        mean_S = sequence_means(log_ratio_S, batch)[batch.sequence_S]
        return mean_S if self.ratio == "sequence" else mean_S.detach() + logprobs_S - logprobs_S.detach()

    def _surrogate(
        self, ratio_S: Tensor, logprobs_S: Tensor, old_S: Tensor, advantages_S: Tensor, batch: TokenBatch
    ) -> tuple[Tensor, Tensor]:
        """(what is to grow, whether it was held back) of each token."""
        if self.surrogate == "cispo":
            capped_S = ratio_S.detach().clamp(max=1 + self.clip_high)
            return capped_S * advantages_S * logprobs_S, ratio_S.detach() > 1 + self.clip_high
        if self.surrogate == "sapo":
            temperature_S = torch.where(advantages_S > 0, self.soft_positive, self.soft_negative)
            gate_S = (temperature_S * (ratio_S - 1)).sigmoid() * 4 / temperature_S
            return gate_S * advantages_S, torch.zeros_like(advantages_S)
        if self.surrogate == "gmpo":
            log_ratio_S = logprobs_S - old_S
            clipped_S = log_ratio_S.clamp(-self.clip_low, self.clip_high)
            worse_S = torch.where(advantages_S > 0, log_ratio_S.minimum(clipped_S), log_ratio_S.maximum(clipped_S))
            mean_S = sequence_means(worse_S, batch)[batch.sequence_S]
            return mean_S.exp() * advantages_S, worse_S.detach() != log_ratio_S.detach()
        if self.surrogate == "dppo":
            moved_S = logprobs_S.detach().exp() - old_S.exp()
            leads_away_S = moved_S * advantages_S > 0
            is_held_S = leads_away_S & (moved_S.abs() > self.trust_region)
            return torch.where(is_held_S, 0.0, ratio_S * advantages_S), is_held_S
        gain_S = ratio_S * advantages_S
        clipped_S = ratio_S.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages_S
        held_S = torch.minimum(gain_S, clipped_S)
        if self.dual_clip is not None:
            held_S = torch.where(advantages_S < 0, held_S.maximum(self.dual_clip * advantages_S), held_S)
        return held_S, held_S.detach() != gain_S.detach()

    def _token_weights(self, batch: TokenBatch) -> Tensor | float:
        if self.aggregation == "token":
            return 1.0
        if self.aggregation == "constant":
            return 1.0 / self.max_tokens
        # A sequence is never split over micro-batches, so its length here is its length.
        return 1.0 / lengths_of(batch)[batch.sequence_S]


USED_BY = {
    "clip_low": frozenset({"clip", "gmpo"}),
    "clip_high": frozenset({"clip", "cispo", "gmpo"}),
    "dual_clip": frozenset({"clip"}),
    "soft_positive": frozenset({"sapo"}),
    "soft_negative": frozenset({"sapo"}),
    "trust_region": frozenset({"dppo"}),
}
"""The surrogates that each setting has an effect on."""


def lengths_of(batch: TokenBatch) -> Tensor:
    """Scored tokens of each sequence, [B]."""
    return torch.bincount(batch.sequence_S, minlength=len(batch.group_B))


def sequence_means(values_S: Tensor, batch: TokenBatch) -> Tensor:
    """Mean over the scored tokens of each sequence, [B]."""
    sums_B = values_S.new_zeros(len(batch.group_B)).index_add(0, batch.sequence_S, values_S)
    return sums_B / lengths_of(batch)


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
