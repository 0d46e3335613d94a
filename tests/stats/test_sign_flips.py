from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.stats.sign_flips import sign_flip_p_value


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_all_signs_by_counting(values: list[int]) -> None:
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((-1, 1), repeat=len(values))
    ]
    expected = np.mean([each >= abs(sum(values)) for each in sums])
    assert sign_flip_p_value(np.array(values, dtype=float)) == pytest.approx(expected)


@pytest.mark.parametrize("is_rounded", [True, False])  # few different sizes go by binomial counts, many by bits
def test_drawn_signs_against_scipy(is_rounded: bool) -> None:
    rng = np.random.default_rng(7)
    for shift in (0.0, 0.1, 0.2):
        values = rng.normal(shift, 1, size=200)
        values = np.round(2 * values) / 2 if is_rounded else values
        expected = scipy.stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=9_999, rng=np.random.default_rng(1)
        ).pvalue
        assert sign_flip_p_value(values) == pytest.approx(float(expected), abs=0.02)


@given(st.integers(21, 200), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_order_and_sign_do_not_matter(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, size=n).astype(float)
    assert sign_flip_p_value(values) == sign_flip_p_value(-values) == sign_flip_p_value(rng.permutation(values))
