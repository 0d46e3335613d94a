import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from burnish.stats.anytime import (
    anytime_mean_interval,
    anytime_proportion_interval,
    discordant_log_e,
    look_at_pairs,
)


def test_published_vectors() -> None:
    assert np.exp(discordant_log_e([10, 10], [2, 0])) == pytest.approx([4.773893, 93.0909], abs=5e-5)
    assert float(discordant_log_e(0, 0)) == pytest.approx(0.0)
    assert anytime_proportion_interval(15, 20) == pytest.approx((0.42174, 0.94929), abs=5e-6)


@given(st.integers(0, 40), st.integers(0, 40))
def test_e_is_the_mixture_that_it_says(only_a: int, only_b: int) -> None:
    mixture, _ = quad(lambda share: (2 * share) ** only_b * (2 - 2 * share) ** only_a, 0, 1)
    assert math.exp(float(discordant_log_e(only_a, only_b))) == pytest.approx(mixture, rel=1e-6)


@given(st.integers(0, 40), st.integers(0, 40))
def test_e_is_fair_under_the_null(only_a: int, only_b: int) -> None:
    """The next discordant item falls to either side with 1/2: wealth stays the same on average."""
    after = np.exp(discordant_log_e([only_a + 1, only_a], [only_b, only_b + 1])).mean()
    assert after == pytest.approx(math.exp(float(discordant_log_e(only_a, only_b))), rel=1e-9)


@given(st.integers(0, 300), st.integers(0, 300))
def test_interval_ends_where_the_mixture_refutes(successes: int, failures: int) -> None:
    n = successes + failures
    low, high = anytime_proportion_interval(successes, n, alpha=0.1)
    assert 0 <= low <= high <= 1
    mirrored = anytime_proportion_interval(failures, n, alpha=0.1)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-9)
    log_beta = math.lgamma(successes + 1) + math.lgamma(failures + 1) - math.lgamma(n + 2)
    for end in (low, high):
        if 0 < end < 1:
            ratio = math.exp(log_beta - successes * math.log(end) - failures * math.log1p(-end))
            assert ratio == pytest.approx(10, rel=1e-5)
    assert low == 0 or successes > 0


def test_ends_of_the_interval() -> None:
    assert anytime_proportion_interval(0, 0) == (0.0, 1.0)
    low, high = anytime_proportion_interval(0, 100)
    assert low == 0 and high == pytest.approx(1 - (20 / 101) ** (1 / 100) * 0.05 ** (2 / 100), abs=0.01)
    assert anytime_mean_interval([]) == (0.0, 1.0)


def test_betting_against_a_loop_over_means() -> None:
    """A grid of means, each with its two gamblers, bet by bet."""
    rng = np.random.default_rng(2)
    x = rng.beta(2, 5, 60)
    alpha = 0.05
    kept = []
    for mean in np.linspace(0.001, 0.999, 999):
        up = down = 1.0
        is_refuted = False
        seen_mean, squares = [0.5], 0.25
        for t, value in enumerate(x, start=1):
            stake = math.sqrt(2 * math.log(2 / alpha) / (squares / t * t * math.log(t + 1)))
            up *= 1 + min(stake, 0.5 / mean) * (value - mean)
            down *= 1 - min(stake, 0.5 / (1 - mean)) * (value - mean)
            is_refuted |= max(up, down) / 2 >= 1 / alpha
            seen_mean.append(value)
            squares += (value - np.mean(seen_mean)) ** 2
        if not is_refuted:
            kept.append(mean)
    assert anytime_mean_interval(x, alpha=alpha) == pytest.approx((kept[0], kept[-1]), abs=0.0011)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_sequence_only_shrinks_and_mirrors(values: list[float]) -> None:
    low, high = anytime_mean_interval(values)
    mirrored = anytime_mean_interval([1 - value for value in values])
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-6)
    before_low, before_high = anytime_mean_interval(values[:-1])
    assert before_low <= low + 1e-12 and high <= before_high + 1e-12


@pytest.mark.slow
def test_false_alarms_over_all_looks_are_at_most_nominal() -> None:
    """1,000 nulls of 300 items, every look: false verdicts are at most alpha, up to three standard errors."""
    rng = np.random.default_rng(5)
    binary = scored = missed = 0
    for _ in range(1000):
        a, b = rng.random((2, 300)) < 0.5
        look = look_at_pairs(a, b)
        binary += look.verdict != "go on"
        missed += not look.low <= 0 <= look.high
        a, b = rng.beta(1, 2, (2, 300))
        scored += look_at_pairs(a, b).verdict != "go on"
    assert max(binary, scored, missed) <= 50 + 3 * 7


def test_a_real_difference_is_found_and_stays_found() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.random(600) < 0.4, rng.random(600) < 0.6
    look = look_at_pairs(a, b)
    assert look.verdict == "better" and look.decided_at is not None and look.decided_at < 600
    assert look_at_pairs(b, a).verdict == "worse"
    assert look_at_pairs(a[: look.decided_at], b[: look.decided_at]).verdict == "better"
    assert look_at_pairs(a[: look.decided_at - 1], b[: look.decided_at - 1]).verdict == "go on"
    later = look_at_pairs([*a, *[1] * 500], [*b, *[0] * 500])  # what comes later cannot take it back
    assert (later.verdict, later.decided_at) == ("better", look.decided_at)
    halves = look_at_pairs(a / 2 + 0.25, b / 2 + 0.25)
    assert halves.verdict == "better" and halves.difference == pytest.approx(look.difference / 2)


def test_the_counts_of_a_look() -> None:
    look = look_at_pairs([1, 1, 0, 0, 1], [1, 0, 1, 1, 1])
    assert (look.n, look.only_a, look.only_b) == (5, 1, 2)
    assert (look.mean_a, look.mean_b, look.difference) == pytest.approx((0.6, 0.8, 0.2))
    assert look.e_value == pytest.approx(1.0)  # 8 / (4 * 3) = 2/3 now, 1 before the first item
    assert look.verdict == "go on" and look.decided_at is None


def test_equivalence_needs_a_margin() -> None:
    same = np.zeros(400)
    assert look_at_pairs(same, same).verdict == "go on"
    look = look_at_pairs(same, same, margin=0.05)
    assert look.verdict == "equivalent" and -0.05 < look.low <= 0 <= look.high < 0.05
    assert look_at_pairs(same[:20], same[:20], margin=0.05).verdict == "go on"


def test_nothing_yet_and_no_discordant_items() -> None:
    look = look_at_pairs([], [])
    assert (look.n, look.low, look.high, look.e_value, look.verdict) == (0, -1, 1, 1, "go on")
    assert math.isnan(look.difference)
    assert look_at_pairs([1] * 50, [1] * 50).e_value == 1


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_alpha_outside(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        look_at_pairs([1], [0], alpha=alpha)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        anytime_proportion_interval(1, 2, alpha=alpha)


def test_impossible_scores() -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        look_at_pairs([2.0], [0.0])
    with pytest.raises(ValueError, match="not between 0 and 1"):
        look_at_pairs([math.nan], [0.0])
    with pytest.raises(ValueError, match="the same items"):
        look_at_pairs([1], [0, 1])
    with pytest.raises(ValueError, match="margin must lie"):
        look_at_pairs([1], [0], margin=0)
    with pytest.raises(ValueError, match="is no proportion"):
        anytime_proportion_interval(3, 2)
    with pytest.raises(ValueError, match="negative"):
        discordant_log_e(-1, 2)
