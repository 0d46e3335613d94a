"""The bootstrap of anything that is a function of sums over items."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

NUM_RESAMPLES = 1_999
_FOR_TAILS = 9_999  # resamples of an interval that is corrected for skew
_MOST_GROUPS = 1_024
_KEPT = 256  # smallest and largest values that stay alone: a few can make up much of the spread
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


def resampled_means(
    values: ArrayLike, *, counts: ArrayLike | None = None, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Floats:
    """Means over the first axis, of `num_resamples` draws with replacement: [I, ...] -> [num_resamples, ...].

    `counts` [I] says how many items have each of the values; without it, one. The same values give the same draws,
    whatever stands beside them.
    """
    values_I = np.asarray(values, dtype=np.float64)
    if len(values_I) == 0:
        raise ValueError("there is nothing to resample")
    flat = values_I.reshape(len(values_I), -1)
    counts_I = None if counts is None else np.asarray(counts)
    parts = [weights @ flat for weights in _weights(len(flat), counts_I, seed, num_resamples)]
    return np.concatenate(parts).reshape(num_resamples, *values_I.shape[1:])


def estimate(value: float, resampled: Floats, *, level: float = 0.95) -> Estimate:
    """The value with the percentile interval (Efron 1979) of its resamples; those that are NaN are left out."""
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return Estimate(float(value), float(low), float(high))


def p_not_above(resampled: Floats, bound: float = 0.0) -> float:
    """One-sided bootstrap p-value that a quantity is at most `bound`: (1 + those at most) / (1 + all)."""
    return float((1 + np.sum(~(resampled > bound))) / (1 + len(resampled)))


def bca_interval(values: Floats, *, level: float) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987), from 9,999 resamples.

    Of more than 1,024 different values, neighbours in order are averaged before the draw, but for the 256 smallest and
    the 256 largest.

    Raises:
        ValueError: all values are equal, so that every resample is the same.
    """
    centred = values - values.mean()
    square = float((centred**2).sum())
    if np.ptp(values) == 0:
        raise ValueError("all values are equal: the bootstrap has nothing to draw from")
    acceleration = float((centred**3).sum()) / (6 * square**1.5)
    distinct, counts = _grouped(values)
    means = resampled_means(distinct, counts=counts, num_resamples=_FOR_TAILS)
    seen = float(values.mean())
    slack = 1e-12 * float(np.abs(values).max())
    below = np.count_nonzero(means < seen - slack) + np.count_nonzero(np.abs(means - seen) <= slack) / 2
    bias = float(norm.ppf(np.clip(below / _FOR_TAILS, 0.5 / _FOR_TAILS, 1 - 0.5 / _FOR_TAILS)))
    ends = []
    for tail in (0.5 - level / 2, 0.5 + level / 2):
        shifted = bias + float(norm.ppf(tail))
        ends.append(float(norm.cdf(bias + shifted / (1 - acceleration * shifted))))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def _grouped(values: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The different values and how often each is there; of too many, the means of neighbours in the middle."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= _MOST_GROUPS:
        return distinct, counts
    low, middle, high = np.split(np.sort(values), (_KEPT, len(values) - _KEPT))
    groups = [*low[:, None], *np.array_split(middle, _MOST_GROUPS - 2 * _KEPT), *high[:, None]]
    return np.array([group.mean() for group in groups]), np.array([len(group) for group in groups])


def _weights(num_items: int, counts: NDArray[np.int64] | None, seed: int, num_resamples: int) -> Iterator[Floats]:
    """How often each item is drawn, divided by the number of items; some resamples at a time."""
    if counts is None and num_items * num_resamples <= _CHUNK:
        yield _drawn_once(num_items, seed, num_resamples)
        return
    rng = np.random.default_rng(seed)
    counts = np.ones(num_items, dtype=np.int64) if counts is None else counts
    rows = max(1, _CHUNK // num_items)
    for start in range(0, num_resamples, rows):
        yield _draw(rng, counts, min(rows, num_resamples - start))


@functools.lru_cache(maxsize=2)
def _drawn_once(num_items: int, seed: int, num_resamples: int) -> Floats:
    """Drawing takes far longer than using it, and is mostly asked for again."""
    weights = _draw(np.random.default_rng(seed), np.ones(num_items, dtype=np.int64), num_resamples)
    weights.setflags(write=False)
    return weights


def _draw(rng: np.random.Generator, counts: NDArray[np.int64], size: int) -> Floats:
    weights: Floats = rng.multinomial(counts.sum(), counts / counts.sum(), size=size) / counts.sum()
    return weights
