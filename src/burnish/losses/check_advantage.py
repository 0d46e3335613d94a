"""The check of a user's advantage: what must hold for any, tried on hard rewards, said in plain words."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from burnish.errors import DataError
from burnish.losses.advantages import Advantage

Array = NDArray[np.float64]

_HARD: dict[str, list[float]] = {
    "one success among 16": [1.0] + [0.0] * 15,
    "seven rewards of 0.95 and one of 0": [0.95] * 7 + [0.0],
    "eight equal rewards of 0.7": [0.7] * 8,
    "rewards that differ by rounding": [0.7, 0.1 + 0.2 + 0.4, 0.7, 0.7],
    "rewards of 0": [0.0] * 8,
    "large rewards": [1e6, 1e6 + 1, 1e6 + 2, 1e6],
    "negative rewards": [-1.0, -0.5, 0.0, -2.0],
    "two completions": [1.0, 0.0],
}
_LARGEST = 10.0


def check_advantage(advantage: Advantage) -> list[str]:
    """What is wrong with an advantage, each in a sentence that names the rewards; empty where nothing was found."""
    findings = []
    for what, rewards in _HARD.items():
        rewards_B, group_B = np.array(rewards), np.zeros(len(rewards), dtype=np.int64)
        try:
            findings += [f"for {what}: {finding}" for finding in _one_group(advantage, rewards_B, group_B)]
        except DataError as error:
            findings.append(f"for {what}: {error}")
        except Exception as error:  # a user's code may raise anything
            findings.append(f"for {what}: it raises {type(error).__name__}: {error}")
    return findings or list(_several_groups(advantage))


def _one_group(advantage: Advantage, rewards_B: Array, group_B: NDArray[np.int64]) -> Iterator[str]:
    found = np.asarray(advantage(rewards_B, group_B))
    if found.shape != rewards_B.shape:
        yield f"it must return {len(rewards_B)} numbers, got shape {found.shape}"
        return
    if not np.isfinite(found).all():
        yield f"it returns {found.tolist()}"
        return
    if np.ptp(rewards_B) < 1e-9 * max(1.0, float(np.abs(rewards_B).max())):
        if np.abs(found).max() > 1e-6:
            yield f"no completion is better than another, yet it returns {found.tolist()}"
        return
    if np.abs(found).max() > max(_LARGEST, len(found)) * max(1.0, float(np.ptp(rewards_B))):
        yield f"the largest advantage is {np.abs(found).max():.3g}: it explodes"
    order = np.argsort(rewards_B, kind="stable")
    if (np.diff(found[order])[np.diff(rewards_B[order]) > 0] < 0).any():
        yield "a higher reward gets a lower advantage"


def _several_groups(advantage: Advantage) -> Iterator[str]:
    rng = np.random.default_rng(0)
    rewards_B, group_B = rng.random(24), np.repeat(np.arange(4), 6)
    found, shuffled = np.asarray(advantage(rewards_B, group_B)), rng.permutation(24)
    if not np.allclose(advantage(rewards_B[shuffled], group_B[shuffled]), found[shuffled], atol=1e-9):
        yield "it depends on the order of the completions"
    if not np.allclose(advantage(rewards_B, 7 - group_B), found, atol=1e-9):
        yield "it depends on the numbers of the groups, which only say what belongs together"
    again = rewards_B.copy()
    advantage(again, group_B)
    if not np.array_equal(again, rewards_B):
        yield "it changes the rewards it is given"
