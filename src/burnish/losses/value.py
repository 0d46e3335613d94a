"""Values and the advantages that come from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from burnish.losses.loss import Normalizer, need
from burnish.records import LossOutput, Metric, Scored, TokenBatch


def gae(
    rewards_S: Tensor, values_S: Tensor, sequence_S: Tensor, *, discount: float, decay: float
) -> tuple[Tensor, Tensor]:
    """(advantages [S], returns [S]): generalised advantage estimation (Schulman et al. 2016, eq. 16), float32.

    With delta_t = r_t + discount v_{t+1} - v_t, the advantage is the sum of (discount decay)^k delta_{t+k} to the end
    of the sequence, after which the value is 0; the return is advantage + value. The sum runs backwards over all
    sequences at once, in float64.
    """
    from scipy.signal import lfilter  # slow to import, and only PPO needs it

    lengths_B = torch.bincount(sequence_S)
    position_S = torch.arange(len(sequence_S)) - (lengths_B.cumsum(0) - lengths_B)[sequence_S]
    place = (sequence_S.numpy(), position_S.numpy())
    shape = (len(lengths_B), int(lengths_B.max()))
    rewards_BL, values_BL = np.zeros(shape), np.zeros(shape)
    rewards_BL[place], values_BL[place] = rewards_S.double().numpy(), values_S.double().numpy()
    # a sequence's place after its last token holds 0, which is the value there
    next_values_BL = np.pad(values_BL, ((0, 0), (0, 1)))[:, 1:]
    deltas_BL = rewards_BL + discount * next_values_BL - values_BL
    backwards_BL = lfilter([1.0], [1.0, -discount * decay], deltas_BL[:, ::-1], axis=1)
    advantages_S = torch.from_numpy(backwards_BL[:, ::-1][place].copy())
    return advantages_S.float(), (advantages_S + values_S.double()).float()


def whiten(values_S: Tensor) -> Tensor:
    """Mean 0 and sample standard deviation 1; equal values become 0."""
    centred_S = values_S.double() - values_S.double().mean()
    spread = centred_S.square().sum().div(max(1, len(values_S) - 1)).sqrt()
    return torch.where(spread > 1e-9, centred_S / spread, torch.zeros_like(centred_S)).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLoss:
    """max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2) / 2 for every scored token.

    PPO's clipped value loss (Schulman et al. 2017's implementation; Engstrom et al. 2020, eq. 3); without `clip` the
    squared error.
    """

    normalizer: ClassVar[Normalizer] = "scored_tokens"
    needs_whole_groups: ClassVar[bool] = False
    clip: float | None = 0.2

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """See Loss."""
        values_S = need(scored.values_S, "values_S (a model with a value head)")
        returns_S = need(batch.returns_S, "returns_S")
        errors_S = (values_S - returns_S).square()
        detached_S = values_S.detach()
        is_clipped_S = torch.zeros_like(errors_S)
        if self.clip is not None:
            old_S = need(batch.old_values_S, "old_values_S")
            near_S = old_S + (values_S - old_S).clamp(-self.clip, self.clip)
            clipped_S = (near_S - returns_S).square()
            is_clipped_S = (clipped_S > errors_S).float()
            errors_S = torch.maximum(errors_S, clipped_S)
        count = len(errors_S)
        metrics = {
            "value_mean": Metric(detached_S.sum(), "mean", count),
            "value_clip_fraction": Metric(is_clipped_S.sum(), "mean", count),
            "value_error": Metric((detached_S - returns_S).square().sum(), "mean", count),
        }
        return LossOutput(total=(errors_S * batch.weights_S).sum() / 2, metrics=metrics)
