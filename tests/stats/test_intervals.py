import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from burnish.stats.intervals import beta_interval, clopper_pearson_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857, table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_against_statsmodels(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    expected = proportion_confint(successes, n, method="wilson")
    assert wilson_interval(successes, n) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],  # Newcombe 1998, table I
)
def test_clopper_pearson_published(successes: int, n: int, low: float, high: float) -> None:
    assert clopper_pearson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_clopper_pearson_against_statsmodels(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    expected = proportion_confint(successes, n, method="beta")
    assert clopper_pearson_interval(successes, n) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("successes", "n", "low", "high"), [(7, 8, 0.5175, 0.9719), (10, 10, 0.7151, 0.9977)])
def test_beta_vectors(successes: int, n: int, low: float, high: float) -> None:
    assert beta_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("interval", [wilson_interval, clopper_pearson_interval, beta_interval])
def test_what_is_no_proportion_is_refused(interval) -> None:
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no proportion"):
            interval(successes, n)
    with pytest.raises(ValueError, match="level"):
        interval(1, 2, level=1.0)
