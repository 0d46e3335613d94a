import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from burnish.stats.power import required_number, t_power
from burnish.stats.variance import split_error


def drawn(rng: np.random.Generator, shape: tuple[int, int, int], item_I: np.ndarray) -> np.ndarray:
    """seed sd 0.3, seed x item sd 0.4, sample sd 0.5."""
    seeds, items, _ = shape
    return (
        item_I[:, None]
        + rng.normal(0, 0.3, size=(seeds, 1, 1))
        + rng.normal(0, 0.4, size=(seeds, items, 1))
        + rng.normal(0, 0.5, size=shape)
    )


def test_error_of_a_difference_is_the_sum_of_its_parts() -> None:
    rng = np.random.default_rng(1)
    parts, differences = [], []
    for _ in range(400):
        hard = rng.normal(0, 2, size=40)
        a, b = (drawn(rng, (4, 40, 2), hard + rng.normal(0, 0.6, size=40)) for _ in "ab")
        parts.append(split_error(a, b))
        differences.append(b.mean() - a.mean())
    expected = (2 * 0.09 / 4, 2 * 0.36 / 40, 2 * 0.16 / 160, 2 * 0.25 / 320)
    found = [np.mean([getattr(each, name) for each in parts]) for name in ("seed", "item", "rest", "sample")]
    assert found == pytest.approx(expected, rel=0.15)
    assert np.var(differences) == pytest.approx(sum(expected), rel=0.2)
    assert parts[0].cheapest == "seeds"


@pytest.mark.slow
@given(st.integers(2, 4), st.integers(2, 5), st.integers(2, 3), st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_parts_against_the_anova_of_statsmodels(seeds: int, items: int, samples: int, start: int) -> None:
    rng = np.random.default_rng(start)
    scores_SIK = drawn(rng, (seeds, items, samples), rng.normal(0, 1, size=items))
    seed, item, _ = np.indices(scores_SIK.shape)
    data = pd.DataFrame({"y": scores_SIK.ravel(), "seed": seed.ravel(), "item": item.ravel()})
    table = anova_lm(ols("y ~ C(seed) * C(item)", data).fit())
    square = table["sum_sq"] / table["df"]
    both, rest = square["C(seed):C(item)"], square["Residual"]
    expected = (
        (square["C(seed)"] - both) / (items * samples),
        (square["C(item)"] - both) / (seeds * samples),
        (both - rest) / samples,
        rest,
    )
    found = split_error(np.zeros((1, items, 1)), scores_SIK)  # against what is fixed, these are the parts of one arm
    counts = (seeds, items, seeds * items, seeds * items * samples)
    wanted = [max(0.0, each) / count for each, count in zip(expected, counts, strict=True)]
    assert (found.seed, found.item, found.rest, found.sample) == pytest.approx(wanted)


def test_buying_twice_by_hand() -> None:
    """One seed, samples that differ and items that do not: only samples or items help, and samples no less."""
    a = np.zeros((1, 4, 2))
    b = np.tile([0.0, 1.0], (1, 4, 1))
    found = split_error(a, b)
    assert np.isnan(found.seed) and np.isnan(found.factor_seeds)
    assert found.sample == pytest.approx(0.5 / 8) and found.item == 0.0
    assert found.factor_items == found.factor_samples == pytest.approx(0.5**0.5)


def test_one_sample_and_bad_scores() -> None:
    found = split_error(np.zeros((3, 4, 1)), np.arange(12.0).reshape(3, 4, 1))
    assert np.isnan(found.sample) and np.isnan(found.factor_samples) and found.seed > 0
    nothing = split_error(np.zeros((2, 3, 2)), np.zeros((2, 3, 2)))
    assert nothing.factor_items == 1.0
    for wrong, message in (
        (np.full((2, 3, 2), np.nan), "not a finite"),
        (np.full((2, 3, 2), np.inf), "not a finite"),
        (np.zeros((2, 1, 2)), "two items or more"),
        (np.zeros((2, 4, 2)), "A has 3 items and B 4"),
    ):
        with pytest.raises(ValueError, match=message):
            split_error(np.zeros((1, 3, 2)), wrong)
    with pytest.raises(ValueError, match="share one cluster"):
        split_error(np.zeros((2, 3, 1)), np.zeros((2, 3, 1)), clusters="aaa")


@given(st.integers(2, 5), st.integers(3, 12), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_shared_seeds_by_the_mean_squares_of_the_differences(seeds: int, items: int, start: int) -> None:
    """Two-way random model without replicates: the variance of the mean is (MS seed + MS item - MS rest) / (S I)."""
    rng = np.random.default_rng(start)
    a, b = rng.normal(size=(2, seeds, items))
    apart = b - a
    rest = apart - apart.mean(axis=1, keepdims=True) - apart.mean(axis=0) + apart.mean()
    of_seed, of_item = items * apart.mean(axis=1).var(ddof=1), seeds * apart.mean(axis=0).var(ddof=1)
    of_rest = (rest**2).sum() / ((seeds - 1) * (items - 1))
    found = split_error(a[:, :, None], b[:, :, None], is_paired=True)
    expected = max(of_seed, of_item, of_seed + of_item - of_rest) / (seeds * items)
    assert found.squared_error == pytest.approx(expected)
    assert (found.seed, found.item) == pytest.approx(
        (max(of_seed - of_rest, 0) / (seeds * items), max(of_item - of_rest, 0) / (seeds * items))
    )
    assert min(seeds, items) - 1 <= found.freedom


def test_clusters_of_one_are_items_and_missing_samples_are_left_out() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 3, 8, 2))
    plain, alone = split_error(a, b), split_error(a, b, clusters=range(8))
    assert plain == alone
    together = split_error(np.repeat(a, 4, axis=1), np.repeat(b, 4, axis=1), clusters=np.repeat(range(8), 4).tolist())
    for name in ("seed", "item", "squared_error", "freedom"):  # items that are copies of each other tell nothing new
        assert getattr(together, name) == pytest.approx(getattr(plain, name), rel=0.2)
    holed = b.copy()
    holed[1, 3, 0] = np.nan
    filled = b.copy()
    filled[1, 3, 0] = b[1, 3, 1]
    assert split_error(a, holed).seed == pytest.approx(split_error(a, filled).seed)


