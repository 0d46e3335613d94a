"""Many p-values at once. An adjusted p-value below alpha is a finding at alpha.

A test that gave no p-value is NaN, stays NaN, and counts as a test.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjusted so that the chance of one false claim or more is at most alpha (Holm 1979): for claims."""
    p = _require_p_values(p_values)
    order = np.argsort(p, kind="stable")  # NaN last, where it is no step
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def holm_of_given(p_values: Sequence[float | None]) -> list[float | None]:
    """The same where some questions were not asked: None stays None, and does not count."""
    adjusted = iter(holm([p for p in p_values if p is not None]).tolist())
    return [None if p is None else next(adjusted) for p in p_values]


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjusted so that at most a share alpha of the findings is expected to be false (1995): for a screen of slices.

    Holds for independent p-values and for positively dependent ones.
    """
    p = _require_p_values(p_values)
    if len(p) == 0:
        return p
    adjusted: NDArray[np.float64] = false_discovery_control(np.nan_to_num(p, nan=1.0), method="bh")
    return np.where(np.isnan(p), np.nan, adjusted)


def _require_p_values(p_values: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or np.any((p < 0) | (p > 1)):
        raise ValueError("p-values must lie between 0 and 1")
    return p
