import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from burnish.stats.linear import least_squares, mean_with_t

NUMBERS = st.lists(st.floats(-5, 5), min_size=3, max_size=12)


def test_a_mean_by_hand() -> None:
    # sd 0.1, t(0.975, 2) = 4.302653; with two degrees of freedom p = 1 - t / sqrt(t^2 + 2), t = sqrt(12)
    found = mean_with_t([0.1, 0.2, 0.3], level=0.95)
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
    found = mean_with_t(first - second, level=0.9)
    peer = ttest_rel(first, second)
    assert found.p_value == pytest.approx(peer.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(peer.confidence_interval(0.9)), rel=1e-9)


@pytest.mark.parametrize("values", [[], [0.3], [0.2, 0.2, 0.2], [0.0, 0.0], [0.7 - 0.6, 0.3 - 0.2, 0.8 - 0.7]])
def test_without_spread_there_is_no_certainty(values: list[float]) -> None:
    found = mean_with_t(values, level=0.95)
    assert math.isnan(found.p_value) and math.isnan(found.low)


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
