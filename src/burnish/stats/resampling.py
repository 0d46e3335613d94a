"""Sign flips and the bootstrap of a mean, in little memory. Seeded: the same values give the same answer."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

RESAMPLES = 9_999
_ALL_SIGNS = 20
_MOST_GROUPS = 1_024
_BLOCK = 4_000_000  # numbers drawn at once, 32 MB


def sign_flip_p_value(values: NDArray[np.float64]) -> float:
    """Two-sided p-value of "the values are symmetric around 0", by the size of their sum under random signs.

    All signs of up to 20 values that are not 0, and 9,999 seeded draws of more, where the one that was seen counts
    (Phipson & Smyth 2010). 1 where every value is 0.
    """
    sizes = np.sort(np.abs(values[values != 0]))  # so that the order the values came in does not matter
    if len(sizes) == 0:
        return 1.0
    seen = abs(float(values.sum())) - 1e-12 * float(sizes.sum())  # sums that are equal but for rounding count as equal
    if len(sizes) <= _ALL_SIGNS:
        sums = np.zeros(1)
        for size in sizes:
            sums = np.concatenate([sums - size, sums + size])
        return float(np.mean(np.abs(sums) >= seen))
    drawn = _signed_sums(sizes, np.random.default_rng(0))
    return (1 + int(np.count_nonzero(np.abs(drawn) >= seen))) / (1 + RESAMPLES)


def bca_interval(values: NDArray[np.float64], *, level: float) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987), from 9,999 seeded resamples.

    Of more than 1,024 different values, neighbours in order are averaged before the draw.

    Raises:
        ValueError: all values are equal, so that every resample is the same.
    """
    centred = values - values.mean()
    square = float((centred**2).sum())
    if np.ptp(values) == 0:
        raise ValueError("all values are equal: the bootstrap has nothing to draw from")
    acceleration = float((centred**3).sum()) / (6 * square**1.5)
    means = _resampled_means(values, np.random.default_rng(0))
    seen = float(values.mean())
    slack = 1e-12 * float(np.abs(values).max())
    below = np.count_nonzero(means < seen - slack) + np.count_nonzero(np.abs(means - seen) <= slack) / 2
    bias = float(norm.ppf(np.clip(below / RESAMPLES, 0.5 / RESAMPLES, 1 - 0.5 / RESAMPLES)))
    ends = []
    for tail in (0.5 - level / 2, 0.5 + level / 2):
        shifted = bias + float(norm.ppf(tail))
        ends.append(float(norm.cdf(bias + shifted / (1 - acceleration * shifted))))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def _signed_sums(sizes: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    distinct, counts = np.unique(sizes, return_counts=True)
    if len(distinct) <= min(_MOST_GROUPS, len(sizes) / 8):  # how many of each size stay positive is all that matters
        positive = rng.binomial(counts, 0.5, size=(RESAMPLES, len(distinct)))
        summed: NDArray[np.float64] = (2 * positive - counts) @ distinct
        return summed
    blocks = []
    for rows in _blocks(len(sizes)):
        drawn = rng.integers(0, 256, size=(rows, math.ceil(len(sizes) / 8)), dtype=np.uint8)
        bits = np.unpackbits(drawn, axis=1, count=len(sizes))
        blocks.append(2 * (bits.astype(np.float64) @ sizes) - sizes.sum())
    return np.concatenate(blocks)


def _resampled_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of resamples: how often each different value is drawn is multinomial."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) > _MOST_GROUPS:
        groups = np.array_split(np.sort(values), _MOST_GROUPS)
        distinct, counts = np.array([group.mean() for group in groups]), np.array([len(group) for group in groups])
    n = len(values)
    blocks = [rng.multinomial(n, counts / n, size=rows) @ distinct / n for rows in _blocks(len(distinct))]
    return np.concatenate(blocks)


def _blocks(width: int) -> list[int]:
    rows = max(1, _BLOCK // width)
    return [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
