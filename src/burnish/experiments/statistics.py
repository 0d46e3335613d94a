"""The few statistics that an experiment's analysis needs. Arrays in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDING = 1e-24  # squares of residuals this small beside the response are rounding, not spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its interval, and the two-sided p-value of its being 0; NaN where there is none."""

    value: float
    low: float
    high: float
    p_value: float
    standard_error: float
    degrees: int


def t_estimate(value: float, standard_error: float, degrees: int, *, level: float) -> Estimate:
    """From a standard error on so many degrees of freedom. Without spread there is neither interval nor p-value."""
    from scipy.stats import t

    if degrees < 1 or not standard_error > 0:
        nan = math.nan
        return Estimate(value=value, low=nan, high=nan, p_value=nan, standard_error=nan, degrees=degrees)
    half = float(t.ppf(0.5 + level / 2, degrees)) * standard_error
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        p_value=float(2 * t.sf(abs(value) / standard_error, degrees)),
        standard_error=standard_error,
        degrees=degrees,
    )


def mean_estimate(values: ArrayLike, *, level: float) -> Estimate:
    """The mean with its t-interval. Of differences within blocks, this is the paired t-test."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n == 0:
        return t_estimate(math.nan, math.nan, 0, level=level)
    error = float(array.std(ddof=1)) / math.sqrt(n) if n > 1 and np.ptp(array) > 0 else math.nan
    return t_estimate(float(array.mean()), error, n - 1, level=level)


def equivalence_p_value(estimate: Estimate, margin: float) -> float:
    """Of two one-sided t-tests (Schuirmann 1987): that the value lies outside of ±margin. NaN without spread."""
    from scipy.stats import t

    nearest = margin - abs(estimate.value)
    return float(t.sf(nearest / estimate.standard_error, estimate.degrees)) if estimate.degrees > 0 else math.nan


def least_squares(
    columns: Sequence[NDArray[np.float64]], response: NDArray[np.float64], *, level: float
) -> list[Estimate]:
    """The coefficient of each column in an ordinary least-squares fit, NaN where the columns do not determine it."""
    matrix = np.column_stack(columns)
    degrees = len(response) - int(np.linalg.matrix_rank(matrix))
    inverse = np.linalg.pinv(matrix.T @ matrix)
    coefficients = inverse @ matrix.T @ response
    residual = response - matrix @ coefficients
    has_spread = degrees > 0 and float(residual @ residual) > _ROUNDING * float(response @ response)
    variance = float(residual @ residual) / degrees if has_spread else math.nan
    projector = np.linalg.pinv(matrix) @ matrix
    estimates = []
    for index, value in enumerate(coefficients):
        is_determined = bool(np.isclose(projector[index, index], 1.0))
        error = math.sqrt(variance * inverse[index, index]) if has_spread else math.nan
        estimates.append(t_estimate(float(value) if is_determined else math.nan, error, degrees, level=level))
    return estimates


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979); NaN stays NaN, and counts as a test."""
    return _stepwise(p_values, lambda rank, count: count - rank, is_descending=False)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Benjamini and Hochberg (1995); NaN stays NaN, and counts as a test."""
    return _stepwise(p_values, lambda rank, count: count / (rank + 1), is_descending=True)


def _stepwise(p_values: Sequence[float], factor: Callable[[int, int], float], *, is_descending: bool) -> list[float]:
    adjusted = [math.nan] * len(p_values)
    order = sorted((index for index, p in enumerate(p_values) if not math.isnan(p)), key=lambda index: p_values[index])
    steps = [(index, min(1.0, p_values[index] * factor(rank, len(p_values)))) for rank, index in enumerate(order)]
    bound = 1.0 if is_descending else 0.0
    for index, value in reversed(steps) if is_descending else steps:
        bound = min(bound, value) if is_descending else max(bound, value)
        adjusted[index] = bound
    return adjusted


def smallest_detectable(standard_error: float, degrees: int, *, alpha: float, power: float) -> float:
    """The effect that a two-sided t-test finds with this power, in the unit of the standard error.

    From the noncentral t distribution, as the mean over the spread that the runs may show by chance: scipy's own
    function of it is NaN for one degree of freedom. Infinite without a degree of freedom.
    """
    from scipy.integrate import quad
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm, t

    if degrees < 1:
        return math.inf
    critical = float(t.isf(alpha / 2, degrees))

    def found_at(share: float, shift: float) -> float:
        bound = critical * math.sqrt(chi2.ppf(share, degrees) / degrees)
        return float(norm.sf(bound - shift) + norm.cdf(-bound - shift))

    def missing(shift: float) -> float:
        return float(quad(found_at, 0.0, 1.0, args=(shift,), limit=200)[0]) - power

    high = critical + 1.0
    while missing(high) < 0:
        high *= 2
    return float(brentq(missing, 0.0, high, xtol=1e-6)) * standard_error


def interquartile_mean(values: ArrayLike) -> float:
    """The mean without the lowest and the highest quarter (Agarwal et al. 2021)."""
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(values, dtype=np.float64), 0.25))


def bootstrap_interval(
    values: ArrayLike, statistic: Callable[[ArrayLike], float], *, level: float, seed: int
) -> tuple[float, float]:
    """Percentile bootstrap over the values, as rliable does over runs."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(array), size=(2_000, len(array)))
    low, high = np.quantile([statistic(array[draw]) for draw in draws], [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def sign_e_value(num_better: int, num_worse: int) -> float:
    """Evidence against a fair coin, valid at every look: 2^n / ((n + 1) C(n, b)), a uniform mixture over the odds."""
    n = num_better + num_worse
    return 2.0**n / ((n + 1) * math.comb(n, num_better))
