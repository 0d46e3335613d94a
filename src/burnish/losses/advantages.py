"""Advantages: from the rewards of a step, and the group of each, to one number per completion. Numpy, float64.

    grpo                   (r - mean of the group) / its sample standard deviation      Shao et al. 2024, section 4.1
    dr_grpo                r - mean of the group                                        Liu et al. 2025, eq. 3
    rloo                   r - mean of the others of the group                          Ahmadian et al. 2024, eq. 5
    maxrl                  (r - mean of the group) / mean of the group                  Tajwar et al. 2026, eq. 9
    reinforce_pp           (r - mean of the step) / standard deviation of the step      Hu et al. 2025, eq. 6
    reinforce_pp_baseline  r - mean of the group, then as reinforce_pp                  Hu et al. 2025, section 3.3

Means are taken twice, so that rounding leaves no sum, and nothing is added to a denominator: a group without signal is
recognised and gets exactly 0, every other one is divided by its own spread.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from burnish.config.imports import import_by_path
from burnish.errors import DataError

Array = NDArray[np.float64]
Advantage = Callable[[Array, NDArray[np.int64]], Array]

# Rewards closer than this, relative to the largest or to 1, are equal: 0.1 + 0.2 + 0.4 and 0.7 differ only by rounding,
# and dividing that difference by its own spread would turn it into a full-sized advantage.
_EQUAL_REWARDS = 1e-6


def has_signal(rewards_G: ArrayLike) -> bool:
    """Whether the rewards of a group differ, so that some completion is better than another."""
    rewards_G = _checked(rewards_G)
    return bool(np.ptp(rewards_G) > _EQUAL_REWARDS * max(1.0, float(np.abs(rewards_G).max())))


def grpo(rewards_B: ArrayLike, group_B: ArrayLike) -> Array:
    """Reward minus the group's mean, over its *sample* standard deviation (n - 1).

    So |advantage| <= (n - 1) / sqrt(n). A group without signal gets exactly 0.

    Raises:
        DataError: a reward is NaN or infinite.
    """
    return _by_group(_standardised, rewards_B, group_B)


def dr_grpo(rewards_B: ArrayLike, group_B: ArrayLike) -> Array:
    """Reward minus the group's mean."""
    return _by_group(_centred, rewards_B, group_B)


def rloo(rewards_B: ArrayLike, group_B: ArrayLike) -> Array:
    """Reward minus the mean of the other rewards of the group: n / (n - 1) times the centred reward."""
    return _by_group(lambda rewards_G: _centred(rewards_G) * len(rewards_G) / (len(rewards_G) - 1), rewards_B, group_B)


def maxrl(rewards_B: ArrayLike, group_B: ArrayLike) -> Array:
    """Centred reward over the group's mean: the gradient of the log of the success rate, not of the rate.

    A group that never succeeds has no signal and gets 0.

    Raises:
        DataError: a reward is negative, which is no success rate.
    """
    if (_checked(rewards_B) < 0).any():
        raise DataError("maxrl divides by the mean reward: rewards must not be negative")
    return _by_group(lambda rewards_G: _centred(rewards_G) / rewards_G.mean(), rewards_B, group_B)


def reinforce_pp(rewards_B: ArrayLike, group_B: ArrayLike) -> Array:
    """Reward standardised over the whole step; the groups do not matter."""
    rewards_B = _checked(rewards_B)
    return _standardised(rewards_B) if has_signal(rewards_B) else np.zeros_like(rewards_B)


def reinforce_pp_baseline(rewards_B: ArrayLike, group_B: ArrayLike) -> Array:
    """Reward minus the group's mean, then standardised over the whole step."""
    centred_B = dr_grpo(rewards_B, group_B)
    return _standardised(centred_B) if has_signal(centred_B) else centred_B


ADVANTAGES: Mapping[str, Advantage] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "maxrl": maxrl,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
}


def load_advantage(name: str, key: str) -> Advantage:
    """A named advantage, or the user's own function `(rewards_B, group_B) -> advantages_B` by its path.

    Raises:
        ConfigError: there is no such function.
    """
    if name in ADVANTAGES:
        return ADVANTAGES[name]
    own = import_by_path(name, key, arguments=("rewards_B", "group_B"))

    def checked(rewards_B: Array, group_B: NDArray[np.int64]) -> Array:
        found = np.asarray(own(rewards_B, group_B))
        if found.shape != rewards_B.shape or found.dtype.kind not in "fi":
            raise DataError(f"{name} must return {len(rewards_B)} numbers, got {found.dtype} of shape {found.shape}")
        if not np.isfinite(found).all():
            raise DataError(f"{name} must return finite numbers, got {found.tolist()} for rewards {rewards_B.tolist()}")
        numbers: Array = found.astype(np.float64)
        return numbers

    return checked


def _by_group(function: Callable[[Array], Array], rewards_B: ArrayLike, group_B: ArrayLike) -> Array:
    """Apply a function to the rewards of each group that has a signal; others get 0."""
    rewards_B, group_B = _checked(rewards_B), np.asarray(group_B)
    advantages_B = np.zeros_like(rewards_B)
    for group in np.unique(group_B):
        own = group_B == group
        if has_signal(rewards_B[own]):
            advantages_B[own] = function(rewards_B[own])
    return advantages_B


def _centred(rewards_G: Array) -> Array:
    centred_G: Array = rewards_G - rewards_G.mean()
    centred_G -= centred_G.mean()  # the second pass takes away what rounding left of the mean
    return centred_G


def _standardised(rewards_G: Array) -> Array:
    centred_G = _centred(rewards_G)
    centred_G /= np.sqrt(np.square(centred_G).sum() / (len(centred_G) - 1))
    return centred_G


def _checked(rewards: Any) -> Array:
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 1 or len(rewards) == 0:
        raise DataError(f"a group needs a list of at least one reward, got shape {rewards.shape}")
    if not np.isfinite(rewards).all():
        raise DataError(f"rewards must be finite numbers, got {rewards.tolist()}")
    checked: Array = rewards
    return checked
