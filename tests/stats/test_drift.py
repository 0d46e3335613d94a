import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency, ks_2samp, norm

from burnish.stats.drift import (
    PageHinkley,
    dependent_p_value,
    design_effect,
    homogeneity_test,
    ks_test,
    stability_index,
    stability_of_counts,
    threshold_for_run_length,
)

SAMPLES = st.lists(st.integers(0, 12), min_size=20, max_size=45)
LARGE_COUNTS = st.fixed_dictionaries({name: st.integers(4, 40) for name in "abcd"})
COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 40), min_size=1)


def test_psi_of_a_small_table() -> None:
    """Counts 29, 69 and 69, 29 with 1/2 added: shares (29.5, 69.5) / 99 and back."""
    found = stability_of_counts({"a": 29, "b": 69}, {"a": 69, "b": 29})
    assert found is not None
    assert found.psi == pytest.approx(2 * 40 / 99 * math.log(69.5 / 29.5))
    assert found.degrees == 1
    assert found.scale == pytest.approx(2 / 98)
    assert found.expected == pytest.approx(2 / 98)
    assert found.limit(0.05) == pytest.approx(2 / 98 * 3.841459)  # the 95 % quantile of one degree, from a table
    assert found.p_value == pytest.approx(chi2.sf(found.psi * 49, 1))


def test_psi_against_a_loop_over_bins() -> None:
    """Whole numbers with many ties, ten bins: each border is the value that a tenth of the reference does not pass."""
    rng = np.random.default_rng(0)
    reference, current = rng.geometric(0.1, 137), rng.geometric(0.07, 90)
    ordered = sorted(reference.tolist())
    borders = sorted({next(x for x in ordered if sum(y <= x for y in ordered) >= k * 13.7) for k in range(1, 10)})
    psi = 0.0
    for low, high in itertools.pairwise([-math.inf, *borders, math.inf]):
        p, q = ((sum(low < x <= high for x in xs) + 0.5) / (len(xs) + 5) for xs in (reference, current))
        psi += (q - p) * math.log(q / p)
    found = stability_index(reference, current)
    assert found is not None and found.degrees == 9
    assert found.psi == pytest.approx(psi)


def test_psi_without_change_is_as_its_chi_square_says() -> None:
    """Mean and tail over 2,000 pairs of samples; the usual limit of 0.1 is passed by one in three."""
    rng = np.random.default_rng(1)
    found = [stability_index(rng.normal(size=200), rng.normal(size=150)) for _ in range(2_000)]
    psis = np.array([each.psi for each in found if each is not None])
    expected = 9 * (1 / 200 + 1 / 150)
    assert psis.mean() == pytest.approx(expected, rel=0.05)
    first = found[0]
    assert first is not None and first.expected == pytest.approx(expected)
    assert np.mean(psis > first.limit(0.01)) == pytest.approx(0.01, abs=0.007)  # three standard errors
    assert np.mean(psis > 0.1) > 0.25


def test_psi_of_one_number_alone() -> None:
    same = stability_index([5] * 60, [5] * 60)
    assert same is not None and (same.psi, same.p_value, same.limit(0.05)) == (0.0, 1.0, 0.0)
    for other in (4, 6):
        moved = stability_index([5] * 60, [other] * 60)
        assert moved is not None and moved.p_value < 1e-9


