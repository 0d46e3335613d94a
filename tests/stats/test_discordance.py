import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm
from statsmodels.stats.contingency_tables import cochrans_q as statsmodels_q
from statsmodels.stats.contingency_tables import mcnemar

from burnish.stats.discordance import (
    cochrans_q,
    mcnemar_exact,
    mcnemar_mid_p,
    newcombe_paired_interval,
    tango_equivalence,
    tango_paired_interval,
    tango_z,
)


def test_mcnemar_published() -> None:
    assert mcnemar_exact(121, 59) == pytest.approx(4.4344e-6, abs=5e-11)
    assert mcnemar_exact(70, 59) == pytest.approx(0.378688, abs=5e-7)
    assert mcnemar_exact(10, 2) == pytest.approx(0.0385742, abs=5e-8)
    assert mcnemar_exact(0, 0) == 1.0


@given(st.integers(0, 60), st.integers(0, 60))
def test_mid_p_against_scipy(only_a: int, only_b: int) -> None:
    """Everything rarer than what was seen, and half of what is as rare."""
    chances = binom.pmf(np.arange(only_a + only_b + 1), only_a + only_b, 0.5)
    seen = chances[only_a]
    is_same = np.isclose(chances, seen, rtol=1e-9, atol=0)
    expected = chances[(chances < seen) & ~is_same].sum() + chances[is_same].sum() / 2
    assert mcnemar_mid_p(only_a, only_b) == pytest.approx(1.0 if only_a + only_b == 0 else expected, rel=1e-9)


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


def test_mid_p_vector() -> None:
    assert mcnemar_mid_p(10, 2) == pytest.approx(0.0224609, abs=5e-8)
    assert mcnemar_mid_p(2, 10) == pytest.approx(mcnemar_mid_p(10, 2))
    assert mcnemar_mid_p(1, 1) == pytest.approx(0.75)  # of 0, 1, 2 of two, all are as likely or less; half of 1/2 off
    assert mcnemar_mid_p(0, 0) == 1.0


@pytest.mark.parametrize(
    ("table", "corrected", "corrected_p", "plain", "plain_p"),
    [
        ([[101, 121], [59, 33]], 20.67222, 5.450095e-6, 21.355556, 3.815136e-6),
        ([[101, 70], [59, 33]], 0.7751938, 0.3786151, 0.9379845, 0.3327967),
    ],
)
def test_tango_at_zero_is_mcnemars_chi_square(table, corrected, corrected_p, plain, plain_p) -> None:
    (_, b), (c, _) = table
    n = int(np.sum(table))
    assert tango_z(b, c, n, 0.0) ** 2 == pytest.approx(plain, rel=1e-6)
    assert 2 * norm.sf(abs(tango_z(b, c, n, 0.0))) == pytest.approx(plain_p, rel=1e-6)
    found = mcnemar(table, exact=False, correction=True)
    assert (found.statistic, found.pvalue) == pytest.approx((corrected, corrected_p), rel=1e-6)


def test_tango_published() -> None:
    # airway hyper-responsiveness before and after transplantation, Fagerland, Lydersen & Laake 2014 (Stat Med 33:2850)
    assert tango_paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert newcombe_paired_interval(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40), st.floats(-0.9, 0.9))
def test_tango_against_the_constrained_likelihood(b: int, c: int, others: int, difference: float) -> None:
    """The rarer share is the one that makes the counts most likely, found here by search."""
    n = b + c + others

    def surprise(rarer: float) -> float:
        shares = np.clip([rarer + difference, rarer, 1 - 2 * rarer - difference], 1e-300, 1)
        return -float(np.array([b, c, others]) @ np.log(shares))

    low, high = max(0.0, -difference), (1 - difference) / 2
    rarer = minimize_scalar(surprise, bounds=(low, high), method="bounded", options={"xatol": 1e-10}).x
    variance = n * (2 * rarer + difference * (1 - difference))
    if variance > 1e-3:
        assert tango_z(b, c, n, difference) == pytest.approx((b - c - n * difference) / variance**0.5, abs=1e-2)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40))
def test_tango_interval_is_antisymmetric_and_holds_the_difference(b: int, c: int, others: int) -> None:
    low, high = tango_paired_interval(b, c, b + c + others)
    assert -1 <= low <= (b - c) / (b + c + others) <= high <= 1
    assert tango_paired_interval(c, b, b + c + others) == pytest.approx((-high, -low), abs=1e-6)


def test_equivalence_is_the_narrower_interval_inside_the_margin() -> None:
    low, high = tango_paired_interval(12, 10, 800, level=0.90)
    widest = max(-low, high)
    assert tango_equivalence(12, 10, 800, widest * 1.01) < 0.05 < tango_equivalence(12, 10, 800, widest * 0.99)
    # no discordant item of n: z is sqrt(n m / (1 - m))
    assert tango_z(0, 0, 1000, -0.02) == pytest.approx((1000 * 0.02 / 0.98) ** 0.5)


NIST = [[1, 1, 1], [1, 1, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1]]
NIST += [[1, 1, 1], [1, 1, 0], [0, 0, 1], [0, 1, 0], [1, 1, 1], [1, 1, 1]]
FOUR = ["0001", "0001", "0001", "1111", "1001", "0101", "1001", "0001", "0100", "0000", "1001", "0011"]
SAS = ["000"] * 6 + ["100"] * 2 + ["001"] * 16 + ["101"] * 4 + ["010"] * 2 + ["110"] * 6 + ["011"] * 4 + ["111"] * 6


def test_cochrans_q_published() -> None:
    assert cochrans_q(NIST) == pytest.approx((2.8, 0.246597), abs=5e-7)  # Conover; NIST Dataplot
    four, sas = (np.array([[int(each) for each in row] for row in rows]) for rows in (FOUR, SAS))
    q, p = cochrans_q(four)
    assert q == pytest.approx(13.2857143, abs=5e-8) and p == pytest.approx(0.00405776, abs=5e-9)
    assert cochrans_q(sas) == pytest.approx((8.4706, 0.0145), abs=5e-5)
    assert cochrans_q([[1, 1, 1], [0, 0, 0]]) == (0.0, 1.0)
    with pytest.raises(ValueError, match="0 and 1"):
        cochrans_q([[0.5, 1.0]])


@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 1000))
def test_cochrans_q_against_statsmodels(num_systems: int, n: int, seed: int) -> None:
    right = np.random.default_rng(seed).integers(0, 2, size=(n, num_systems))
    if (right.sum(axis=1) % num_systems).any():
        expected = statsmodels_q(right)
        assert cochrans_q(right) == pytest.approx((expected.statistic, expected.pvalue), abs=1e-9)
