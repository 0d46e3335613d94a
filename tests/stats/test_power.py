import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from statsmodels.stats.power import TTestIndPower, TTestPower, normal_power_het
from statsmodels.stats.proportion import power_proportions_2indep

from burnish.stats.power import (
    Clustered,
    Design,
    OneProportion,
    PairedMeans,
    PairedProportions,
    SampledMeans,
    TwoMeans,
    TwoProportions,
    achieved_power,
    independent_discordance,
    required_number,
    required_samples,
    smallest_effect,
    smallest_shift,
)


@pytest.mark.parametrize(
    ("d", "published"), [(0.2, 393.4057), (0.5, 63.7656), (0.8, 25.5246), (1.0, 16.71), (1.5, 8.06)]
)
def test_two_means_published(d: float, published: float) -> None:  # Cohen, G*Power
    design = TwoMeans(sd=1)
    digit = 0.00005 if published > 20 else 0.005
    assert design.power(published - digit, d, 0.05) <= 0.8 <= design.power(published + digit, d, 0.05)
    assert required_number(design, d) == math.ceil(published)


@pytest.mark.parametrize(("d", "published"), [(0.5, 33.3671), (1.5, 5.69)])
def test_paired_means_published(d: float, published: float) -> None:
    design = PairedMeans(sd_difference=1)
    digit = 0.00005 if published > 20 else 0.005
    assert design.power(published - digit, d, 0.05) <= 0.8 <= design.power(published + digit, d, 0.05)
    assert required_number(design, d) == math.ceil(published)


def test_what_few_seeds_can_see() -> None:  # evaluation practice: 3, 5, 10 seeds an arm; 5 shared seeds
    found = [smallest_effect(TwoMeans(sd=1), seeds) for seeds in (3, 5, 10)]
    assert found == pytest.approx([3.07, 2.02, 1.32], abs=0.005)
    assert smallest_effect(PairedMeans(sd_difference=1), 5) == pytest.approx(1.68, abs=0.005)


@given(st.integers(2, 60), st.floats(0.5, 0.95), st.floats(0.001, 0.2))
def test_the_smallest_shift_is_that_of_pairs(pairs: int, power: float, alpha: float) -> None:
    effect = smallest_effect(PairedMeans(sd_difference=1), pairs, alpha=alpha, power=power)
    assert smallest_shift(pairs - 1, alpha=alpha, power=power) == pytest.approx(effect * math.sqrt(pairs))


def test_a_shift_of_one_degree_is_found_so_often() -> None:
    shift = smallest_shift(1)
    draws = np.random.default_rng(0).normal(shift / 2**0.5, 1.0, size=(200_000, 2))
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / 2**0.5)
    assert (np.abs(t) > 12.7062).mean() == pytest.approx(0.8, abs=0.004)
    assert smallest_shift(0) == math.inf


@pytest.mark.parametrize(("samples", "published"), [(math.inf, 968.998), (1, 3875.990)])
def test_miller_published(samples: float, published: float) -> None:
    """The formula neglects the far tail, whose chance is below 1e-5 here."""
    design = SampledMeans(item_sd=1 / 3, sample_sd=math.sqrt(1 / 6), samples=samples)
    assert design.power(published, 0.03, 0.05) == pytest.approx(0.8, abs=2e-6)
    assert required_number(design, 0.03) == math.ceil(published)


@given(st.integers(2, 3000), st.floats(0.05, 2), st.floats(0.001, 0.2))
def test_means_against_statsmodels(number: int, d: float, alpha: float) -> None:
    for design, peer in ((TwoMeans(sd=2), TTestIndPower()), (PairedMeans(sd_difference=2), TTestPower())):
        found, expected = design.power(number, 2 * d, alpha), peer.power(d, number, alpha)
        assert 0 < found <= 1
        assert math.isnan(expected) or found == pytest.approx(expected, abs=1e-7)  # NaN where scipy's far tail is


@given(st.floats(0.02, 0.9), st.floats(0.01, 0.5), st.integers(10, 5000))
def test_two_proportions_against_statsmodels(baseline: float, effect: float, number: int) -> None:
    assume(baseline + effect < 0.999)
    expected = power_proportions_2indep(effect, baseline, number, return_results=False)
    assert TwoProportions(baseline=baseline).power(number, effect, 0.05) == pytest.approx(float(expected), abs=1e-3)


@given(st.floats(0.02, 0.9), st.floats(0.01, 0.5), st.integers(10, 5000))
def test_one_proportion_against_statsmodels(baseline: float, effect: float, number: int) -> None:
    assume(baseline + effect < 0.999)
    spreads = {"std_null": math.sqrt(baseline * (1 - baseline))}
    spreads["std_alternative"] = math.sqrt((baseline + effect) * (1 - baseline - effect))
    expected = normal_power_het(effect, number, 0.05, **spreads)
    assert OneProportion(baseline=baseline).power(number, effect, 0.05) == pytest.approx(float(expected), abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 60), st.floats(0.05, 1), st.floats(0.05, 1))