@given(st.lists(st.integers(0, 500), min_size=20, max_size=60, unique=True), st.randoms(use_true_random=False))
def test_ks_is_that_of_scipy_where_no_two_are_equal(values: list[int], random: object) -> None:
    random.shuffle(values)  # type: ignore[attr-defined]
    shifted = [value + 0.5 for value in values[: len(values) // 2 + 10]]
    found = ks_test(values, shifted)
    oracle = ks_2samp(values, shifted, method="exact")
    assert found is not None
    assert found.statistic == pytest.approx(oracle.statistic, abs=1e-12)
    assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-9)


@given(SAMPLES, SAMPLES)
def test_ks_with_equal_numbers(a: list[int], b: list[int]) -> None:
    """The same distance as scipy; never a larger p-value, for scipy counts orders of what is equal."""
    found = ks_test(a, b)
    assert found is not None
    assert found.statistic == pytest.approx(ks_2samp(a, b, method="asymp").statistic, abs=1e-12)
    assert 0 < found.p_value <= 1
    if found.statistic > 0.1:  # scipy's exact test fails for some smaller ones
        assert found.p_value <= ks_2samp(a, b, method="exact").pvalue + 1e-9
    assert found == ks_test(b, a) == ks_test(b[::-1], sorted(a))


def test_ks_with_equal_numbers_is_exact() -> None:
    """Of zeros and ones the distance is that of the shares, so the p-value counts ways to deal 30 ones to 20 and 20."""
    a, b = [1] * 19 + [0], [1] * 11 + [0] * 9
    found = ks_test(a, b)
    ways = {ones: math.comb(20, ones) * math.comb(20, 30 - ones) for ones in range(10, 21)}
    as_far = sum(n for ones, n in ways.items() if abs(ones - (30 - ones)) >= 8)
    assert found is not None
    assert found.statistic == pytest.approx(8 / 20)
    assert found.p_value == pytest.approx(as_far / sum(ways.values()))


def test_ks_with_some_equal_numbers_against_shuffles() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.poisson(3, 25), rng.poisson(4, 30)
    found = ks_test(a, b)
    assert found is not None
    pooled, reached = np.concatenate([a, b]), 0
    for _ in range(4_000):
        rng.shuffle(pooled)
        steps = [np.searchsorted(np.sort(x), np.arange(15), side="right") / len(x) for x in (pooled[:25], pooled[25:])]
        reached += bool(np.abs(steps[0] - steps[1]).max() >= found.statistic - 1e-9)
    assert reached / 4_000 == pytest.approx(found.p_value, abs=0.025)


def test_ks_of_many_is_scipys_asymptotic_one() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=1_100), rng.normal(0.05, 1, 1_000)
    found = ks_test(a, b)
    assert found is not None
    assert found.p_value == pytest.approx(ks_2samp(a, b, method="asymp").pvalue, rel=1e-9)


def test_a_tiny_p_value_keeps_its_digits() -> None:
    found = ks_test(range(100), range(100, 200))
    assert found is not None
    assert found.p_value == pytest.approx(2 / math.comb(200, 100), rel=1e-9)


@given(COUNTS, COUNTS)
@settings(max_examples=200)
def test_homogeneity_knows_no_order_and_no_side(a: dict[str, int], b: dict[str, int]) -> None:
    found, swapped = homogeneity_test(a, b), homogeneity_test(b, a)
    if min(sum(a.values()), sum(b.values())) < 20:
        assert found is None and swapped is None
        return
    assert found is not None and found == homogeneity_test(dict(reversed(a.items())), b)
    assert swapped is not None
    assert (swapped.statistic, swapped.p_value) == pytest.approx((found.statistic, found.p_value))


@given(LARGE_COUNTS, LARGE_COUNTS)
def test_homogeneity_is_scipys_where_nothing_is_rare(a: dict[str, int], b: dict[str, int]) -> None:
    found = homogeneity_test(a, b)
    oracle = chi2_contingency([[x[name] for name in "abcd"] for x in (a, b)], correction=False)
    assume(oracle.expected_freq.min() >= 5)
    assert found is not None
    assert (found.statistic, found.p_value) == pytest.approx((oracle.statistic, oracle.pvalue))


def test_homogeneity_against_scipy() -> None:
    a, b = {"stop": 80, "length": 15, "tool": 25}, {"stop": 50, "length": 30, "tool": 20}
    found = homogeneity_test(a, b)
    oracle = chi2_contingency([[80, 15, 25], [50, 30, 20]], correction=False)
    assert found is not None
    assert (found.statistic, found.p_value) == pytest.approx((oracle.statistic, oracle.pvalue))


def test_rare_categories_are_pooled() -> None:
    """Six of 1 + 0 and 0 + 1 are expected half a time each: they become one of 3 and 3, expected three, and that is
    pooled with the next rarest."""
    a = {"x": 60, "y": 30, "z": 10, "p": 1, "q": 1, "r": 1}
    b = {"x": 30, "y": 60, "z": 10, "s": 1, "t": 1, "u": 1}
    found = homogeneity_test(a, b)
    oracle = chi2_contingency([[60, 30, 13], [30, 60, 13]], correction=False)
    assert found is not None
    assert (found.statistic, found.p_value) == pytest.approx((oracle.statistic, oracle.pvalue))


def test_two_categories_are_tested_exactly() -> None:
    """By counting: of all ways to give 9 refusals to 100 and 25 answers, those as far from the share, or farther."""
    found = homogeneity_test({"no": 97, "yes": 3}, {"no": 19, "yes": 6})
    assert found is not None
    ways = [math.comb(100, 9 - yes) * math.comb(25, yes) for yes in range(10)]
    as_far = sum(n for yes, n in enumerate(ways) if abs(yes - 9 * 25 / 125) >= 6 - 9 * 25 / 125)
    assert found.p_value == pytest.approx(as_far / sum(ways), rel=1e-9)
    oracle = chi2_contingency([[97, 3], [19, 6]], correction=False)
    assert found.statistic == pytest.approx(oracle.statistic)


