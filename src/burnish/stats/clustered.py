"""Means of items that share something: a passage, a template, a prompt. The cluster is what was drawn at random."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusteredMean:
    """The mean over items, its standard error twice, and a t-interval on `num_clusters` - 1 degrees of freedom.

    `miller` is the sum over clusters of squared sums of residuals, rooted, over n (Miller 2024, arXiv 2411.00640,
    eq. 4). `cr1` is that times sqrt(C / (C - 1)), as in statsmodels and inspect; the interval uses it. With one cluster
    there is neither (NaN).
    """

    num_clusters: int
    mean: float
    miller: float
    cr1: float
    low: float
    high: float


def clustered_mean(values: ArrayLike, clusters: Sequence[Hashable], *, level: float = 0.95) -> ClusteredMean:
    """Mean and cluster-robust interval of `values`, each of the cluster at its place.

    Raises:
        ValueError: no values, or not one cluster each.
    """
    each = np.asarray(values, dtype=np.float64)
    sums, sizes = cluster_sums(each, clusters)
    count, n = len(sums), len(each)
    mean = float(each.mean())
    if count == 1:
        nan = math.nan
        return ClusteredMean(num_clusters=1, mean=mean, miller=nan, cr1=nan, low=nan, high=nan)
    miller = float(np.sqrt(((sums - sizes * mean) ** 2).sum())) / n
    cr1 = miller * math.sqrt(count / (count - 1))
    half = float(t.ppf(0.5 + level / 2, count - 1)) * cr1
    return ClusteredMean(num_clusters=count, mean=mean, miller=miller, cr1=cr1, low=mean - half, high=mean + half)


def cluster_sums(
    values: NDArray[np.float64], clusters: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of values of each cluster, in the order of their first appearance.

    Raises:
        ValueError: no values, or not one cluster each.
    """
    if values.ndim != 1 or len(values) != len(clusters) or len(values) == 0:
        raise ValueError(f"each of {len(values)} values needs its cluster, got {len(clusters)}")
    names = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    index = np.fromiter((names[name] for name in clusters), dtype=np.int64, count=len(clusters))
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)
