import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import t
from statsmodels.stats.proportion import proportion_confint

from burnish.evaluation.figures import Figure, figures, interval_of_difference, largest_gap, mean_figure
from burnish.evaluation.table import ScoreTable
from burnish.stats.intervals import wilson_interval


def table(scores, clusters: Sequence[str] | None = None, **slices: Sequence[str]) -> ScoreTable:
    scores_IK = np.array(scores, dtype=np.float64)
    scores_IK = scores_IK[:, None] if scores_IK.ndim == 1 else scores_IK
    return ScoreTable(
        label="m",
        ids=tuple(map(str, range(len(scores_IK)))),
        scores_IK=scores_IK,
        clusters=None if clusters is None else tuple(clusters),
        slices={name: tuple(values) for name, values in slices.items()},
        settings={},
        origin={},
    )


def test_one_answer_right_or_wrong_is_wilson() -> None:
    figure = mean_figure(table([1] * 81 + [0] * 182))  # Newcombe 1998a, table II
    assert (round(figure.low, 4), round(figure.high, 4)) == (0.2553, 0.3662)
    assert (figure.measure, figure.method, figure.n) == ("accuracy", "Wilson", 263)
    assert (figure.low, figure.high) == pytest.approx(proportion_confint(81, 263, method="wilson"))


def test_clustered_error_of_the_published_vector() -> None:
    clusters = [c for c in "abcd" for _ in range(3)]
    figure = mean_figure(table([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0], clusters))
    assert figure.method == "cluster-robust t, 4 clusters"
    half = t.ppf(0.975, 3) * 0.2151657
    assert figure.value == 0.5
    assert figure.low == 0.0 and figure.high == 1.0  # the interval is wider than what a share can be
    assert half > 0.5
    narrow = mean_figure(table([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0], clusters), level=0.5)
    assert narrow.high - narrow.value == pytest.approx(t.ppf(0.75, 3) * 0.2151657, abs=1e-6)


def test_several_answers_count_as_their_items_mean() -> None:
    scores = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1]]
    figure = mean_figure(table(scores))
    means = np.mean(scores, axis=1)
    error = means.std(ddof=1) / 2
    assert figure.method == "t on item means" and figure.n == 4
    assert figure.value == pytest.approx(means.mean())
    assert figure.low == pytest.approx(max(0, means.mean() - t.ppf(0.975, 3) * error))


@pytest.mark.parametrize("scores", [[[1, 1], [1, 1], [1, 1]], [[0, 0]] * 3])
def test_outcomes_that_are_all_equal_are_not_certain(scores) -> None:
    figure = mean_figure(table(scores))
    assert (figure.low, figure.high) == pytest.approx(wilson_interval(3 if scores[0][0] else 0, 3))
    clustered = mean_figure(table(scores, ["a", "a", "b"]))
    assert (clustered.low, clustered.high) == pytest.approx(wilson_interval(2 if scores[0][0] else 0, 2))


def test_no_spread_of_numbers_has_no_interval() -> None:
    figure = mean_figure(table([2.5, 2.5, 2.5]))
    assert figure.value == 2.5 and math.isnan(figure.low) and figure.method == "no spread, no interval"


def test_an_answer_without_a_score_is_wrong_where_scores_are_shares_and_left_out_otherwise() -> None:
    assert mean_figure(table([1, 1, math.nan, 0])).value == 0.5
    figure = mean_figure(table([-2.0, 4.0, math.nan]))
    assert (figure.value, figure.n) == (1.0, 2)
    assert mean_figure(table([math.nan, math.nan])).method == "no item has a score"


def test_newcombe_for_the_difference_of_independent_shares() -> None:
    def of(right: int, n: int) -> Figure:
        return mean_figure(table([1] * right + [0] * (n - right)))

    low, high = interval_of_difference(of(56, 70), of(48, 80))  # Newcombe 1998b, table II, method 10
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_slices_and_the_largest_gap_between_them() -> None:
    kinds = ["a"] * 20 + ["b"] * 20 + ["c"] * 20
    scores = [1] * 18 + [0] * 2 + [1] * 10 + [0] * 10 + [1] * 12 + [0] * 8
    found = figures(table(scores, kind=kinds))
    assert [(each.of, each.n) for each in found] == [
        ("all", 60),
        ("kind=a", 20),
        ("kind=b", 20),
        ("kind=c", 20),
        ("kind: a - b", 40),
    ]
    gap = found[-1]
    assert gap.value == pytest.approx(0.4)
    low_a, high_a = wilson_interval(18, 20, level=1 - 0.05 / 3)
    low_b, high_b = wilson_interval(10, 20, level=1 - 0.05 / 3)
    assert gap.low == pytest.approx(0.4 - math.hypot(0.9 - low_a, high_b - 0.5))
    assert gap.high == pytest.approx(0.4 + math.hypot(high_a - 0.9, 0.5 - low_b))


def test_a_slice_without_any_score_has_no_gap() -> None:
    found = figures(table([-1.0, -2.0, 3.0, 5.0, math.nan], kind="aabbc"))
    assert [(each.of, each.n) for each in found[1:]] == [
        ("kind=a", 2),
        ("kind=b", 2),
        ("kind=c", 0),
        ("kind: b - a", 4),
    ]
    assert math.isnan(found[3].value) and found[4].value == 5.5 and found[4].method == "MOVER"
    assert len(figures(table([-1.0, -2.0, math.nan], kind="aab"))) == 3


@pytest.mark.slow
def test_equal_groups_seldom_have_a_gap() -> None:
    rng = np.random.default_rng(0)
    kinds = [str(i % 5) for i in range(200)]
    false = sum(largest_gap(table(rng.random(200) < 0.6, kind=kinds), "kind").low > 0 for _ in range(300))
    assert false <= 15 + 3 * math.sqrt(300 * 0.05 * 0.95)  # at most nominal, with the simulation's own spread
