import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ecdf, trim_mean

from burnish.stats.aggregate import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)

X = [[1, 2], [2, 2], [1, 1], [2, 1]]  # rliable's own tests
Y = [[1, 1], [2, 2], [3, 3]]


def test_published_by_rliable() -> None:
    assert interquartile_mean(X) == 1.5
    assert interquartile_mean(Y) == 2.0
    assert interquartile_mean([[0], [1], [2], [100]]) == 1.5
    assert probability_of_improvement(X, Y) == pytest.approx(1 / 3)


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=5),
)
def test_improvement_by_counting_pairs(x: list[list[int]], y: list[list[int]]) -> None:
    wins = [
        (first[task] > second[task]) + (first[task] == second[task]) / 2
        for task in range(3)
        for first in x
        for second in y
    ]
    assert probability_of_improvement(x, y) == pytest.approx(float(np.mean(wins)))
    assert probability_of_improvement(y, x) == pytest.approx(1 - float(np.mean(wins)))


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=30), st.lists(st.floats(-4, 4), min_size=1, max_size=9))
def test_profile_and_iqm_against_scipy(scores: list[float], thresholds: list[float]) -> None:
    expected = ecdf(scores).sf.evaluate(thresholds)
    assert performance_profile([[score] for score in scores], thresholds) == pytest.approx(expected)
    assert interquartile_mean([[score] for score in scores]) == pytest.approx(trim_mean(scores, 0.25))


def test_profile_by_hand() -> None:
    # of 1 2 2 2 1 1 2 1: all are above 0, four above 1, none above 2
    assert performance_profile(X, [0, 1, 1.5, 2]) == pytest.approx([1, 0.5, 0.5, 0])


@pytest.mark.slow
def test_the_interval_of_one_task_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for index in range(300):
        low, high = stratified_interval(
            np.mean, rng.normal(1, 1, (30, 1)), runs_span_tasks=True, num_resamples=300, seed=index
        )
        covered += bool(low <= 1 <= high)
    assert 0.90 <= covered / 300 <= 0.98


def test_runs_that_span_tasks_are_drawn_whole() -> None:
    """What a run is worth shows on all tasks: drawing by task would hide two thirds of the spread."""
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 1, (20, 1)) + rng.normal(0, 0.01, (20, 9))
    widths = {}
    for whole in (True, False):
        low, high = stratified_interval(np.mean, scores, runs_span_tasks=whole)
        widths[whole] = float(high - low)
    assert widths[False] == pytest.approx(widths[True] / 3, rel=0.1)
    sd = np.std(scores.mean(axis=1)) / np.sqrt(20)
    assert widths[True] == pytest.approx(2 * 1.96 * sd, rel=0.1)


def test_intervals_of_several_numbers_and_of_two_arms() -> None:
    low, high = stratified_interval(
        lambda scores: performance_profile(scores, [0, 1, 2]), X, runs_span_tasks=False, num_resamples=200
    )
    assert low.shape == high.shape == (3,)
    assert (low[0], high[0], low[2], high[2]) == (1, 1, 0, 0) and low[1] < 0.5 < high[1]
    low, high = stratified_interval(probability_of_improvement, X, Y, runs_span_tasks=False, num_resamples=200)
    assert low < 1 / 3 < high
    again = stratified_interval(probability_of_improvement, X, Y, runs_span_tasks=False, num_resamples=200)
    assert (low, high) == again


def test_what_cannot_be_aggregated() -> None:
    with pytest.raises(ValueError, match="runs by tasks"):
        interquartile_mean([1.0, 2.0])
    with pytest.raises(ValueError, match="a score is NaN"):
        interquartile_mean([[math.nan, 1.0]])
    with pytest.raises(ValueError, match="X has 2 tasks and Y 1"):
        probability_of_improvement(X, [[1], [2]])
    with pytest.raises(ValueError, match="at least two runs"):
        stratified_interval(np.mean, [[1.0, 2.0]], runs_span_tasks=True)
    with pytest.raises(ValueError, match="level must lie between"):
        stratified_interval(np.mean, X, runs_span_tasks=True, level=1.5)
