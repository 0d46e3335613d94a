"""Does a model know how sure it may be?"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from burnish.stats.intervals import wilson_interval

Binning = Literal["equal_mass", "equal_width"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """A row of the reliability plot: answers whose confidence lies in [least, most], and Wilson's interval of `right`.

    The interval takes the answers as independent.
    """

    least: float
    most: float
    n: int
    confidence: float
    right: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Expected calibration error of `n` answers with its interval, and the table of the reliability plot.

    `error_if_calibrated` is what chance alone gives a perfectly calibrated model on these answers, `p_value` the
    chance that such a model has an error as large as `error`.
    """

    n: int
    error: float
    low: float
    high: float
    error_if_calibrated: float
    p_value: float
    binning: Binning
    bins: tuple[ReliabilityBin, ...]


def calibration(
    confidences: ArrayLike,
    is_right: ArrayLike,
    *,
    binning: Binning = "equal_mass",
    num_bins: int = 10,
    items: Sequence[Hashable] | None = None,
    level: float = 0.95,
    num_resamples: int = 2_000,
    seed: int = 0,
) -> Calibration:
    """Expected calibration error: the mean over answers of |share right - mean confidence| of their bin.

    The bins are made once, from these answers: equal numbers in each (equal confidences stay together), or equal widths
    on [0, 1]. Chance alone makes the error of a calibrated model positive, the more so the fewer answers a bin has, and
    a plain bootstrap would do that again. So with the gaps' noise drawn by bootstrap (of answers, or of whole `items`
    where several answers belong to one), `low` is the error less the sum of the noise's sizes, which is the most that
    noise can add, and `high` the error plus the noise along the signs seen. Both err on the careful side. The p-value
    draws outcomes from the confidences (Bröcker & Smith 2007), and takes answers as independent.

    Raises:
        ValueError: no answers, different numbers of the two, or confidences outside [0, 1].
    """
    sure, right = np.asarray(confidences, dtype=np.float64), np.asarray(is_right, dtype=np.float64)
    _require(sure, right, num_bins, level)
    edges = _edges(sure, binning, num_bins)
    bin_N = np.searchsorted(edges, sure, side="right")
    _, item_N = np.unique(np.arange(len(sure)) if items is None else _numbered(items, len(sure)), return_inverse=True)
    num_items, size = int(item_N.max()) + 1, len(edges) + 1

    rng = np.random.default_rng(seed)
    gaps_IB = np.zeros((num_items, size))
    np.add.at(gaps_IB, (item_N, bin_N), right - sure)
    answers_I = np.bincount(item_N)
    gaps_B = gaps_IB.sum(axis=0) / len(sure)
    signs_B = np.where(gaps_B < 0, -1, 1)
    sizes, along, by_chance = np.empty((3, num_resamples))
    for index in range(num_resamples):
        times_I = np.bincount(rng.integers(num_items, size=num_items), minlength=num_items)
        noise_B = (times_I @ gaps_IB) / (times_I @ answers_I) - gaps_B
        sizes[index], along[index] = np.abs(noise_B).sum(), signs_B @ noise_B
        outcomes = rng.random(len(sure)) < sure
        by_chance[index] = np.abs(np.bincount(bin_N, outcomes - sure, minlength=size)).sum() / len(sure)
    error = float(np.abs(gaps_B).sum())
    return Calibration(
        n=len(sure),
        error=error,
        low=max(0.0, error - float(np.quantile(sizes, (1 + level) / 2))),
        high=min(1.0, error - float(np.quantile(along, (1 - level) / 2))),
        error_if_calibrated=float(by_chance.mean()),
        p_value=float((1 + (by_chance >= error - 1e-12).sum()) / (1 + num_resamples)),
        binning=binning,
        bins=_table(sure, right, bin_N, level),
    )


def _require(sure: NDArray[np.float64], right: NDArray[np.float64], num_bins: int, level: float) -> None:
    if sure.shape != right.shape or sure.ndim != 1 or len(sure) == 0:
        raise ValueError(f"each answer needs a confidence and an outcome, got shapes {sure.shape} and {right.shape}")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("a confidence is not between 0 and 1")
    if not np.isin(right, (0.0, 1.0)).all():
        raise ValueError("an outcome is neither right (1) nor wrong (0)")
    if num_bins < 1:
        raise ValueError(f"{num_bins} bins: at least one is needed")
    if not 0 < level < 1:
        raise ValueError(f"the level must lie between 0 and 1, not {level:g}")


def _edges(sure: NDArray[np.float64], binning: Binning, num_bins: int) -> NDArray[np.float64]:
    """The inner edges; a confidence on an edge belongs above it."""
    inner = np.arange(1, num_bins) / num_bins
    if binning == "equal_width":
        return inner
    return np.unique(np.quantile(sure, inner, method="higher"))


def _numbered(items: Sequence[Hashable], n: int) -> NDArray[np.int64]:
    if len(items) != n:
        raise ValueError(f"{n} answers and {len(items)} items")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(item, len(numbers)) for item in items])


def _table(
    sure: NDArray[np.float64], right: NDArray[np.float64], bin_N: NDArray[np.intp], level: float
) -> tuple[ReliabilityBin, ...]:
    rows = []
    for each in np.unique(bin_N):
        inside = bin_N == each
        n, num_right = int(inside.sum()), int(right[inside].sum())
        low, high = wilson_interval(num_right, n, level=level)
        rows.append(
            ReliabilityBin(
                least=float(sure[inside].min()),
                most=float(sure[inside].max()),
                n=n,
                confidence=float(sure[inside].mean()),
                right=num_right / n,
                low=low,
                high=high,
            )
        )
    return tuple(rows)
