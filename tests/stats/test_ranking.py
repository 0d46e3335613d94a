import choix
import numpy as np
import pytest

from burnish.stats.intervals import wilson_interval
from burnish.stats.ranking import bradley_terry, win_rate


def outcomes(scores_IM: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.sign(scores_IM[:, :, None] - scores_IM[:, None, :]))


def test_without_ties_as_choix() -> None:
    rng = np.random.default_rng(0)
    scores_IM = rng.normal([0.0, 0.5, 1.0, -0.3], 1.0, size=(150, 4))
    won = [(i, j) for row in scores_IM for i in range(4) for j in range(4) if row[i] > row[j]]
    expected = choix.opt_pairwise(4, won)
    found = bradley_terry(outcomes(scores_IM))
    assert found.strengths_M == pytest.approx(expected - expected.mean(), abs=1e-3)
    assert np.all(found.low_M < found.strengths_M) and np.all(found.strengths_M < found.high_M)


def test_two_systems_with_ties_by_hand() -> None:
    """30 wins, 10 losses, 60 ties: the model is saturated, so exp(s) = 3 and nu = 60 / sqrt(300)."""
    table = np.full((100, 2, 2), 0.5)
    table[:30, 0, 1], table[:30, 1, 0] = 1, 0
    table[30:40, 0, 1], table[30:40, 1, 0] = 0, 1
    found = bradley_terry(table)
    assert found.strengths_M[0] - found.strengths_M[1] == pytest.approx(np.log(3), abs=1e-4)
    assert found.tie == pytest.approx(np.log(60 / 300**0.5), abs=1e-4)


def test_intervals_cover() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(60):
        p = np.array([1.0, 1 / 3, 0.8 * 3**-0.5])  # win, loss, tie of strengths log(3) apart
        drawn = rng.choice([1.0, 0.0, 0.5], size=120, p=p / p.sum())
        table = np.stack([np.stack([np.full(120, 0.5), drawn], 1), np.stack([1 - drawn, np.full(120, 0.5)], 1)], 1)
        found = bradley_terry(table)
        covered += found.low_M[0] <= np.log(3) / 2 <= found.high_M[0]
    assert covered >= 51


def test_never_beaten_is_refused() -> None:
    with pytest.raises(ValueError, match="never beaten"):
        bradley_terry(outcomes(np.tile([1.0, 0.0], (5, 1))))
    with pytest.raises(ValueError, match="prompts x systems"):
        bradley_terry(np.zeros((3, 2)))


def test_win_rate() -> None:
    found = win_rate(np.array([0.0, 0.0, 1.0, 0.5]), np.array([1.0, 0.0, 0.0, 0.7]))
    assert found.value == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    rng = np.random.default_rng(3)
    wide = win_rate(rng.normal(size=400), rng.normal(size=400))
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)
    copied = win_rate(np.zeros(400), np.repeat(rng.normal(size=40), 10), clusters=np.repeat(range(40), 10).tolist())
    assert copied.high - copied.low == pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.15)
    with pytest.raises(ValueError, match="finite"):
        win_rate(np.array([np.nan]), np.array([1.0]))


def test_items_that_are_copies_add_nothing() -> None:
    table = outcomes(np.random.default_rng(5).normal([0.0, 0.3, 0.6], 1.0, size=(60, 3)))
    plain = bradley_terry(table)
    copies = np.repeat(table, 5, axis=0)
    together = bradley_terry(copies, clusters=np.repeat(range(60), 5).tolist())
    assert together.strengths_M == pytest.approx(plain.strengths_M, abs=1e-4)
    assert together.high_M - together.low_M == pytest.approx(plain.high_M - plain.low_M, rel=0.15)
    apart = bradley_terry(copies)
    assert apart.high_M - apart.low_M == pytest.approx((plain.high_M - plain.low_M) / 5**0.5, rel=0.15)


def test_nothing_is_known_for_sure() -> None:
    """Where every prompt says the same a bootstrap would draw the same again and again."""
    worse, better = np.zeros(6), np.ones(6)
    won, lost = win_rate(worse, better), win_rate(better, worse)
    assert (won.value, won.low, won.high) == pytest.approx((1.0, *wilson_interval(6, 6)))
    assert (lost.value, lost.low, lost.high) == pytest.approx((0.0, *wilson_interval(0, 6)))
    by_passage = win_rate(worse, better, clusters="aabbcc")
    assert by_passage.low == pytest.approx(wilson_interval(3, 3)[0])
    tied = win_rate(worse, worse)
    assert tied.value == 0.5 and np.isnan([tied.low, tied.high]).all()
    equal = bradley_terry(outcomes(np.zeros((5, 3))))
    assert equal.strengths_M == pytest.approx(np.zeros(3)) and np.isnan([equal.low_M, equal.high_M]).all()
    circle = np.tile([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]], (5, 1, 1))
    assert np.isnan(bradley_terry(circle).low_M).all()
