"""Means and coefficients of least squares with their t-intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import f, t

_ROUNDING = 1e-24  # squares of residuals this small beside the response are rounding, not spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """A mean or coefficient with its interval, and the two-sided p-value of its being 0; NaN where there is none."""

    value: float
    low: float
    high: float
    p_value: float
    standard_error: float
    degrees: float


def mean_with_t(values: ArrayLike, *, level: float) -> Coefficient:
    """The mean with its t-interval. Of differences within blocks, this is the paired t-test."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0:
        return _with_t(math.nan, math.nan, 0, level=level)
    return least_squares([np.ones(len(array))], array, level=level)[0]


def least_squares(
    columns: Sequence[NDArray[np.float64]], response: NDArray[np.float64], *, level: float
) -> list[Coefficient]:
    """The coefficient of each column in an ordinary least-squares fit, NaN where the columns do not determine it.

    A fit that is exact but for rounding has no spread, and says nothing of how sure it is.
    """
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
        estimates.append(_with_t(float(value) if is_determined else math.nan, error, degrees, level=level))
    return estimates


def added_columns_p(
    columns: Sequence[NDArray[np.float64]], added: Sequence[NDArray[np.float64]], response: NDArray[np.float64]
) -> float:
    """p-value of the F test that a fit needs none of the added columns; NaN where they add nothing, or nothing is left
    to judge them by.
    """
    left, degrees = zip(*(_residual(each, response) for each in (columns, [*columns, *added])), strict=True)
    num_added = degrees[0] - degrees[1]
    if num_added < 1 or degrees[1] < 1 or left[1] <= _ROUNDING * float(response @ response):
        return math.nan
    return float(f.sf((left[0] - left[1]) / num_added / (left[1] / degrees[1]), num_added, degrees[1]))


def _residual(columns: Sequence[NDArray[np.float64]], response: NDArray[np.float64]) -> tuple[float, int]:
    """Sum of squares that a fit leaves, and its degrees of freedom."""
    matrix = np.column_stack(columns)
    residual = response - matrix @ (np.linalg.pinv(matrix) @ response)
    return float(residual @ residual), len(response) - int(np.linalg.matrix_rank(matrix))


def _with_t(value: float, standard_error: float, degrees: int, *, level: float) -> Coefficient:
    """From a standard error on so many degrees of freedom. Without spread there is neither interval nor p-value."""
    if degrees < 1 or not standard_error > 0:
        nan = math.nan
        return Coefficient(value=value, low=nan, high=nan, p_value=nan, standard_error=nan, degrees=degrees)
    half = float(t.ppf(0.5 + level / 2, degrees)) * standard_error
    return Coefficient(
        value=value,
        low=value - half,
        high=value + half,
        p_value=float(2 * t.sf(abs(value) / standard_error, degrees)),
        standard_error=standard_error,
        degrees=degrees,
    )