def test_one_category_says_nothing_of_change() -> None:
    found = homogeneity_test({"stop": 30}, {"stop": 40, "length": 0})
    assert found is not None and (found.statistic, found.p_value) == (0.0, 1.0)


@given(SAMPLES)
def test_equal_samples_differ_by_nothing(x: list[int]) -> None:
    ks, chi = ks_test(x, x[::-1]), homogeneity_test(Counter(map(str, x)), Counter(map(str, x[::-1])))
    psi = stability_of_counts(Counter(map(str, x)), Counter(map(str, x)))
    assert ks is not None and chi is not None and psi is not None
    assert (ks.statistic, chi.statistic, psi.psi) == pytest.approx((0, 0, 0), abs=1e-12)
    assert (ks.p_value, chi.p_value) == pytest.approx((1, 1))


@given(st.lists(st.integers(0, 30), min_size=50, max_size=80), st.lists(st.integers(0, 30), min_size=50, max_size=80))
def test_psi_knows_no_order_and_is_not_negative(a: list[int], b: list[int]) -> None:
    found = stability_index(a, b)
    assert found is not None and found.psi >= 0 and found == stability_index(sorted(a), b[::-1])
    counted, swapped = (stability_of_counts(Counter(map(str, x)), Counter(map(str, y))) for x, y in ((a, b), (b, a)))
    assert counted is not None and swapped is not None
    assert counted.psi == pytest.approx(swapped.psi)  # with bins of its own reference it need not be the same


def test_too_few_say_nothing() -> None:
    for few in ([], [1.0] * 19):
        assert ks_test(few, range(100)) is None and ks_test(range(100), few) is None
        assert stability_index(range(100), few) is None and PageHinkley.of_reference(few, run_length=1e4) is None
    assert stability_index(range(100), range(49)) is None
    assert homogeneity_test({}, {"a": 30}) is None and stability_of_counts({"a": 30}, {"a": 19}) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        ks_test([bad] * 30, range(30))
    with pytest.raises(ValueError, match="not a finite number"):
        stability_index(range(60), [*range(60), bad])
    with pytest.raises(ValueError, match="not a finite number"):
        PageHinkley(mean=0, standard_deviation=1, delta=0.5, threshold=4).add(bad)
    with pytest.raises(ValueError, match="must be above 0"):
        threshold_for_run_length(1000, delta=bad)


def test_what_is_impossible_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        homogeneity_test({"a": -1}, {"a": 30})
    with pytest.raises(ValueError, match="one bin holds everything"):
        stability_index(range(60), range(60), num_bins=1)
    with pytest.raises(ValueError, match="a row of numbers"):
        ks_test([[1.0] * 30], range(30))
    with pytest.raises(ValueError, match="without spread"):
        PageHinkley(mean=0, standard_deviation=0, delta=0.5, threshold=4)
    with pytest.raises(ValueError, match="too short"):
        threshold_for_run_length(1, delta=0.5)
    assert PageHinkley.of_reference([3.0] * 50, run_length=1e4) is None


def test_page_hinkley_by_hand() -> None:
    """Mean 10, standard deviation 2, delta 0.5: z is 1, -2, 2, 2.5, 3."""
    watch = PageHinkley(mean=10, standard_deviation=2, delta=0.5, threshold=4)
    seen = [(watch.add(value), watch.rise, watch.fall) for value in (12, 6, 14, 15, 16)]
    assert seen == [(False, 0.5, 0), (False, 0, 1.5), (False, 1.5, 0), (False, 3.5, 0), (True, 6.0, 0)]
    watch.restart()
    assert (watch.add(4), watch.rise, watch.fall) == (False, 0, 2.5)
    assert watch.add(4) and watch.fall == 5.0


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=50))
def test_page_hinkley_against_sums_and_their_lowest(values: list[float]) -> None:
    watch = PageHinkley(mean=0.3, standard_deviation=1.7, delta=0.2, threshold=3)
    for n, value in enumerate(values, start=1):
        alarm = watch.add(value)
        heights = []
        for side in (1, -1):
            sums = [0.0]
            for each in values[:n]:
                sums.append(sums[-1] + side * (each - 0.3) / 1.7 - 0.2)
            heights.append(sums[-1] - min(sums))
        assert (watch.rise, watch.fall) == pytest.approx(tuple(heights), abs=1e-9)
        assert alarm == (max(watch.rise, watch.fall) > 3)


