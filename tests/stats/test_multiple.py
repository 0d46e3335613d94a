import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from burnish.stats.multiple import benjamini_hochberg, holm, holm_of_given

P_VALUES = [0.01, 0.04, 0.03, 0.005]


def test_published() -> None:  # R's p.adjust
    assert holm(P_VALUES) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(P_VALUES) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    given = holm_of_given([0.01, None, *P_VALUES[1:]])
    assert given == [pytest.approx(0.03), None, *map(pytest.approx, (0.06, 0.06, 0.02))]
    assert holm_of_given([None, None]) == [None, None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_against_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert benjamini_hochberg(p_values) == pytest.approx(multipletests(p_values, method="fdr_bh")[1])


def test_what_is_no_p_value_is_refused() -> None:
    for wrong in ([0.5, 1.5], [-0.1], [[0.5]]):
        for adjust in (holm, benjamini_hochberg):
            with pytest.raises(ValueError, match="p-values"):
                adjust(wrong)
    assert len(benjamini_hochberg([])) == len(holm([])) == 0


@given(st.lists(st.floats(0, 1), max_size=8), st.integers(1, 3))
def test_a_test_without_p_value_counts_as_one(p_values: list[float], without: int) -> None:
    for adjust in (holm, benjamini_hochberg):
        found = adjust([*[np.nan] * without, *p_values])
        assert np.isnan(found[:without]).all()
        assert found[without:] == pytest.approx(adjust([*[1.0] * without, *p_values])[without:])
