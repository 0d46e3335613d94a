"""The figures of one evaluation, each with its interval, its number of items, and the method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from burnish.evaluation.table import ScoreTable
from burnish.stats.clustered import clustered_mean
from burnish.stats.intervals import beta_interval, clopper_pearson_interval, wilson_interval

ShareInterval = Literal["wilson", "clopper-pearson", "beta"]
"""Of a share of right answers. Wilson's by default; Clopper and Pearson's covers at least at its level; that of the
posterior under a uniform prior."""
_OF_SHARES = {
    "wilson": ("Wilson", wilson_interval),
    "clopper-pearson": ("Clopper-Pearson", clopper_pearson_interval),
    "beta": ("Beta(1, 1)", beta_interval),
}
ITEM_MEANS = "t on item means"
CLUSTERED = "cluster-robust t"
NO_SPREAD = "no spread, no interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A mean over `n` items with its interval; NaN ends where there is none. `of` says of which items."""

    measure: str
    of: str
    value: float
    low: float
    high: float
    n: int
    method: str


def figures(table: ScoreTable, *, level: float = 0.95, interval: ShareInterval = "wilson") -> list[Figure]:
    """The mean score of all items, then of every value of every slice, then the largest gap between values of a slice.

    An answer without a score counts as 0 where all scores lie between 0 and 1, and is left out otherwise.
    """
    found = [mean_figure(table, level=level, interval=interval)]
    for name, values in table.slices.items():
        own = []
        for value in sorted(set(values)):
            chosen = np.array([each == value for each in values])
            own.append(replace(mean_figure(table, chosen, level=level, interval=interval), of=f"{name}={value}"))
        found += own
        if sum(figure.n > 0 for figure in own) > 1:
            found.append(largest_gap(table, name, level=level))
    return found


def mean_figure(
    table: ScoreTable,
    chosen_I: NDArray[np.bool_] | None = None,
    *,
    level: float = 0.95,
    interval: ShareInterval = "wilson",
) -> Figure:
    """The mean of some of a table's items, or of all; an item is the mean of its answers."""
    scores_IK, measure = usable_scores(table)
    rows = np.flatnonzero(np.ones(len(table.ids), bool) if chosen_I is None else chosen_I)
    rows = rows[np.isfinite(scores_IK[rows]).any(axis=1)]
    clusters = clusters_of(table)
    return items_figure(
        np.nanmean(scores_IK[rows], axis=1),
        [clusters[row] for row in rows],
        measure=measure,
        is_share=measure == "accuracy",
        level=level,
        interval=interval,
    )


def items_figure(
    values_I: NDArray[np.float64],
    clusters: Sequence[str],
    *,
    measure: str,
    is_share: bool,
    level: float = 0.95,
    interval: ShareInterval = "wilson",
) -> Figure:
    """The mean of one value per item.

    Values that are all right or wrong, of items that share nothing: `interval`. Else the t interval of the items'
    values, and where items share something the cluster-robust standard error (CR1, with one degree of freedom less than
    clusters; Miller 2024, arXiv 2411.00640, section 2.2). That of a share ends at 0 and 1.
    """
    if len(values_I) == 0:
        nan = math.nan
        return Figure(measure=measure, of="all", value=nan, low=nan, high=nan, n=0, method="no item has a score")
    low, high, method = _interval(values_I, clusters, is_share=is_share, level=level, interval=interval)
    value = float(values_I.mean())
    return Figure(measure=measure, of="all", value=value, low=low, high=high, n=len(values_I), method=method)


def clusters_of(table: ScoreTable) -> tuple[str, ...]:
    """What each item shares with others; its own name where items share nothing."""
    return table.ids if table.clusters is None else table.clusters


def usable_scores(table: ScoreTable) -> tuple[NDArray[np.float64], str]:
    """The scores with what stands for a missing one, and the measure: accuracy where each is right or wrong."""
    scores_IK = table.scores_IK
    known = scores_IK[np.isfinite(scores_IK)]
    if len(known) and known.min() >= 0 and known.max() <= 1:
        scores_IK = np.nan_to_num(scores_IK, nan=0.0)
    return scores_IK, "accuracy" if set(np.unique(known)) <= {0.0, 1.0} else "mean score"


def _interval(
    means_I: NDArray[np.float64], clusters: Sequence[str], *, is_share: bool, level: float, interval: ShareInterval
) -> tuple[float, float, str]:
    n, num_clusters = len(means_I), len(set(clusters))
    is_clustered = num_clusters < n
    has_spread = np.ptp(means_I) > 0
    if is_share and set(np.unique(means_I)) <= {0.0, 1.0} and (not is_clustered or not has_spread):
        # without spread a t interval would have no width, as if all were known for sure
        count = num_clusters if is_clustered else n
        name, of_share = _OF_SHARES[interval]
        low, high = of_share(round(float(means_I.mean()) * count), count, level=level)
        return low, high, f"{name} on {num_clusters} clusters" if is_clustered else name
    if not has_spread or num_clusters < 2:
        return math.nan, math.nan, NO_SPREAD if num_clusters > 1 else "one cluster, no interval"
    found = clustered_mean(means_I, clusters, level=level)
    low, high = found.low, found.high
    if is_share:
        low, high = max(0.0, low), min(1.0, high)
    return low, high, f"{CLUSTERED}, {num_clusters} clusters" if is_clustered else ITEM_MEANS


def largest_gap(table: ScoreTable, name: str, *, level: float = 0.95) -> Figure:
    """The largest difference between two values of a slice, with an interval that holds for all pairs at once.

    At least two values must have items with a score.

    The largest of several differences is large by chance alone, so each value's interval is taken at the level that
    Bonferroni's correction for the number of pairs asks for; two of them give the interval of their difference as in
    Newcombe 1998 (Statistics in Medicine 17:873, method 10), which works for any interval (MOVER).
    """
    values = table.slices[name]
    chosen = {value: np.array([each == value for each in values]) for value in sorted(set(values))}
    names = [value for value in chosen if mean_figure(table, chosen[value]).n > 0]
    num_pairs = len(names) * (len(names) - 1) // 2
    strict = 1 - (1 - level) / num_pairs
    own = {value: mean_figure(table, chosen[value], level=strict) for value in names}
    pairs = [(a, b) if own[a].value >= own[b].value else (b, a) for a, b in combinations(names, 2)]
    high_value, low_value = max(pairs, key=lambda pair: own[pair[0]].value - own[pair[1]].value)
    low, high = interval_of_difference(own[high_value], own[low_value])
    return Figure(
        measure="largest gap",
        of=f"{name}: {high_value} - {low_value}",
        value=own[high_value].value - own[low_value].value,
        low=low,
        high=high,
        n=own[high_value].n + own[low_value].n,
        method="MOVER" if num_pairs == 1 else f"MOVER, Bonferroni for {num_pairs} pairs",
    )


def interval_of_difference(first: Figure, second: Figure) -> tuple[float, float]:
    """Interval of first - second, of two figures of independent items, from the interval of each."""
    difference = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return difference - below, difference + above


def counts(samples: Sequence[Mapping[str, object]]) -> dict[str, int]:
    """Answers, those without a score, and those that were cut off."""
    return {
        "answers": len(samples),
        "unscored": sum(line["failure"] is not None for line in samples),
        "cut_off": sum(line["finish_reason"] == "length" for line in samples),
    }