def test_paired_proportions_by_summing_the_exact_test(number: int, discordance: float, part: float) -> None:
    effect = discordance * part
    share = (1 + part) / 2
    found = 0.0
    for discordant in range(1, number + 1):
        finds = [b for b in range(discordant + 1) if binomtest(b, discordant, 0.5).pvalue <= 0.05]
        found += binom.pmf(discordant, number, discordance) * sum(binom.pmf(b, discordant, share) for b in finds)
    design = PairedProportions(discordance=discordance)
    assert design.power(number, effect, 0.05) == pytest.approx(float(found), abs=1e-9)


DESIGNS: list[Design] = [
    OneProportion(baseline=0.3),
    TwoProportions(baseline=0.6),
    PairedProportions(discordance=0.3),
    TwoMeans(sd=0.1),
    PairedMeans(sd_difference=0.2),
    SampledMeans(item_sd=0.2, sample_sd=0.4, samples=4),
    Clustered(design=TwoProportions(baseline=0.5), cluster_size=4, icc=0.2),
]


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: type(design).__name__)
def test_number_effect_and_power_belong_together(design: Design) -> None:
    number = required_number(design, 0.07, power=0.9)
    assert achieved_power(design, number, 0.07) >= 0.9 > design.power(number - 1, 0.07, 0.05)
    effect = smallest_effect(design, number, power=0.9)
    assert 0.06 < effect <= 0.07 + 1e-9
    assert achieved_power(design, number, effect) == pytest.approx(0.9, abs=1e-6)
    assert required_number(design, 0.07, power=0.9, alpha=0.01) > number


def test_clusters_multiply_the_items() -> None:
    alone = TwoMeans(sd=1)
    clustered = Clustered(design=alone, cluster_size=5, icc=0.1)
    assert clustered.design_effect == pytest.approx(1.4)
    assert required_number(clustered, 0.5) == math.ceil(1.4 * 63.7656)
    assert required_number(Clustered(design=alone, cluster_size=5, icc=0), 0.5) == 64


def test_samples_until_it_is_enough() -> None:
    spread = {"item_sd": 1 / 3, "sample_sd": math.sqrt(1 / 6)}
    assert required_samples(3876, 0.03, **spread) == 1
    samples = required_samples(1000, 0.03, **spread)
    # the items that K samples take are 968.998 (1 + 3 / K), and 1,000 are there
    assert samples == math.ceil(3 / (1000 / 968.998 - 1))
    with pytest.raises(ValueError, match="500 items are too few, however often each is asked: at least 969"):
        required_samples(500, 0.03, **spread)


def test_independent_models_disagree_most_at_one_half() -> None:
    assert independent_discordance(0.5, 0.1) == pytest.approx(0.5)
    assert independent_discordance(0.9, 0.05) == pytest.approx(0.9 * 0.05 + 0.95 * 0.1)


def test_tiny_effects_and_huge_ones() -> None:
    assert required_number(TwoMeans(sd=1), 0.001) == pytest.approx(2 * (1.959964 + 0.841621) ** 2 * 1e6, rel=1e-5)
    assert required_number(TwoMeans(sd=1), 100) == 2
    with pytest.raises(ValueError, match="more than 1,000,000,000"):
        required_number(TwoMeans(sd=1), 1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: required_number(TwoMeans(sd=1), 0), "the effect must be above 0, and is 0"),
        (lambda: required_number(TwoMeans(sd=1), -1), "the effect must be above 0"),
        (lambda: required_number(TwoMeans(sd=1), math.nan), "the effect must be above 0"),
        (lambda: required_number(TwoProportions(baseline=0.9), 0.2), "an effect of 0.2 is impossible: the most is 0.1"),
        (lambda: required_number(PairedProportions(discordance=0.1), 0.2), "impossible: the most is 0.1"),
        (lambda: required_number(TwoMeans(sd=1), 1, alpha=0), "alpha must lie between 0 and 1"),
        (lambda: required_number(TwoMeans(sd=1), 1, alpha=1.5), "alpha must lie between 0 and 1"),
        (lambda: required_number(TwoMeans(sd=1), 1, power=1), "the power must lie between alpha"),
        (lambda: required_number(TwoMeans(sd=1), 1, power=0.01), "the power must lie between alpha"),
        (lambda: achieved_power(TwoMeans(sd=1), 1, 1), "1 are too few for this test: it needs at least 2"),
        (lambda: achieved_power(OneProportion(baseline=0.5), -3, 0.1), "-3 are too few"),
        (lambda: smallest_effect(PairedProportions(discordance=0.2), 5), "5 are too few: not even the largest"),
        (lambda: TwoMeans(sd=0), "standard deviation must be above 0"),
        (lambda: PairedProportions(discordance=0), "the discordance must be above 0"),
        (lambda: OneProportion(baseline=-0.1), "the baseline must be above 0"),
        (lambda: SampledMeans(item_sd=-1, sample_sd=1, samples=1), "must not be negative"),
        (lambda: SampledMeans(item_sd=1, sample_sd=1, samples=0), "at least one sample"),
        (lambda: Clustered(design=TwoMeans(sd=1), cluster_size=0, icc=0.1), "at least one item"),
        (lambda: Clustered(design=TwoMeans(sd=1), cluster_size=2, icc=2), "between 0 and 1, and is 2"),
    ],
)
def test_impossible_plans(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
