import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.weightstats import ttost_ind

from burnish.stats.difference import number_to_find, verdict_of
from burnish.stats.seeds import compare_seeds


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 1000))
def test_against_scipy_and_statsmodels(num_a: int, num_b: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=num_a), rng.normal(0.5, 2, size=num_b)
    found = compare_seeds(a, b, is_paired=False, margin=1.5)
    expected = scipy.stats.ttest_ind(b, a, equal_var=False)
    low, high = expected.confidence_interval()
    assert (found.p_value, found.low, found.high) == pytest.approx((expected.pvalue, low, high), rel=1e-8)
    assert found.p_equivalent == pytest.approx(float(ttost_ind(b, a, -1.5, 1.5, usevar="unequal")[0]), rel=1e-8)


@given(st.integers(2, 12), st.integers(0, 1000))
def test_shared_seeds_against_scipy(num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=num), rng.normal(size=num)
    found, expected = compare_seeds(a, b, is_paired=True), scipy.stats.ttest_rel(b, a)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-8)
    fixed, expected = compare_seeds([0.3], b, is_paired=False), scipy.stats.ttest_1samp(b, 0.3)
    assert fixed.p_value == pytest.approx(expected.pvalue, rel=1e-8)
    assert "fixed checkpoint" in fixed.test


def test_one_seed_is_refused_and_no_spread_says_nothing() -> None:
    with pytest.raises(ValueError, match="one seed says nothing about a method"):
        compare_seeds([0.5], [0.6], is_paired=False)
    found = compare_seeds([0.5, 0.5, 0.5], [0.6, 0.6, 0.6], is_paired=False, margin=0.5)
    assert (found.p_value, found.p_equivalent) == (1.0, 1.0) and np.isnan(found.low)
    assert verdict_of(found) == "undecided"


def test_seeds_that_are_needed() -> None:
    """Paired, d = 1.5: 5.69 pairs for 80% power; d = 1 in two arms: 16.71 of each."""
    pairs = compare_seeds([0, 0, 0], [0.5, 1.5, 2.5], is_paired=True)  # mean 1.5, sd 1
    assert number_to_find(pairs, alpha=0.05) == 6
    arms = compare_seeds([-1, 0, 1], [0, 1, 2], is_paired=False)
    assert number_to_find(arms, alpha=0.05) == 17
