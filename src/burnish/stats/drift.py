"""Whether what comes now is like what came before: two samples compared, and one watched value by value.

Where there are too few observations to say anything the answer is None. A number that is not finite is refused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import chdtrc, chdtri
from scipy.stats import hypergeom, kstwo, rankdata

from burnish.stats.levels import require_alpha

_FEWEST = 20  # observations of each sample; with fewer a test hardly ever finds anything, and a PSI is noise
_PER_BIN = 5  # observations that a bin or category needs for the chi-square approximation (Cochran 1954)
_SMOOTHING = 0.5  # added to every bin, so that an empty one has a logarithm
_EXACT_PAIRS = 1_000_000  # of observations, one of each sample: about 20 ms
_OVERSHOOT = (
    1.166  # twice 0.583: by how much a sum of normal steps passes a border (Siegmund 1985, Sequential Analysis)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A test of "both samples are drawn alike"."""

    statistic: float
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StabilityIndex:
    """A population stability index, and what it is where nothing changed: about `scale` x chi-square(`degrees`).

    `scale` is 1/n + 1/m (Yurdakul & Naranjo 2020, Journal of Risk Model Validation 14:4). The usual limits of 0.1 and
    0.25 know nothing of n and m: ten bins of 100 and 100 observations have 0.18 on average without any change.
    """

    psi: float
    scale: float
    degrees: int

    @property
    def expected(self) -> float:
        """The mean where nothing changed."""
        return self.scale * self.degrees

    @property
    def p_value(self) -> float:
        """The chance of as much or more where nothing changed."""
        return float(chdtrc(self.degrees, self.psi / self.scale)) if self.degrees else 1.0

    def limit(self, alpha: float) -> float:
        """What is passed with the chance `alpha` where nothing changed."""
        require_alpha(alpha)
        return self.scale * float(chdtri(self.degrees, alpha)) if self.degrees else 0.0


def stability_index(reference: ArrayLike, current: ArrayLike, *, num_bins: int = 10) -> StabilityIndex | None:
    """PSI of two samples of numbers, in bins that hold equal shares of the reference.

    The borders are values of the reference, which belong to the bin below, so that equal numbers are never torn
    apart; a number that fills several bins leaves fewer. A reference of one number alone has the bins below, at and
    above it. None with fewer than 5 observations for each bin in either sample.

    Raises:
        ValueError: a number is not finite, or fewer than two bins.
    """
    if num_bins < 2:
        raise ValueError(f"num_bins = {num_bins}: one bin holds everything")
    old, new = _sorted(reference), _sorted(current)
    if min(len(old), len(new)) < max(_FEWEST, _PER_BIN * num_bins):
        return None
    places = np.ceil(np.arange(1, num_bins) / num_bins * len(old)).astype(int) - 1
    borders = np.unique(old[places])
    borders = borders[borders < old[-1]]  # nothing of the reference lies above its largest
    if old[0] == old[-1]:
        borders = np.array([np.nextafter(old[0], -math.inf), old[0]])
    counts = [np.bincount(np.searchsorted(borders, x), minlength=len(borders) + 1) for x in (old, new)]
    return _index(*counts)


def stability_of_counts(reference: Mapping[str, int], current: Mapping[str, int]) -> StabilityIndex | None:
    """PSI of the counts of categories; one that is in either counts. None with fewer than 20 observations in either.

    Raises:
        ValueError: a count is negative.
    """
    table = _table(reference, current)
    return None if table.sum(axis=1).min() < _FEWEST else _index(*table)


def _index(old: NDArray[np.int64], new: NDArray[np.int64]) -> StabilityIndex:
    """Sum of (q - p) ln(q / p), with 1/2 added to every count; what is empty in both is no bin."""
    is_used = old + new > 0
    p, q = ((each[is_used] + _SMOOTHING) / (each.sum() + _SMOOTHING * is_used.sum()) for each in (old, new))
    return StabilityIndex(
        psi=float(((q - p) * np.log(q / p)).sum()),
        scale=float(1 / old.sum() + 1 / new.sum()),
        degrees=int(is_used.sum()) - 1,
    )


def ks_test(reference: ArrayLike, current: ArrayLike) -> Comparison | None:
    """Two-sample Kolmogorov-Smirnov, two-sided: the largest distance between the two shares of "at most x".

    Up to a million pairs (n x m) the p-value is exact, also for equal numbers: the share of all orders of the pooled
    sample with as large a distance, looked at between different numbers only (Hodges 1958; with ties Schroeer &
    Trenkler 1995, Computational Statistics & Data Analysis 20:185). Beyond, it is that of one sample of nm / (n + m)
    continuous numbers, which is too large where many are equal. None with fewer than 20 observations in either.

    Raises:
        ValueError: a number is not finite.
    """
    old, new = sorted((_sorted(reference), _sorted(current)), key=len)  # the test is the same either way
    n, m = len(old), len(new)
    if n < _FEWEST:
        return None
    values = np.unique(np.concatenate([old, new]))
    old_until, new_until = (np.searchsorted(x, values, side="right") for x in (old, new))
    distance = int(np.abs(old_until * m - new_until * n).max())  # in units of 1 / nm, so whole
    if n * m <= _EXACT_PAIRS:
        p_value = _share_of_orders(n, m, distance, frozenset((old_until + new_until).tolist()))
    else:
        p_value = float(kstwo.sf(distance / (n * m), round(n * m / (n + m))))
    return Comparison(statistic=distance / (n * m), p_value=min(1.0, max(0.0, p_value)))


