import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from burnish.experiments.statistics import (
    benjamini_hochberg,
    bootstrap_interval,
    equivalence_p_value,
    holm,
    interquartile_mean,
    least_squares,
    mean_estimate,
    sign_e_value,
    smallest_detectable,
)

NUMBERS = st.lists(st.floats(-5, 5), min_size=3, max_size=12)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_a_mean_by_hand() -> None:
    # sd 0.1, t(0.975, 2) = 4.302653; with two degrees of freedom p = 1 - t / sqrt(t^2 + 2), t = sqrt(12)
    found = mean_estimate([0.1, 0.2, 0.3], level=0.95)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx(
        (0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5), abs=1e-6
    )
    assert found.p_value == pytest.approx(1 - (12 / 14) ** 0.5)


@given(a=NUMBERS, seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_of_differences_it_is_the_paired_t_test(a: list[float], seed: int) -> None:
    first = np.array(a) + np.random.default_rng(seed).normal(size=len(a))
    second = np.array(a)
    found = mean_estimate(first - second, level=0.9)
    peer = ttest_rel(first, second)
    assert found.p_value == pytest.approx(peer.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(peer.confidence_interval(0.9)), rel=1e-9)
    assert equivalence_p_value(found, 0.5) == pytest.approx(ttost_paired(first, second, -0.5, 0.5)[0], rel=1e-9)


@pytest.mark.parametrize("values", [[], [0.3], [0.2, 0.2, 0.2], [0.0, 0.0]])
def test_without_spread_there_is_no_certainty(values: list[float]) -> None:
    found = mean_estimate(values, level=0.95)
    assert math.isnan(found.p_value) and math.isnan(found.low)
    assert math.isnan(equivalence_p_value(found, 0.1))


def test_adjusted_p_values_as_published() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([]) == []


@given(p=P_VALUES)
@settings(max_examples=50, deadline=None)
def test_adjusted_p_values_agree_with_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1].tolist())


def test_a_test_without_p_value_counts_as_one() -> None:
    adjusted = holm([0.02, math.nan])
    assert adjusted[0] == pytest.approx(0.04) and math.isnan(adjusted[1])


@pytest.mark.parametrize(
    ("standard_error", "degrees", "effect"),
    [(5**-0.5, 4, 1.68), ((2 / 3) ** 0.5, 4, 3.07), ((2 / 5) ** 0.5, 8, 2.02), ((2 / 10) ** 0.5, 18, 1.32)],
)
def test_detectable_effects_as_published(standard_error: float, degrees: int, effect: float) -> None:
    assert smallest_detectable(standard_error, degrees, alpha=0.05, power=0.8) == pytest.approx(effect, abs=0.006)


def test_a_detectable_effect_of_two_seeds_is_found_so_often() -> None:
    effect = smallest_detectable(2**-0.5, 1, alpha=0.05, power=0.8)
    draws = np.random.default_rng(0).normal(effect, 1.0, size=(200_000, 2))
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / 2**0.5)
    assert (np.abs(t) > 12.7062).mean() == pytest.approx(0.8, abs=0.004)


def test_one_seed_detects_nothing() -> None:
    assert smallest_detectable(1.0, 0, alpha=0.05, power=0.8) == math.inf


@given(seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_least_squares_agrees_with_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, response = rng.normal(size=(9, 3)), rng.normal(size=9)
    peer = sm.OLS(response, matrix).fit()
    for index, found in enumerate(least_squares(list(matrix.T), response, level=0.95)):
        assert found.value == pytest.approx(peer.params[index])
        assert found.p_value == pytest.approx(peer.pvalues[index])
        assert (found.low, found.high) == pytest.approx(tuple(peer.conf_int()[index]))


def test_what_the_columns_do_not_determine_has_no_value() -> None:
    one, other = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.0, 1.0, 2.0, 5.0])
    found = least_squares([one, one, other], np.array([1.0, 2.0, 4.0, 3.0]), level=0.95)
    assert math.isnan(found[0].value) and math.isnan(found[1].value) and math.isfinite(found[2].value)


def test_an_exact_fit_has_no_certainty() -> None:
    (found,) = least_squares([np.ones(4)], np.full(4, 0.3), level=0.95)
    assert found.value == pytest.approx(0.3) and math.isnan(found.p_value)


def test_interquartile_means_as_published() -> None:
    assert interquartile_mean([1, 2, 2, 2, 1, 1, 2, 1]) == 1.5
    assert interquartile_mean([1, 1, 2, 2, 3, 3]) == 2
    assert interquartile_mean([0, 1, 2, 100]) == 1.5


def test_a_bootstrap_interval_repeats_and_covers_the_value() -> None:
    values = np.random.default_rng(0).normal(size=12)
    first, second = (bootstrap_interval(values, interquartile_mean, level=0.95, seed=3) for _ in range(2))
    assert first == second and first[0] < interquartile_mean(values) < first[1]


def test_e_values_as_published() -> None:
    assert sign_e_value(10, 2) == pytest.approx(4.773893, abs=1e-6)
    assert sign_e_value(10, 0) == pytest.approx(93.0909, abs=1e-4)
    assert sign_e_value(0, 0) == 1
