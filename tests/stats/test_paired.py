import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.weightstats import ttost_paired

from burnish.stats.difference import number_for_equivalence, number_to_find, verdict_of
from burnish.stats.discordance import mcnemar_exact, newcombe_paired_interval
from burnish.stats.paired import compare_paired
from burnish.stats.wording import in_words


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
    with pytest.raises(ValueError, match="same items"):
        compare_paired([], [])
    with pytest.raises(ValueError, match="not a finite number"):
        compare_paired([1.0, np.nan], [1.0, 0.0])


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, np.nan])
def test_an_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        compare_paired([1, 0], [0, 1], alpha=alpha)


def test_scores_against_scipy_and_by_counting() -> None:
    """Three differences of +1: of 8 sign flips only all + and all - are as far from 0, so p = 1/4."""
    result = compare_paired([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    assert (result.difference, result.p_value, result.test) == (1.0, 0.25, "sign-flip permutation")
    rng = np.random.default_rng(5)
    a = rng.normal(size=60)
    b = a + rng.normal(0.3, 0.8, size=60)
    result = compare_paired(a, b)
    t = scipy.stats.ttest_rel(b, a)
    low, high = t.confidence_interval()
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.03)
    assert result.p_value == pytest.approx(t.pvalue, abs=0.005)
    assert compare_paired(a, b) == result


@given(st.integers(5, 40), st.floats(0.05, 2.0), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_equivalence_of_scores_against_statsmodels(n: int, margin: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.normal(size=n)
    found = compare_paired(a, b, margin=margin)
    assert found.p_equivalent == pytest.approx(float(ttost_paired(b, a, -margin, margin)[0]), rel=1e-9)


def test_scores_that_do_not_differ_give_no_false_certainty() -> None:
    few = compare_paired([0.5, 0.25], [0.5, 0.25], margin=0.02)
    assert (few.difference, few.p_value) == (0.0, 1.0)
    assert np.isnan(few.low) and verdict_of(few) == "undecided"
    many = compare_paired(np.full(1000, 0.5), np.full(1000, 0.5), margin=0.02)
    assert verdict_of(many) == "equivalent"  # of 1,000 items of 0 to 1 none differs
    unbounded = compare_paired(np.full(1000, 7.5), np.full(1000, 7.5), margin=0.02)
    assert verdict_of(unbounded) == "undecided"  # the next item may differ by anything
    assert "no item tells the two apart" in in_words(unbounded)
    shifted = compare_paired(np.arange(20.0), np.arange(20.0) + 0.25)
    assert shifted.p_value == 2 / 2**20 and verdict_of(shifted) == "better"


def test_outcomes_that_are_all_equal() -> None:
    same = compare_paired([1] * 30, [1] * 30, margin=0.02)
    assert same.low < 0 < same.high and same.p_value == 1.0 and verdict_of(same) == "undecided"
    assert verdict_of(compare_paired([1] * 3000, [1] * 3000, margin=0.02)) == "equivalent"


def test_a_difference_of_right_answers_within_the_margin_is_equivalent() -> None:
    a, b = np.ones(2000), np.ones(2000)
    a[:10], b[10:20] = 0, 0
    found = compare_paired(a, b, margin=0.02)
    assert verdict_of(found) == "equivalent"
    assert verdict_of(compare_paired(a[:40], b[:40], margin=0.02)) == "undecided"


def test_clusters_count_once() -> None:
    """Ten passages of thirty questions that all move together say no more than ten questions."""
    rng = np.random.default_rng(2)
    moves = np.repeat(rng.normal(0.2, 0.5, size=10), 30)
    a = np.zeros(300)
    clusters = np.repeat(np.arange(10), 30).tolist()
    found = compare_paired(a, a + moves, clusters=clusters)
    one_each = scipy.stats.ttest_1samp(moves[::30], 0)
    assert (found.unit, found.n) == ("cluster", 10)
    low, high = one_each.confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p_value > 100 * compare_paired(a, a + moves).p_value
    assert compare_paired([0, 0, 1], [1, 0, 1], clusters=["a", "b", "c"]).test == "exact McNemar"  # each its own


def test_one_cluster_says_nothing() -> None:
    found = compare_paired([0.0] * 9, [1.0] * 9, clusters=["a"] * 9, margin=0.1)
    assert np.isnan(found.low) and found.p_value == 1.0 and found.p_equivalent == 1.0
    assert verdict_of(found) == "undecided" and "share one cluster" in in_words(found)


def test_what_it_takes_has_the_power_that_it_says() -> None:
    rng = np.random.default_rng(3)
    seen = compare_paired([0] * 50 + [1] * 30 + [0] * 20, [0] * 50 + [0] * 8 + [1] * 42)  # 22 against 20 or so
    wanted = number_to_find(seen, alpha=0.05)
    discordance, shift = seen.design.discordance, abs(seen.difference)
    found = 0
    for _ in range(400):
        discordant = rng.binomial(wanted, discordance)
        more = rng.binomial(discordant, (1 + shift / discordance) / 2)
        found += mcnemar_exact(int(more), int(discordant - more)) < 0.05
    assert 0.74 <= found / 400 <= 0.87
    assert "would be found with about" in in_words(compare_paired([0, 0, 1, 1, 0], [1, 1, 1, 0, 1]))


def test_number_for_equivalence_has_the_power_that_it_says() -> None:
    rng = np.random.default_rng(4)
    seen = compare_paired(rng.normal(size=40), rng.normal(size=40), margin=0.5)
    wanted = number_for_equivalence(seen, alpha=0.05)
    sd = seen.design.sd_difference
    shown = 0
    for _ in range(1000):
        drawn = rng.normal(0, sd, size=wanted)
        error = drawn.std(ddof=1) / wanted**0.5
        shown += abs(drawn.mean()) + scipy.stats.t.ppf(0.95, wanted - 1) * error < 0.5
    assert 0.76 <= shown / 1000 <= 0.84
