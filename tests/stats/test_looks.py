"""Looks after every block: against a t test where there is one look, against naive looks, and what may not matter."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import norm, ttest_1samp

from burnish.stats.intervals import wilson_interval
from burnish.stats.looks import alpha_of_look, look_at_blocks

BLOCKS = st.lists(st.floats(-5, 5), min_size=2, max_size=6).filter(lambda x: np.std(x) > 1e-3)


def test_two_planned_blocks_are_one_t_test() -> None:
    look = look_at_blocks([0.1, 0.2], num_planned=2, alpha=0.3)
    # t = 3 on one degree of freedom: p = 1 - 2 atan(3) / pi
    assert look.p_value == pytest.approx(1 - 2 * math.atan(3) / math.pi, abs=0.004)
    peer = ttest_1samp([0.1, 0.2], 0).confidence_interval(0.7)
    assert (look.low, look.high) == pytest.approx(tuple(peer), rel=0.03)


def test_naive_looks_reach_the_level_and_no_more() -> None:
    rng, num_planned, trials = np.random.default_rng(3), 5, 4_000
    found = 0
    for _ in range(trials):
        x = rng.normal(0, 7, size=num_planned)
        found += any(
            ttest_1samp(x[:n], 0).pvalue < alpha_of_look(n, num_planned=num_planned, alpha=0.1)
            for n in range(2, num_planned + 1)
        )
    low, high = wilson_interval(found, trials, level=0.999)
    assert low <= 0.1 <= high


def test_the_shape_is_of_o_brien_and_fleming() -> None:
    # the scores that the looks must reach fall with the root of the number of blocks
    scores = [norm.isf(alpha_of_look(n, num_planned=5, alpha=0.05) / 2) for n in range(2, 6)]
    assert [score * math.sqrt(n / 5) for n, score in zip(range(2, 6), scores, strict=True)] == pytest.approx(
        [scores[-1]] * 4
    )
    assert 0.03 < alpha_of_look(5, num_planned=5, alpha=0.05) < 0.05  # little is lost at the end


@settings(deadline=None, max_examples=50)
@given(BLOCKS, st.floats(1e-3, 1e3))
def test_unit_and_direction_do_not_matter(x: list[float], unit: float) -> None:
    look = look_at_blocks(x, num_planned=6)
    turned = look_at_blocks([-unit * each for each in x], num_planned=6)
    assert turned.p_value == pytest.approx(look.p_value, abs=1e-4)
    assert (turned.low, turned.high) == pytest.approx((-unit * look.high, -unit * look.low), rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(BLOCKS)
@example([-0.0, -0.0, -7e-303, 3.3])
def test_what_was_shown_stays_and_the_interval_agrees(x: list[float]) -> None:
    p_values = [look_at_blocks(x[:n], num_planned=6).p_value for n in range(2, len(x) + 1)]
    known = [p for p in p_values if not math.isnan(p)]
    assert known == sorted(known, reverse=True)
    looks = [look_at_blocks(x[:n], num_planned=6, alpha=0.2) for n in range(2, len(x) + 1)]
    assert any(look.low > 0 or look.high < 0 for look in looks) == (known[-1] <= 0.2)


@pytest.mark.parametrize("values", [[], [1.0], [0.5, 0.5, 0.5], [0.0, 0.0, -7e-303]])
def test_without_spread_nothing_is_said(values: list[float]) -> None:
    look = look_at_blocks(values, num_planned=5)
    assert all(math.isnan(each) for each in (look.p_value, look.low, look.high))


@pytest.mark.parametrize(
    ("values", "num_planned", "alpha", "message"),
    [
        ([1.0, 2.0, 3.0], 2, 0.05, "none beyond the plan"),
        ([1.0], 1, 0.05, "two or more"),
        ([1.0, math.nan], 5, 0.05, "not a finite number"),
        ([1.0, 2.0], 5, 0.0, "alpha must lie"),
        ([1.0, 2.0], 5, 1.5, "alpha must lie"),
    ],
)
def test_what_cannot_be_looked_at(values: list[float], num_planned: int, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        look_at_blocks(values, num_planned=num_planned, alpha=alpha)
