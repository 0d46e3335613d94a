import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from burnish.stats.variance import split_error, split_variance


def drawn(rng: np.random.Generator, shape: tuple[int, int, int], item_I: np.ndarray) -> np.ndarray:
    """seed sd 0.3, seed x item sd 0.4, sample sd 0.5."""
    seeds, items, _ = shape
    return (
        item_I[:, None]
        + rng.normal(0, 0.3, size=(seeds, 1, 1))
        + rng.normal(0, 0.4, size=(seeds, items, 1))
        + rng.normal(0, 0.5, size=shape)
    )


def test_parts_are_unbiased() -> None:
    rng = np.random.default_rng(0)
    found = [split_variance(drawn(rng, (6, 30, 3), rng.normal(0, 1.0, size=30))) for _ in range(300)]
    means = [np.mean([getattr(each, name) for each in found]) for name in ("seed", "item", "seed_item", "sample")]
    assert means == pytest.approx([0.09, 1.0, 0.16, 0.25], rel=0.08)


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
    found = split_variance(scores_SIK)
    assert (found.seed, found.item, found.seed_item, found.sample) == pytest.approx([max(0.0, e) for e in expected])


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
    with pytest.raises(ValueError, match="not a finite"):
        split_variance(np.full((2, 3, 2), np.nan))
    with pytest.raises(ValueError, match="two items or more"):
        split_variance(np.zeros((2, 1, 2)))
