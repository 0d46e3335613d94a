import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from burnish.stats.intervals import wilson_interval
from burnish.stats.paired import compare_paired, compare_paired_scores, mcnemar_exact, newcombe_paired_interval


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


def test_mcnemar_published() -> None:
    assert mcnemar_exact(121, 59) == pytest.approx(4.4344e-6, rel=1e-4)
    assert mcnemar_exact(10, 2) == pytest.approx(0.0385742, rel=1e-5)
    assert mcnemar_exact(0, 0) == 1.0


@given(st.integers(0, 60), st.integers(1, 60))
def test_mcnemar_against_statsmodels(only_a: int, only_b: int) -> None:
    expected = mcnemar([[5, only_a], [only_b, 7]], exact=True).pvalue
    assert mcnemar_exact(only_a, only_b) == pytest.approx(float(expected), rel=1e-9)


def test_newcombe_by_hand() -> None:
    # 36 both, 12 only first, 2 only second, 0 neither: 48/50 against 38/50, difference 0.2.
    # Wilson: 0.96 in [0.8654, 0.9890], 0.76 in [0.6259, 0.8570]. ad - bc = -24 < 0, so phi has no correction:
    # phi = -24 / sqrt(48 * 2 * 38 * 12) = -0.1147
    l1, u1, l2, u2, phi = 0.86544, 0.98896, 0.62590, 0.85705, -24 / (48 * 2 * 38 * 12) ** 0.5
    below = (0.96 - l1) ** 2 - 2 * phi * (0.96 - l1) * (u2 - 0.76) + (u2 - 0.76) ** 2
    above = (0.76 - l2) ** 2 - 2 * phi * (0.76 - l2) * (u1 - 0.96) + (u1 - 0.96) ** 2
    expected = (0.2 - below**0.5, 0.2 + above**0.5)
    assert newcombe_paired_interval(36, 12, 2, 0) == pytest.approx(expected, abs=1e-4)


def test_newcombe_covers_at_its_level() -> None:
    rng = np.random.default_rng(0)
    share = np.array([0.35, 0.30, 0.08, 0.27])  # both, only first, only second, neither
    covered = 0
    for both, first, second, neither in rng.multinomial(80, share, size=4000):
        low, high = newcombe_paired_interval(both, first, second, neither)
        covered += low <= 0.22 <= high
    assert 0.94 <= covered / 4000 <= 0.965


def test_compare_paired_reads_the_table() -> None:
    before = [True] * 3 + [False] * 7
    after = [True] * 2 + [False] + [True] * 5 + [False] * 2
    result = compare_paired(before, after)
    assert (result.n, result.mean_a, result.mean_b) == (10, 0.3, 0.7)
    assert result.difference == pytest.approx(0.4)
    assert result.p_value == mcnemar_exact(1, 5)
    assert result.low < 0.4 < result.high
    assert (result.low, result.high) == newcombe_paired_interval(2, 5, 1, 2)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_interval_is_antisymmetric_and_holds_the_difference(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    forward, backward = compare_paired(a, b), compare_paired(b, a)
    assert -1 <= forward.low <= forward.difference <= forward.high <= 1
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))


def test_different_items_are_refused() -> None:
    with pytest.raises(ValueError, match="same items"):
        compare_paired([True], [True, False])


def test_scores_against_scipy_and_by_counting() -> None:
    """Three differences of +1: of 8 sign flips only all + and all - are as far from 0, so p = 1/4."""
    result = compare_paired_scores([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    assert (result.difference, result.p_value, result.test) == (1.0, 0.25, "sign-flip permutation")
    rng = np.random.default_rng(5)
    a = rng.normal(size=60)
    b = a + rng.normal(0.3, 0.8, size=60)
    result = compare_paired_scores(a, b)
    t = scipy.stats.ttest_rel(b, a)
    low, high = t.confidence_interval()
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.03)
    assert result.p_value == pytest.approx(t.pvalue, abs=0.005)
    assert compare_paired_scores(a, b) == result


def test_scores_that_do_not_differ() -> None:
    result = compare_paired_scores([0.5, 0.25], [0.5, 0.25])
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="the same items"):
        compare_paired_scores([1.0], [1.0, 2.0])
