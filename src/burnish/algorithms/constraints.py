"""Maximise the reward while other quantities stay below a bound, by Lagrange multipliers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from burnish.config.schema import Section
from burnish.errors import DataError
from burnish.records import RolloutGroup


class Constraint(Section):
    """A mean that must stay below a bound."""

    on: str = Field(min_length=1)
    """length (tokens), kl (to the starting model, summed over a completion), or the name of a reward component."""
    below: float
    """The bound."""
    rate: float = Field(0.1, gt=0)
    """How fast the multiplier rises while the bound is broken, and falls while it is kept."""


def constrained(
    constraints: Sequence[Constraint],
    groups: Sequence[RolloutGroup],
    rewards_B: NDArray[np.float64],
    kl_B: NDArray[np.float64],
    state: dict[str, float],
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Rewards minus multiplier x (cost / bound), and each cost's mean; `state` keeps the multipliers.

    Dual ascent (Achiam et al. 2017; Ray et al. 2019): a multiplier moves by rate x (mean cost / |bound| - 1), or by
    rate x mean cost for a bound of 0, and never below 0. A constrained reward component counts as a cost alone.

    Raises:
        DataError: a completion has no such component.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    observed: dict[str, Any] = {}
    for constraint in constraints:
        scale = abs(constraint.below) or 1.0
        if constraint.on == "length":
            costs_B = np.array([float(len(rollout.completion.token_ids)) for rollout in rollouts])
        elif constraint.on == "kl":
            costs_B = kl_B
        else:
            missing = next((each for each in rollouts if constraint.on not in each.components), None)
            if missing is not None:
                known = ", ".join(missing.components) or "none"
                raise DataError(f"loss.constraints: the reward has no component {constraint.on!r}; it has {known}")
            costs_B = np.array([rollout.components[constraint.on] for rollout in rollouts])
            rewards_B = rewards_B - costs_B
        key = f"multiplier.{constraint.on}"
        multiplier = state.get(key, 0.0)
        rewards_B = rewards_B - multiplier * costs_B / scale
        violation = float(costs_B.mean() - constraint.below) / scale
        observed |= {f"cost.{constraint.on}": float(costs_B.mean()), key: multiplier}
        state[key] = max(0.0, multiplier + constraint.rate * violation)
    return rewards_B, observed
