"""Sign flips of many values, in little memory. Seeded: the same values give the same answer."""

import numpy as np
from numpy.typing import NDArray

_DRAWS = 9_999
_ALL_SIGNS = 20
_MOST_GROUPS = 1_024
_EIGHTS = 64


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
    return (1 + int(np.count_nonzero(np.abs(drawn) >= seen))) / (1 + _DRAWS)


def _signed_sums(sizes: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    distinct, counts = np.unique(sizes, return_counts=True)
    if len(distinct) <= min(_MOST_GROUPS, len(sizes) / 8):  # how many of each size stay positive is all that matters
        positive = rng.binomial(counts, 0.5, size=(_DRAWS, len(distinct)))
        summed: NDArray[np.float64] = (2 * positive - counts) @ distinct
        return summed
    # a drawn byte is the signs of eight sizes, whose 256 sums are computed once; few eights at a time stay in cache
    sizes_P8 = np.pad(sizes, (0, -len(sizes) % 8)).reshape(-1, 8)
    signs_8N = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).T - 1
    summed = np.zeros(_DRAWS)
    for start in range(0, len(sizes_P8), _EIGHTS):
        sums_PN = sizes_P8[start : start + _EIGHTS] @ signs_8N
        first_P1 = 256 * np.arange(len(sums_PN))[:, None]
        drawn_PD = rng.integers(0, 256, size=(len(sums_PN), _DRAWS), dtype=np.uint8)
        summed += np.take(sums_PN.ravel(), first_P1 + drawn_PD).sum(axis=0)
    return summed
