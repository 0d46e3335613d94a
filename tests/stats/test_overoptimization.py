import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit, minimize_scalar

from burnish.stats.overoptimization import GainCurve, fit_gain_curve, turning_point

D = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])


@given(a=st.floats(-2, 2), b=st.floats(-2, 2), form=st.sampled_from(["rl", "best_of_n"]))
def test_an_exact_curve_is_found(a: float, b: float, form: str) -> None:
    found = fit_gain_curve(D, GainCurve(a, b, form).gain(D), form)
    assert (found.a, found.b) == pytest.approx((a, b), abs=1e-9)


def test_the_fit_is_that_of_scipy() -> None:
    noisy = GainCurve(1.0, 0.4, "rl").gain(D) + np.random.default_rng(0).normal(0, 0.05, len(D))
    found = fit_gain_curve(D, noisy)
    theirs, _ = curve_fit(lambda d, a, b: d * (a - b * np.log(d)), D[1:], noisy[1:])
    assert (found.a, found.b) == pytest.approx(tuple(theirs), rel=1e-5)


def test_gains_by_hand() -> None:
    assert GainCurve(2.0, 0.5, "rl").gain([0.0, 1.0, math.e]) == pytest.approx([0.0, 2.0, 1.5 * math.e])
    assert GainCurve(2.0, 0.5, "best_of_n").gain([0.0, 1.0, 4.0]) == pytest.approx([0.0, 1.5, 0.0])


@pytest.mark.parametrize("form", ["rl", "best_of_n"])
def test_the_turn_is_where_the_curve_is_highest(form: str) -> None:
    curve = GainCurve(1.2, 0.7, form)
    highest = minimize_scalar(lambda d: -float(curve.gain(d)), bounds=(1e-6, 20), method="bounded").x
    assert curve.turning_distance == pytest.approx(highest, abs=1e-4)


def test_curves_that_never_turn_or_only_fall() -> None:
    assert GainCurve(1.0, 0.0, "rl").turning_distance == math.inf
    assert GainCurve(1.0, -0.1, "best_of_n").turning_distance == math.inf
    assert GainCurve(-1.0, 0.0, "rl").turning_distance == 0.0
    assert GainCurve(-1.0, 0.5, "best_of_n").turning_distance == 0.0
    assert GainCurve(1.0, 1e-9, "rl").turning_distance == math.inf
    assert GainCurve(500.0, 1.0, "rl").turning_distance ** 2 == math.inf


def _gold(curve: GainCurve, num_items: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 0.5, (num_items, 1))
    return base + curve.gain(D) + rng.normal(0, 0.3, (num_items, len(D)))


def test_a_turn_within_what_was_seen_is_said_and_one_beyond_is_not() -> None:
    turns = turning_point(D, _gold(GainCurve(1.0, 1.0, "rl"), 200, 0))
    assert turns.is_seen and turns.kl.low < 1.0 < turns.kl.high  # exp(1 - 1) squared
    assert turns.r_squared > 0.99
    rises = turning_point(D, _gold(GainCurve(1.0, 0.1, "rl"), 200, 0))
    assert not rises.is_seen and rises.kl.high > D.max() ** 2


@pytest.mark.slow
def test_the_interval_of_the_turn_covers_it() -> None:
    covered = 0
    for seed in range(200):
        kl = turning_point(D, _gold(GainCurve(1.0, 0.8, "rl"), 60, seed)).kl
        covered += kl.low <= math.exp(2 * (1 / 0.8 - 1)) <= kl.high
    assert covered >= 180  # 95% nominal; 200 runs of a coverage of 93% stay above with probability 0.96


def test_a_turn_before_the_first_measurement_is_not_seen() -> None:
    gold = np.random.default_rng(0).normal(0, 0.1, (50, 7)) + GainCurve(0.0, 1.0, "rl").gain(D * 2)
    found = turning_point(D * 2, gold)  # it turns at exp(-2), the first measurement is at 1
    assert found.r_squared > 0.99 and found.kl.high < 1.0 and not found.is_seen


def test_a_curve_that_does_not_fit_says_so() -> None:
    up_and_down = turning_point(D, np.tile([0.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0], (5, 1)))
    assert up_and_down.r_squared < 0.3
    still = turning_point(D, np.ones((5, 7)))
    assert still.r_squared == 0.0 and not still.is_seen


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="three different distances"):
        fit_gain_curve([0.0, 1.0, 1.0, 2.0], [0.0, 1.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="must be that of the start"):
        turning_point([0.1, 1.0, 2.0, 3.0], np.zeros((5, 4)))
