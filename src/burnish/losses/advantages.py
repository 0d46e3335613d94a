"""Advantages: functions from the rewards of one group to one number per completion. Plain numpy, float64."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from burnish.errors import DataError

AdvantageScale = Literal["std", "none"]

# Rewards closer than this, relative to the largest or to 1, are equal: 0.1 + 0.2 + 0.4 and 0.7 differ only by rounding,
# and dividing that difference by its own spread would turn it into a full-sized advantage.
_EQUAL_REWARDS = 1e-6


def has_signal(rewards_G: ArrayLike) -> bool:
    """Whether the rewards of a group differ, so that some completion is better than another."""
    rewards_G = _checked(rewards_G)
    return bool(np.ptp(rewards_G) > _EQUAL_REWARDS * max(1.0, float(np.abs(rewards_G).max())))


def group_advantages(rewards_G: ArrayLike, *, scale: AdvantageScale = "std") -> NDArray[np.float64]:
    """Reward minus the group's mean, divided by the group's spread (GRPO, Shao et al. 2024, section 4.1).

    `scale="std"` divides by the *sample* standard deviation (n - 1), computed in two passes and without an added
    epsilon, so |advantage| <= (n - 1) / sqrt(n). `scale="none"` only centres (Dr. GRPO, Liu et al. 2025, eq. 3).
    A group without signal gets exactly 0.

    Raises:
        DataError: a reward is NaN or infinite, or the group is empty.
    """
    rewards_G = _checked(rewards_G)
    if not has_signal(rewards_G):
        return np.zeros_like(rewards_G)
    centred_G: NDArray[np.float64] = rewards_G - rewards_G.mean()
    centred_G -= centred_G.mean()  # the second pass takes away what rounding left of the mean
    if scale == "none":
        return centred_G
    centred_G /= np.sqrt(np.square(centred_G).sum() / (len(centred_G) - 1))
    return centred_G


def _checked(rewards_G: ArrayLike) -> NDArray[np.float64]:
    rewards_G = np.asarray(rewards_G, dtype=np.float64)
    if rewards_G.ndim != 1 or len(rewards_G) == 0:
        raise DataError(f"a group needs a list of at least one reward, got shape {rewards_G.shape}")
    if not np.isfinite(rewards_G).all():
        raise DataError(f"rewards must be finite numbers, got {rewards_G.tolist()}")
    return rewards_G
