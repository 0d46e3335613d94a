"""Right and wrong answers of two or more systems to the same items: what the items say on which they disagree."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, chi2, norm

from burnish.stats.intervals import wilson_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Discordance:
    """Items that A alone, or B alone, gets right; the mid-p value, and Tango's interval for B - A."""

    only_a: int
    only_b: int
    mid_p: float
    low: float
    high: float


def discordance(a_I: NDArray[np.bool_], b_I: NDArray[np.bool_], *, level: float = 0.95) -> Discordance:
    """What may be reported beside the exact test of B against A on the same items."""
    only_a, only_b = int((a_I & ~b_I).sum()), int((b_I & ~a_I).sum())
    low, high = tango_paired_interval(only_b, only_a, len(a_I), level=level)
    return Discordance(only_a=only_a, only_b=only_b, mid_p=mcnemar_mid_p(only_a, only_b), low=low, high=high)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test: the discordant items fall to either side like a fair coin."""
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def mcnemar_mid_p(only_a: int, only_b: int) -> float:
    """The exact p-value less half the chance of what was seen (Lancaster 1961; Fagerland et al. 2013).

    It finds more than the exact test, and is nearly always below its level, without a guarantee.
    """
    if only_a + only_b == 0:
        return 1.0
    seen = float(binom.pmf(only_a, only_a + only_b, 0.5))
    if only_a == only_b:
        return 1.0 - seen / 2
    return mcnemar_exact(only_a, only_b) - seen


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


def tango_z(only_first: int, only_second: int, n: int, difference: float) -> float:
    """Score statistic of "first - second is `difference`" (Tango 1998, Statistics in Medicine 17:891, eq. 8).

    Normal with variance 1 if it is. At 0 its square is McNemar's chi-square without correction.
    """
    linear = (2 * n - only_first + only_second) * difference - only_first - only_second
    constant = -only_second * difference * (1 - difference)
    rarer = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * rarer + difference * (1 - difference))
    distance = only_first - only_second - n * difference
    if variance <= 1e-12 * n:
        return 0.0 if abs(distance) < 1e-9 * n else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def tango_paired_interval(only_first: int, only_second: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """The differences first - second that Tango's score test does not reject at 1 - `level`."""
    critical = float(norm.ppf(0.5 + level / 2))
    seen = (only_first - only_second) / n

    def border(end: float, sign: int) -> float:
        def excess(difference: float) -> float:
            return float(np.clip(sign * tango_z(only_first, only_second, n, difference), -1e6, 1e6)) - critical

        return float(brentq(excess, seen, end)) if excess(end) > 0 else end

    return border(-1.0, 1), border(1.0, -1)


def tango_equivalence(only_first: int, only_second: int, n: int, margin: float) -> float:
    """p-value of "the proportions differ by `margin` or more": the larger of Tango's two one-sided score tests."""
    above_low = norm.sf(tango_z(only_first, only_second, n, -margin))
    below_high = norm.cdf(tango_z(only_first, only_second, n, margin))
    return float(max(above_low, below_high))


def cochrans_q(is_right_IM: ArrayLike) -> tuple[float, float]:
    """Cochran's Q (1950) and its chi-square p-value: are M systems on the same items equally often right?

    (0, 1) where every item has the same outcome under all systems.

    Raises:
        ValueError: fewer than two systems, no items, or outcomes other than 0 and 1.
    """
    right = np.asarray(is_right_IM, dtype=np.float64)
    if right.ndim != 2 or right.shape[0] == 0 or right.shape[1] < 2 or not np.isin(right, (0.0, 1.0)).all():
        raise ValueError(f"Cochran's Q needs 0 and 1 of two or more systems on the same items, got {right.shape}")
    num_systems = right.shape[1]
    of_system, of_item = right.sum(axis=0), right.sum(axis=1)
    spread = float((of_item * (num_systems - of_item)).sum())
    if spread == 0:
        return 0.0, 1.0
    q = num_systems * (num_systems - 1) * float(((of_system - of_system.mean()) ** 2).sum()) / spread
    return q, float(chi2.sf(q, num_systems - 1))
