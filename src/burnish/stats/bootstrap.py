"""The bootstrap of anything that is a function of sums over items."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_RESAMPLES = 1_999
_CHUNK = 4_000_000  # weights that exist at once

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float

    @property
    def is_up(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0


def resampled_means(values: ArrayLike, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Floats:
    """Means over the first axis, of `num_resamples` draws with replacement: [I, ...] -> [num_resamples, ...].

    The same values give the same draws, whatever stands beside them.
    """
    values_I = np.asarray(values, dtype=np.float64)
    if len(values_I) == 0:
        raise ValueError("there is nothing to resample")
    flat = values_I.reshape(len(values_I), -1)
    parts = [weights @ flat for weights in _weights(len(flat), seed, num_resamples)]
    return np.concatenate(parts).reshape(num_resamples, *values_I.shape[1:])


def estimate(value: float, resampled: Floats, *, level: float = 0.95) -> Estimate:
    """The value with the percentile interval (Efron 1979) of its resamples; those that are NaN are left out."""
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return Estimate(float(value), float(low), float(high))


def p_not_above(resampled: Floats, bound: float = 0.0) -> float:
    """One-sided bootstrap p-value that a quantity is at most `bound`: (1 + those at most) / (1 + all)."""
    return float((1 + np.sum(~(resampled > bound))) / (1 + len(resampled)))


def _weights(num_items: int, seed: int, num_resamples: int) -> Iterator[Floats]:
    """How often each item is drawn, divided by the number of items; some resamples at a time."""
    if num_items * num_resamples <= _CHUNK:
        yield _drawn_once(num_items, seed, num_resamples)
        return
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // num_items)
    for start in range(0, num_resamples, rows):
        yield _draw(rng, num_items, min(rows, num_resamples - start))


@functools.lru_cache(maxsize=2)
def _drawn_once(num_items: int, seed: int, num_resamples: int) -> Floats:
    """Drawing takes far longer than using it, and is mostly asked for again."""
    weights = _draw(np.random.default_rng(seed), num_items, num_resamples)
    weights.setflags(write=False)
    return weights


def _draw(rng: np.random.Generator, num_items: int, size: int) -> Floats:
    return rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=size) / num_items
