"""A method is what is compared when its runs differ by their seed alone: the seed is what counts once."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t

from burnish.stats.difference import Difference, t_equivalence
from burnish.stats.levels import require_alpha, require_margin
from burnish.stats.power import Design, PairedMeans, TwoMeans
from burnish.stats.variance import ErrorParts

FEW_SEEDS = 5


def compare_seeds(
    means_a_S: ArrayLike,
    means_b_S: ArrayLike,
    *,
    is_paired: bool,
    alpha: float = 0.05,
    margin: float | None = None,
) -> Difference:
    """Compare two methods by the mean score of each run.

    Paired, where the place stands for a seed that both share: the paired t test. Otherwise Welch's t test (1947). An
    arm of a single value is a fixed checkpoint: the other's runs are held against it. The items are taken as given.

    Raises:
        ValueError: fewer than two runs in both arms, a mean that is not finite, an impossible alpha or margin.
    """
    require_alpha(alpha)
    require_margin(margin)
    a, b = np.asarray(means_a_S, dtype=np.float64), np.asarray(means_b_S, dtype=np.float64)
    if a.ndim != 1 or b.ndim != 1 or min(len(a), len(b)) < 1 or max(len(a), len(b)) < 2:
        raise ValueError(f"one seed says nothing about a method: got {a.size} and {b.size}, two are the least")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("the mean of a run is not a finite number")
    if is_paired and len(a) != len(b):
        raise ValueError(f"shared seeds come in pairs, got {len(a)} and {len(b)} runs")
    design: Design | None
    if is_paired or min(len(a), len(b)) == 1:
        differences = b - a
        n, freedom = len(differences), len(differences) - 1.0
        error = float(differences.std(ddof=1)) / math.sqrt(n)
        test = "paired t over seeds" if is_paired else "t over seeds against a fixed checkpoint"
        sd = error * math.sqrt(n)
        design = PairedMeans(sd_difference=sd) if sd > 0 else None
    else:
        error, freedom = _welch(a, b)
        n, test = min(len(a), len(b)), "Welch's t over seeds"
        sd = math.sqrt((float(a.var(ddof=1)) + float(b.var(ddof=1))) / 2)
        design = TwoMeans(sd=sd) if sd > 0 else None
    difference = float(b.mean() - a.mean())
    has_spread = error > 1e-12 * max(float(np.abs(a).max()), float(np.abs(b).max()))
    half = float(t.ppf(1 - alpha / 2, freedom)) * error if has_spread else math.nan
    p_equivalent = None
    if margin is not None:
        p_equivalent = t_equivalence(difference, error, freedom, margin) if has_spread else 1.0
    return Difference(
        unit="seed",
        n=n,
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=difference,
        low=difference - half,
        high=difference + half,
        interval="t" if has_spread else "none: the seeds do not differ",
        p_value=float(2 * t.sf(abs(difference) / error, freedom)) if has_spread else 1.0,
        test=test,
        alpha=alpha,
        margin=margin,
        p_equivalent=p_equivalent,
        design=design if has_spread else None,
    )


def compare_seeds_and_items(
    mean_a: float,
    mean_b: float,
    errors: ErrorParts,
    *,
    num_seeds: int,
    alpha: float = 0.05,
    margin: float | None = None,
) -> Difference:
    """Compare two methods over seeds and items that are both drawn at random: t on the error that both make, each part
    on its own degrees of freedom (`ErrorParts.half_width`).

    Neither the seeds nor the items alone would do: each takes the other as given, and so for sure.

    Raises:
        ValueError: an impossible alpha or margin.
    """
    require_alpha(alpha)
    require_margin(margin)
    difference, error = mean_b - mean_a, math.sqrt(errors.squared_error)
    has_spread = error > 1e-12 * max(abs(mean_a), abs(mean_b))
    half = errors.half_width(alpha / 2) if has_spread else math.nan
    p_equivalent = None
    if margin is not None:
        p_equivalent = errors.tail(margin - abs(difference)) if has_spread else 1.0
    degrees = [f"{part.freedom:.3g}" for part in (errors.over_seeds, errors.over_items) if part is not None]
    return Difference(
        unit="both",
        n=num_seeds,
        mean_a=mean_a,
        mean_b=mean_b,
        difference=difference,
        low=difference - half,
        high=difference + half,
        interval="t" if has_spread else "none: neither seeds nor items differ",
        p_value=2 * errors.tail(abs(difference)) if has_spread else 1.0,
        test=f"t over seeds and items, {' and '.join(degrees)} degrees",
        alpha=alpha,
        margin=margin,
        p_equivalent=p_equivalent,
        design=None,
    )


def _welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Standard error of the difference of two means, and its degrees of freedom by Welch and Satterthwaite."""
    parts = [float(each.var(ddof=1)) / len(each) for each in (a, b)]
    total = sum(parts)
    if total == 0:
        return 0.0, 1.0
    freedom = total**2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, (a, b), strict=True))
    return math.sqrt(total), freedom