@pytest.mark.parametrize(("run_length", "threshold"), [(168, 4.0), (465, 5.0)])
def test_run_lengths_of_the_textbook(run_length: float, threshold: float) -> None:
    """Montgomery, Introduction to Statistical Quality Control, tabular CUSUM: two-sided, k = 1/2."""
    assert threshold_for_run_length(run_length, delta=0.5) == pytest.approx(threshold, abs=0.02)


@pytest.mark.parametrize(("delta", "run_length"), [(0.1, 3_000.0), (0.25, 10_000.0), (0.5, 1e6)])
def test_run_lengths_against_a_chain_of_states(delta: float, run_length: float) -> None:
    """One side as a Markov chain over 400 heights (Brook & Evans 1972): it takes twice as long as both."""
    threshold = threshold_for_run_length(run_length, delta=delta)
    width = 2 * threshold / 799
    heights = width * np.arange(400)
    upper = norm.cdf(heights[None, :] + width / 2 - heights[:, None] + delta)
    moves = np.diff(upper, axis=1, prepend=0.0)
    lengths = np.linalg.solve(np.eye(400) - moves, np.ones(400))
    assert lengths[0] / 2 == pytest.approx(run_length, rel=0.03)


def test_page_hinkley_finds_a_change_of_twice_delta() -> None:
    rng = np.random.default_rng(6)
    delays = []
    for shift in (-0.5, 0.5):
        watch = PageHinkley.of_reference(rng.normal(100, 20, 2_000), run_length=10_000)
        assert watch is not None
        assert not any(watch.add(value) for value in rng.normal(100, 20, 1_000))
        watch.restart()
        changed = rng.normal(100 + 20 * shift, 20, 500)
        delays.append(next(n for n, value in enumerate(changed, start=1) if watch.add(value)))
    # a sum that rises by 1/4 each time reaches 12.3 after about 50
    assert max(delays) < 150


def test_design_effect_of_copies_and_of_a_known_process() -> None:
    """Each value five times: an effect of five. An autoregression of 1/2: (1 + 1/2) / (1 - 1/2) = 3."""
    rng = np.random.default_rng(7)
    copies = [design_effect(np.repeat(rng.normal(size=400), 5)) for _ in range(20)]
    assert np.mean(copies) == pytest.approx(5, rel=0.1)
    effects = []
    for _ in range(20):
        x = rng.normal(size=2_000)
        for i in range(1, len(x)):
            x[i] += x[i - 1] / 2
        effects.append(design_effect(np.exp(x)))  # of ranks: what is only stretched stays
        assert effects[-1] == pytest.approx(design_effect(x))
    assert np.mean(effects) == pytest.approx(3, rel=0.1)
    assert np.mean([design_effect(rng.normal(size=1_000)) for _ in range(50)]) < 1.15


def test_design_effect_against_a_loop_over_lags() -> None:
    rng = np.random.default_rng(8)
    x = np.cumsum(rng.integers(-3, 4, 41))  # with equal ones, and an odd number
    ranks = np.array([(x < each).sum() + ((x == each).sum() + 1) / 2 for each in x])
    centred = ranks - ranks.mean()
    rho = [float(centred[: len(x) - lag] @ centred[lag:] / (centred @ centred)) for lag in range(len(x))]
    effect, lag = -1.0, 0
    while rho[lag] + rho[lag + 1] > math.sqrt(2 / 41):
        effect += 2 * (rho[lag] + rho[lag + 1])
        lag += 2
    assert effect > 1
    assert design_effect(x) == pytest.approx(effect)


def test_no_design_effect_where_nothing_is_known() -> None:
    assert design_effect([1.0] * 50) == design_effect(range(19)) == 1
    assert design_effect([0, 1] * 50) == 1  # less than independent is not believed
    with pytest.raises(ValueError, match="not a finite number"):
        design_effect([math.nan] * 30)


@given(st.floats(1e-12, 1), st.floats(1, 20))
def test_a_dependent_p_value_is_that_of_a_smaller_score(p_value: float, effect: float) -> None:
    score = norm.isf(p_value / 2) / math.sqrt(effect)
    assert dependent_p_value(p_value, effect) == pytest.approx(2 * norm.sf(score), rel=1e-6)
    assert dependent_p_value(p_value, effect) >= p_value * (1 - 1e-9)
    assert dependent_p_value(p_value, 1.0) == p_value
