"""Two systems on the same items: is the difference real? Arrays in, verdict out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, bootstrap, permutation_test

from burnish.stats.intervals import wilson_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Means of A and B on `n` shared items, B - A with its interval, and the p-value of `test`."""

    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_value: float
    test: str


def compare_paired(is_right_a: ArrayLike, is_right_b: ArrayLike, *, level: float = 0.95) -> PairedComparison:
    """Compare the successes of two systems item by item."""
    a, b = np.asarray(is_right_a, dtype=bool), np.asarray(is_right_b, dtype=bool)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"the two systems need results for the same items, got shapes {a.shape} and {b.shape}")
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    neither = len(a) - both - only_a - only_b
    low, high = newcombe_paired_interval(both, only_b, only_a, neither, level=level)
    return PairedComparison(
        n=len(a),
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=(only_b - only_a) / len(a),
        low=low,
        high=high,
        p_value=mcnemar_exact(only_a, only_b),
        test="exact McNemar",
    )


def compare_paired_scores(scores_a: ArrayLike, scores_b: ArrayLike, *, level: float = 0.95) -> PairedComparison:
    """Compare two systems by a number for each item.

    The interval is the bias-corrected and accelerated bootstrap of the mean difference (Efron 1987); the p-value is
    two-sided, from flipping the signs of the differences: all ways where there are few, 9,999 seeded ones otherwise.
    """
    a, b = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"the two systems need results for the same items, got shapes {a.shape} and {b.shape}")
    differences = b - a
    low = high = float(differences.mean())
    p_value = 1.0
    if np.ptp(differences) > 0:  # otherwise every resample is the same
        options: Any = {"vectorized": True, "axis": -1, "n_resamples": _RESAMPLES}
        drawn = bootstrap((differences,), np.mean, confidence_level=level, method="BCa", rng=_rng(), **options)
        low, high = map(float, drawn.confidence_interval)
    if np.any(differences != 0):
        flipped = permutation_test(
            (b, a), _mean_difference, permutation_type="samples", vectorized=True, n_resamples=_RESAMPLES, rng=_rng()
        )
        p_value = float(flipped.pvalue)
    return PairedComparison(
        n=len(a),
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=p_value,
        test="sign-flip permutation",
    )


_RESAMPLES = 9_999


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)  # the same scores give the same interval


def _mean_difference(b: NDArray[np.float64], a: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    difference: NDArray[np.float64] = np.mean(b - a, axis=axis)
    return difference


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test: the discordant items fall to either side like a fair coin."""
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def newcombe_paired_interval(
    both: int, only_first: int, only_second: int, neither: int, *, level: float = 0.95
) -> tuple[float, float]:
    """Score interval for the difference first - second of two paired proportions.

    Newcombe 1998 (Statistics in Medicine 17:2635), method 10: Wilson intervals of the two proportions, squared and
    added with the correlation phi of the table, its continuity correction included.
    """
    n = both + only_first + only_second + neither
    first, second = (both + only_first) / n, (both + only_second) / n
    low_1, high_1 = wilson_interval(both + only_first, n, level=level)
    low_2, high_2 = wilson_interval(both + only_second, n, level=level)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        phi = 0.0
    else:
        product = both * neither - only_first * only_second
        phi = (max(product - n / 2, 0.0) if product > 0 else product) / margins**0.5
    below = (first - low_1) ** 2 - 2 * phi * (first - low_1) * (high_2 - second) + (high_2 - second) ** 2
    above = (second - low_2) ** 2 - 2 * phi * (second - low_2) * (high_1 - first) + (high_1 - first) ** 2
    difference = first - second
    return float(difference - below**0.5), float(difference + above**0.5)
