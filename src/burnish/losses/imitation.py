"""Learning to say what an example says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from burnish.losses.loss import Normalizer
from burnish.records import LossOutput, Metric, Scored, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class NegativeLogLikelihood:
    """-log p of every scored token, over all tokens of the step, or as the mean of each sequence's mean."""

    aggregation: Literal["token", "sequence"] = "token"
    needs_whole_groups: bool = False

    @property
    def normalizer(self) -> Normalizer:
        """See Loss."""
        return "scored_tokens" if self.aggregation == "token" else "sequences"

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """See Loss."""
        nll_S = -scored.logprobs_S
        weights_S = batch.weights_S
        if self.aggregation == "sequence":
            weights_S = weights_S / torch.bincount(batch.sequence_S)[batch.sequence_S]
        metrics = {"nll": Metric(nll_S.detach().sum(), "mean", len(nll_S))}
        return LossOutput(total=(nll_S * weights_S).sum(), metrics=metrics)
