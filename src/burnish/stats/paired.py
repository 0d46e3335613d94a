"""Two systems on the same items: is the difference real? Arrays in, verdict out."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from burnish.stats.bootstrap import bca_interval
from burnish.stats.clustered import cluster_sums, clustered_mean
from burnish.stats.difference import Difference, t_equivalence
from burnish.stats.discordance import mcnemar_exact, newcombe_paired_interval, tango_equivalence
from burnish.stats.levels import require_alpha, require_margin
from burnish.stats.power import PairedMeans, PairedProportions
from burnish.stats.sign_flips import sign_flip_p_value


def compare_paired(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    alpha: float = 0.05,
    margin: float | None = None,
) -> Difference:
    """Compare the scores of two systems item by item; an item is the mean of its samples.

    Of 0 and 1: exact McNemar, Newcombe's paired interval, and Tango's score tests for equivalence. Of other numbers:
    sign flips, the BCa bootstrap, and two one-sided t tests. Where items share a cluster: sign flips of whole clusters,
    and cluster-robust t on C - 1 degrees of freedom.

    Raises:
        ValueError: not the same items, none, a score that is not finite, an impossible alpha or margin.
    """
    require_alpha(alpha)
    require_margin(margin)
    a, b = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"the two systems need results for the same items, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a score is not a finite number: leave out the items that have none")
    shared: dict[str, Any] = {
        "mean_a": float(a.mean()),
        "mean_b": float(b.mean()),
        "difference": float((b - a).mean()),
        "alpha": alpha,
        "margin": margin,
    }
    if clusters is not None and len(set(clusters)) < len(clusters):
        return _clustered(b - a, clusters, shared)
    if np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all():
        return _binary(a == 1, b == 1, shared)
    return _scores(b - a, shared, is_unit_range=bool(min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) <= 1))


def _binary(a: NDArray[np.bool_], b: NDArray[np.bool_], shared: dict[str, Any]) -> Difference:
    n, both, only_a, only_b = len(a), int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    level, margin = 1 - shared["alpha"], shared["margin"]
    low, high = newcombe_paired_interval(both, only_b, only_a, n - both - only_a - only_b, level=level)
    return Difference(
        unit="item",
        n=n,
        low=low,
        high=high,
        interval="Newcombe paired",
        p_value=mcnemar_exact(only_a, only_b),
        test="exact McNemar",
        p_equivalent=None if margin is None else _binary_equivalence(only_b, only_a, n, margin),
        design=PairedProportions(discordance=(only_a + only_b) / n) if only_a + only_b else None,
        **shared,
    )


def _scores(differences: NDArray[np.float64], shared: dict[str, Any], *, is_unit_range: bool) -> Difference:
    n, margin = len(differences), shared["margin"]
    has_spread = _has_spread(differences)
    sd = float(differences.std(ddof=1)) if has_spread else 0.0
    p_equivalent = None
    if margin is not None and has_spread:
        p_equivalent = t_equivalence(shared["difference"], sd / math.sqrt(n), n - 1, margin)
    elif margin is not None:  # no item differs: as for right and wrong, where a score cannot differ by more than 1
        is_bounded = is_unit_range and not differences.any()
        p_equivalent = _binary_equivalence(0, 0, n, margin) if is_bounded else 1.0
    low, high = bca_interval(differences, level=1 - shared["alpha"]) if has_spread else (math.nan, math.nan)
    return Difference(
        unit="item",
        n=n,
        low=low,
        high=high,
        interval="BCa bootstrap" if has_spread else "none: every item differs by the same",
        p_value=sign_flip_p_value(differences),
        test="sign-flip permutation",
        p_equivalent=p_equivalent,
        design=PairedMeans(sd_difference=sd) if has_spread else None,
        **shared,
    )


def _clustered(differences: NDArray[np.float64], clusters: Sequence[Hashable], shared: dict[str, Any]) -> Difference:
    found = clustered_mean(differences, clusters, level=1 - shared["alpha"])
    sums, _ = cluster_sums(differences, clusters)
    count, margin = found.num_clusters, shared["margin"]
    has_spread = count > 1 and found.cr1 > 1e-12 * float(np.abs(differences).max())
    p_equivalent = None
    if margin is not None:
        p_equivalent = t_equivalence(found.mean, found.cr1, count - 1, margin) if has_spread else 1.0
    missing = "none: all items share one cluster" if count == 1 else "none: the clusters have no spread"
    return Difference(
        unit="cluster",
        n=count,
        low=found.low if has_spread else math.nan,
        high=found.high if has_spread else math.nan,
        interval="cluster-robust t" if has_spread else missing,
        p_value=sign_flip_p_value(sums),
        test="sign flips of clusters",
        p_equivalent=p_equivalent,
        design=PairedMeans(sd_difference=found.cr1 * math.sqrt(count)) if has_spread else None,
        **shared,
    )


def _binary_equivalence(only_first: int, only_second: int, n: int, margin: float) -> float:
    return tango_equivalence(only_first, only_second, n, margin) if margin < 1 else 0.0


def _has_spread(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) > 1e-12 * np.abs(values).max())