def test_the_error_over_seeds_and_items_covers() -> None:
    """5 seeds and 40 items, whose parts are alike: 95% intervals hold the truth about so often."""
    rng, covered = np.random.default_rng(6), 0
    for _ in range(1500):
        arms = []
        for _ in "ab":
            own = rng.normal(0, 0.3, size=40) + rng.normal(0, 0.1, size=(5, 1)) + rng.normal(0, 0.2, size=(5, 40))
            arms.append(own[:, :, None])
        found = split_error(*arms)
        covered += abs(arms[1].mean() - arms[0].mean()) <= found.half_width(0.025)
    assert 0.94 <= covered / 1500 <= 0.98


@pytest.mark.parametrize("seeds", [2, 3])
def test_few_shared_seeds_cover(seeds: int) -> None:
    """Seeds that are near each other by chance do not make the error known: one t on Satterthwaite's degrees covers
    90 and 93% here.
    """
    rng, covered = np.random.default_rng(8), 0
    for _ in range(3000):
        apart = rng.normal(0, 0.3, size=40) + rng.normal(0, 0.12, size=(seeds, 1)) + rng.normal(0, 0.05, (seeds, 40))
        found = split_error(np.zeros((seeds, 40, 1)), apart[:, :, None], is_paired=True)
        covered += abs(apart.mean()) <= found.half_width(0.025)
    assert covered / 3000 >= 0.948


def test_the_tail_undoes_the_width() -> None:
    rng = np.random.default_rng(3)
    found = split_error(*rng.normal(size=(2, 3, 20, 1)))
    for tail in (0.4, 0.025, 1e-9, 1e-150):
        assert found.tail(found.half_width(tail)) == pytest.approx(tail)
    assert found.tail(0.0) == 0.5
    assert found.tail(-found.half_width(0.01)) == pytest.approx(0.99)
    assert found.tail(1e100) == 0.0
    alone = split_error(np.zeros((1, 20, 1)), rng.normal(size=(1, 20, 1)))  # a plain t test over items
    assert alone.half_width(0.025) == pytest.approx(t.isf(0.025, 19) * alone.squared_error**0.5)


def test_what_more_seeds_or_items_would_do() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(2, 4, 50, 1))
    found = split_error(a, b + rng.normal(0, 0.3, size=(1, 50, 1)))
    seeds, items = found.more_seeds(4), found.more_items(50)
    assert seeds.stays == found.item and items.stays == found.seed
    error = (seeds.stays + seeds.shrinks / 2) ** 0.5
    assert seeds.number_within(error * (1 + 1e-9)) == 8
    assert seeds.number_within(seeds.stays**0.5) is None
    effect = 3 * error
    assert seeds.power(8, effect, 0.05) == pytest.approx(t_power(found.freedom, 3, 0.05))
    assert required_number(items, 100 * error) == 2
