"""Learning a teacher's distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from burnish.losses.loss import Normalizer, need
from burnish.records import LossOutput, Metric, Scored, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationLoss:
    """The divergence from the teacher at every scored token (GKD, Agarwal et al. 2024, eq. 3), times `weight`."""

    normalizer: ClassVar[Normalizer] = "scored_tokens"
    needs_whole_groups: ClassVar[bool] = False
    weight: float = 1.0

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """See Loss."""
        divergence_S = need(scored.divergence_S, "divergence_S (a batch with a teacher)")
        metrics = {"divergence": Metric(divergence_S.detach().sum(), "mean", len(divergence_S))}
        return LossOutput(total=self.weight * (divergence_S * batch.weights_S).sum(), metrics=metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledReverseKL:
    """Policy gradient of KL(student || teacher) from tokens that the student sampled: the advantage of a token is
    log p_teacher - log p_student, as the student was when it sampled it (Lu et al. 2025, "On-Policy Distillation").

    The gradient flows through the ratio of the student now to the student then, which also corrects for a sampler
    whose probabilities differ from the learner's; it is truncated at `max_ratio`.
    """

    normalizer: ClassVar[Normalizer] = "scored_tokens"
    needs_whole_groups: ClassVar[bool] = False
    max_ratio: float = 2.0

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """See Loss."""
        advantages_S = need(batch.advantages_S, "advantages_S")
        ratio_S = (scored.logprobs_S - need(batch.sampler_logprobs_S, "sampler_logprobs_S")).exp()
        truncation_S = (ratio_S.detach().clamp(max=self.max_ratio) / ratio_S.detach()).clamp(max=1.0)
        loss_S = -ratio_S * truncation_S * advantages_S * batch.weights_S
        metrics = {"divergence": Metric(-advantages_S.sum(), "mean", len(advantages_S))}
        return LossOutput(total=loss_S.sum(), metrics=metrics)