def _share_of_orders(n: int, m: int, distance: int, ends: frozenset[int]) -> float:
    """Share of the orders of n + m values that come as far apart as `distance`, after one of `ends` values.

    After k values, i of which are among the n, `far[i + 1]` is the share of the ways there that were far apart: the
    last value was one of the n with chance i / k. Sums of shares, so that a small one keeps its digits.
    """
    ups, downs = np.arange(n + 1.0), np.arange(float(m), -1, -1)
    far = np.zeros(n + 2)
    for k in range(1, n + m + 1):
        first, last = max(0, k - m), min(k, n)
        others = downs[m - k + first : m - k + last + 1]  # k - i
        far[first + 1 : last + 2] = (
            far[first : last + 1] * ups[first : last + 1] + far[first + 1 : last + 2] * others
        ) / k
        if k in ends:  # far apart is |i (n + m) - k n| >= distance
            far[: max(0, (k * n - distance) // (n + m) + 2)] = 1
            far[1 - (-(k * n + distance) // (n + m)) :] = 1
    return float(far[n + 1])


def homogeneity_test(reference: Mapping[str, int], current: Mapping[str, int]) -> Comparison | None:
    """Chi-square of "the categories have the same shares in both".

    While there are more than two and one is expected fewer than 5 times in a sample, the two rarest of both samples
    together become one; what is pooled depends on these totals alone, so it is no choice by result. Two categories
    are tested exactly: over all tables with the same totals, by the hypergeometric distribution. None with fewer than
    20 observations in either.

    Raises:
        ValueError: a count is negative.
    """
    table = _table(reference, current)
    sizes = table.sum(axis=1)
    if sizes.min() < _FEWEST:
        return None
    columns = sorted(table[:, table.sum(axis=0) > 0].T.tolist(), key=sum)
    share = float(sizes.min() / sizes.sum())
    while len(columns) > 2 and sum(columns[0]) * share < _PER_BIN:
        rare, next_rare, *rest = columns
        columns = sorted([[a + b for a, b in zip(rare, next_rare, strict=True)], *rest], key=sum)
    pooled = np.array(columns).T
    expected = np.outer(sizes, pooled.sum(axis=0)) / sizes.sum()
    statistic = float(((pooled - expected) ** 2 / expected).sum())
    if len(columns) == 1:
        return Comparison(statistic=0.0, p_value=1.0)
    p_value = _exact_p_value(pooled) if len(columns) == 2 else float(chdtrc(len(columns) - 1, statistic))
    return Comparison(statistic=statistic, p_value=p_value)


def _exact_p_value(table: NDArray[np.int64]) -> float:
    """Chance of a 2 x 2 table as far from its expectation, given its totals."""
    total, size, kind = int(table.sum()), int(table[0].sum()), int(table[:, 0].sum())
    counts = np.arange(max(0, size + kind - total), min(size, kind) + 1)
    distances = np.abs(counts * total - size * kind)  # whole numbers: equally far is equal
    is_as_far = distances >= abs(int(table[0, 0]) * total - size * kind)
    return min(1.0, float(hypergeom.pmf(counts[is_as_far], total, kind, size).sum()))


def _table(reference: Mapping[str, int], current: Mapping[str, int]) -> NDArray[np.int64]:
    """The counts of both, a row each; by name, so that the order they came in decides nothing."""
    names = sorted({*reference, *current})
    table = np.array([[counts.get(name, 0) for name in names] for counts in (reference, current)], dtype=np.int64)
    if (table < 0).any():
        raise ValueError("a count is negative")
    return table


def design_effect(values: ArrayLike) -> float:
    """How many times as many values as independent ones tell as much, by their order; at least 1.

    1 + 2 x the sum of the autocorrelations of the ranks, in pairs of lags, until a pair's sum is not above the standard
    error of independent values', sqrt(2 / n) (Geyer 1992, Statistical Science 7:473, who stops at 0: then independent
    values would have an effect of 1.4 now and then). 1 for fewer than 20 values, or where all are equal.

    Raises:
        ValueError: a value is not finite.
    """
    ordered = _sorted(values)
    n = len(ordered)
    if n < _FEWEST or ordered[0] == ordered[-1]:
        return 1.0
    ranks = rankdata(np.asarray(values, dtype=np.float64))
    spectrum = np.fft.rfft(ranks - ranks.mean(), 2 * n)  # as many zeros behind, so that the end meets no beginning
    covariances = np.fft.irfft(np.abs(spectrum) ** 2)[: n - n % 2]
    pairs = (covariances / covariances[0]).reshape(-1, 2).sum(axis=1)
    is_over = pairs <= math.sqrt(2 / n)
    num_pairs = int(is_over.argmax()) if is_over.any() else len(pairs)
    return max(1.0, 2 * float(pairs[:num_pairs].sum()) - 1)


def dependent_p_value(p_value: float, effect: float) -> float:
    """What a p-value for independent observations is worth where they have a design effect.

    The chi-square of one degree that has this p-value is divided by the effect (Rao & Scott 1981, JASA 76:221, first
    order). For two categories this is theirs; for several, and for KS, it is an approximation.
    """
    return float(chdtrc(1, chdtri(1, p_value) / effect)) if effect > 1 else p_value


class PageHinkley:
    """Watches values one by one for a lasting change of their mean, up or down.

    z is a value's distance from the reference's mean, in the reference's standard deviations. Each side sums
    z - `delta` (or -z - `delta`) and holds the sum's height above its lowest so far against `threshold` (Page 1954,
    Biometrika 41:100; Hinkley 1971, Biometrika 58:509). A change of less than `delta` is not meant to be found; one of
    twice `delta` is found soonest.
    """

    def __init__(self, *, mean: float, standard_deviation: float, delta: float, threshold: float) -> None:
        if not math.isfinite(mean) or not 0 < standard_deviation < math.inf:
            raise ValueError("a reference without spread says nothing of how far a value is from it")
        if not 0 < delta < math.inf or not 0 < threshold < math.inf:
            raise ValueError(f"delta = {delta:g} and threshold = {threshold:g} must be above 0")
        self._mean, self._standard_deviation = mean, standard_deviation
        self.delta, self.threshold = delta, threshold
        self.rise = self.fall = 0.0
        """Heights of the two sums above their lowest so far."""

    @classmethod
    def of_reference(cls, reference: ArrayLike, *, run_length: float, delta: float = 0.25) -> "PageHinkley | None":
        """One that stays silent for `run_length` values on average; None with fewer than 20, or without spread.

        The mean of a small reference is off by itself, which a small `delta` takes for a change: for the run length to
        be near, delta must be several times 1 / sqrt(n). Heavy tails make it shorter, and so does dependence.
        """
        x = _sorted(reference)
        if len(x) < _FEWEST or x[0] == x[-1]:
            return None
        threshold = threshold_for_run_length(run_length, delta=delta)
        return cls(mean=float(x.mean()), standard_deviation=float(x.std(ddof=1)), delta=delta, threshold=threshold)

    def add(self, value: float) -> bool:
        """Whether the mean has changed, as far as the values so far tell. It goes on summing; `restart` forgets.

        Raises:
            ValueError: the value is not finite.
        """
        if not math.isfinite(value):
            raise ValueError("a value is not a finite number")
        z = (value - self._mean) / self._standard_deviation
        self.rise = max(0.0, self.rise + z - self.delta)
        self.fall = max(0.0, self.fall - z - self.delta)
        return max(self.rise, self.fall) > self.threshold

    def restart(self) -> None:
        """Forget the values so far."""
        self.rise = self.fall = 0.0


def threshold_for_run_length(run_length: float, *, delta: float) -> float:
    """Threshold at which independent normal values without change raise an alarm after `run_length` on average.

    Each side alone takes twice as long, by Siegmund's approximation (1985, Sequential Analysis):
    (e^(2 d b) - 1 - 2 d b) / (2 d^2) for delta d and b = threshold + 1.166.

    Raises:
        ValueError: `delta` is not above 0, or the run is so short that no threshold above 0 is needed.
    """
    if not 0 < delta < math.inf or not 0 < run_length < math.inf:
        raise ValueError(f"delta = {delta:g} and a run length of {run_length:g} must be above 0")

    def excess(threshold: float) -> float:  # of the log of the run length, so that a long one does not overflow
        exponent = 2 * delta * (threshold + _OVERSHOOT)
        return exponent + math.log1p(-(1 + exponent) * math.exp(-exponent)) - wanted

    wanted = math.log(4 * delta**2 * run_length)
    if excess(0.0) >= 0:
        raise ValueError(f"a run length of {run_length:g} is too short for delta = {delta:g}: give a longer one")
    return float(brentq(excess, 0.0, (wanted + 10) / (2 * delta) + 10))


def _sorted(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"a sample is a row of numbers, not of shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("a value is not a finite number")
    return np.sort(x)
