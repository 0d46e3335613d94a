"""Taking a loss apart: the terms whose sum it is, each with its weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from burnish.losses.loss import FunctionLoss, Loss, WeightedLosses
from burnish.losses.policy_gradient import PolicyLoss
from burnish.losses.preference import PreferenceLoss
from burnish.records import Scored, TokenBatch


def parts_of(loss: Loss) -> Mapping[str, Loss]:
    """The terms of a loss by name, or the whole under `loss`. Their gradients add up to that of the loss."""
    if isinstance(loss, WeightedLosses):
        parts: dict[str, Loss] = {}
        for name, each in loss.losses.items():
            inner = parts_of(each)
            for term, part in inner.items():
                key = term if len(inner) > 1 else name  # one with a single term is known by the name it was given
                parts[key] = WeightedLosses({key: part}, {key: loss.weights[name]})
        return parts
    if isinstance(loss, PreferenceLoss):
        return {name: replace(loss, weights={name: weight}) for name, weight in loss.weights.items()}
    if isinstance(loss, PolicyLoss):
        bare = replace(loss, kl_coefficient=0.0, entropy_coefficient=0.0)
        found: dict[str, Loss] = {"surrogate": bare}
        if loss.kl_coefficient:
            found["kl"] = _difference(replace(bare, kl_coefficient=loss.kl_coefficient), bare)
        if loss.entropy_coefficient:
            found["entropy"] = _difference(replace(bare, entropy_coefficient=loss.entropy_coefficient), bare)
        return found
    return {"loss": loss}


def _difference(loss: Loss, other: Loss) -> Loss:
    def function(scored: Scored, batch: TokenBatch) -> Tensor:
        return loss(scored, batch).total - other(scored, batch).total

    return FunctionLoss(function, loss.normalizer, loss.needs_whole_groups)
