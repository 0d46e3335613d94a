"""Many runs on several tasks in a few robust numbers (Agarwal et al. 2021, arXiv 2108.13264).

`scores_RT` is runs by tasks: a row is one training seed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import mannwhitneyu, trim_mean


def interquartile_mean(scores_RT: ArrayLike) -> float:
    """Mean of the middle half of all scores: a quarter, rounded down, is cut off at each end."""
    return float(trim_mean(_scores(scores_RT).ravel(), 0.25))


def probability_of_improvement(scores_x_RT: ArrayLike, scores_y_RT: ArrayLike) -> float:
    """P(X > Y): the chance that a run of X scores more than a run of Y, averaged over tasks; a tie is half."""
    x, y = _scores(scores_x_RT), _scores(scores_y_RT)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"X has {x.shape[1]} tasks and Y {y.shape[1]}")
    statistic = mannwhitneyu(x, y, axis=0, method="asymptotic").statistic
    return float(np.mean(statistic)) / (len(x) * len(y))


def performance_profile(scores_RT: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """For each threshold, the share of runs and tasks that score more."""
    ordered = np.sort(_scores(scores_RT).ravel())
    above: NDArray[np.float64] = 1 - np.searchsorted(ordered, np.asarray(thresholds), side="right") / len(ordered)
    return above


def stratified_interval(
    statistic: Callable[..., Any],
    *scores_RT: ArrayLike,
    runs_span_tasks: bool,
    level: float = 0.95,
    num_resamples: int = 2_000,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap interval of `statistic(*scores_RT)`, whose value may be an array. Runs are what is drawn.

    With `runs_span_tasks` a row is one model seen on all tasks, and is drawn whole; otherwise every task has runs of
    its own, drawn task by task. Drawing by task what was trained once makes the interval too narrow.

    Raises:
        ValueError: fewer than two runs, from which no spread can be told.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level must lie between 0 and 1, not {level:g}")
    arms = [_scores(scores) for scores in scores_RT]
    if any(len(arm) < 2 for arm in arms):
        raise ValueError("an interval over runs needs at least two runs")
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(num_resamples):
        resampled = []
        for arm in arms:
            runs, tasks = arm.shape
            rows = rng.integers(runs, size=(runs, 1 if runs_span_tasks else tasks))
            resampled.append(arm[rows, np.arange(tasks)])
        drawn.append(statistic(*resampled))
    low, high = np.quantile(np.asarray(drawn, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _scores(scores_RT: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(scores_RT, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must be runs by tasks, got shape {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN: a run that failed must be left out or scored")
    return scores
