"""Many p-values at once. An adjusted p-value below alpha is a finding at alpha."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjusted so that the chance of one false claim or more is at most alpha (Holm 1979): for claims."""
    p = _require_p_values(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjusted so that at most a share alpha of the findings is expected to be false (1995): for a screen of slices.

    Holds for independent p-values and for positively dependent ones.
    """
    p = _require_p_values(p_values)
    return np.asarray(false_discovery_control(p, method="bh"), dtype=np.float64) if len(p) else p


def _require_p_values(p_values: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise ValueError("p-values must lie between 0 and 1, none of them NaN")
    return p
