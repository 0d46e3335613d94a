import pytest

from burnish.errors import ConfigError
from burnish.experiments.designs import (
    ablation,
    alias_table,
    arms_of,
    defining_words,
    fraction,
    full_factorial,
    resolution,
)
from burnish.experiments.schema import Factor

NAMED = {name: Factor(key=f"task.options.{name}", levels=(0, 1)) for name in "abcd"}
HALF = {"d": ("a", "b", "c")}


def test_a_full_factorial_has_every_combination_once() -> None:
    factors = {"rate": Factor(key="r", levels=(1, 2, 3)), "size": Factor(key="s", levels=("x", "y"))}
    runs = list(full_factorial(factors))
    assert [tuple(run.values()) for run in runs] == [(r, s) for r in "123" for s in "xy"]


def test_a_nested_factor_is_not_crossed() -> None:
    factors = {
        "method": Factor(key="recipe", levels=("kto", "dpo")),
        "beta": Factor(key="loss.beta", levels=(0.1, 0.5), within={"method": "dpo"}),
    }
    assert list(full_factorial(factors)) == [
        {"method": "kto"},
        {"method": "dpo", "beta": "0.1"},
        {"method": "dpo", "beta": "0.5"},
    ]


def test_the_half_fraction_of_four_factors_by_hand() -> None:
    # Box, Hunter and Hunter's 2^(4-1) with d = abc, in standard order up to which factor varies fastest
    runs = {"".join(level for level in run.values()) for run in fraction(NAMED, HALF)}
    assert runs == {"0000", "0011", "0101", "0110", "1001", "1010", "1100", "1111"}
    assert resolution(HALF) == 4 and defining_words(HALF) == ["a x b x c x d"]


def test_the_alias_table_of_the_half_fraction_by_hand() -> None:
    assert alias_table(list("abcd"), HALF) == [
        ("a", ["b x c x d"]),
        ("b", ["a x c x d"]),
        ("c", ["a x b x d"]),
        ("d", ["a x b x c"]),
        ("a x b", ["c x d"]),
        ("a x c", ["b x d"]),
        ("a x d", ["b x c"]),
    ]


def test_a_quarter_fraction_by_hand() -> None:
    # d = ab, e = ac: words abd, ace and their product bcde
    generators = {"d": ("a", "b"), "e": ("a", "c")}
    assert defining_words(generators) == ["a x b x d", "a x c x e", "b x c x d x e"]
    table = dict(alias_table(list("abcde"), generators))
    assert table["a"] == ["b x d", "c x e", "a x b x c x d x e"]
    assert table["b"] == ["a x d", "c x d x e", "a x b x c x e"]
    assert table["b x c"] == ["d x e", "a x b x e", "a x c x d"]


def test_a_fraction_is_balanced_for_every_pair_of_factors() -> None:
    runs = fraction(NAMED, HALF)
    for first in "abcd":
        for second in set("abcd") - {first}:
            pairs = [(run[first], run[second]) for run in runs]
            assert {pairs.count(pair) for pair in pairs} == {2} and len(set(pairs)) == 4


def test_an_ablation_takes_out_one_at_a_time() -> None:
    arms = ablation({"kl": Factor(key="k", levels=(0.0, 0.1)), "clip": Factor(key="c", levels=(None, 0.2))})
    assert [(arm.name, dict(arm.settings)) for arm in arms] == [
        ("full", {"k": 0.1, "c": 0.2}),
        ("without-kl", {"k": 0.0, "c": 0.2}),
        ("without-clip", {"k": 0.1, "c": None}),
    ]


def test_named_levels_set_several_keys(load) -> None:
    factors = {"size": {"levels": {"small": {"a": 1, "b": 2}, "large": {"a": 3, "b": 4}}}}
    arms = arms_of(load(arms=None, baseline=None, factors=factors))
    assert [(arm.name, dict(arm.settings)) for arm in arms] == [
        ("size-small", {"a": 1, "b": 2}),
        ("size-large", {"a": 3, "b": 4}),
    ]


def test_arms_with_long_names_are_numbered(load) -> None:
    factors = {"path": {"key": "model.path", "levels": ["/models/" + "x" * 60, "/models/" + "y" * 60]}}
    assert [arm.name for arm in arms_of(load(arms=None, baseline=None, factors=factors))] == ["arm-01", "arm-02"]


@pytest.mark.parametrize(
    ("generators", "message"),
    [
        ({}, "needs generators"),
        ({"e": ("a", "b")}, "'e' is no factor"),
        ({"d": ("a", "x")}, "'x' must be a factor"),
        ({"d": ("a",)}, "two or more different factors"),
        ({"c": ("a", "b"), "d": ("a", "c")}, "'c' must be a factor without a generator"),
        ({"c": ("a", "b"), "d": ("a", "b")}, "two main effects would be one: c x d"),
    ],
)
def test_fractions_that_are_none(generators: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fraction(NAMED, generators)


def test_a_fraction_needs_two_levels() -> None:
    with pytest.raises(ConfigError, match=r"factors.e: design=fraction needs two levels"):
        fraction({**NAMED, "e": Factor(key="e", levels=(1, 2, 3))}, HALF)


@pytest.mark.parametrize(
    ("within", "message"),
    [({"later": 1}, "listed earlier"), ({"method": "ppo"}, "method has no level 'ppo', only kto, dpo")],
)
def test_nesting_that_cannot_be(load, within: dict, message: str) -> None:
    factors = {
        "method": {"key": "recipe", "levels": ["kto", "dpo"]},
        "beta": {"key": "loss.beta", "levels": [1, 2], "within": within},
    }
    with pytest.raises(ConfigError, match=message):
        arms_of(load(arms=None, baseline=None, factors=factors))


def test_two_factors_on_one_setting_are_refused(load) -> None:
    factors = {name: {"key": "seed", "levels": [1, 2]} for name in ("one", "two")}
    with pytest.raises(ConfigError, match=r"factors.two: seed is set by another factor"):
        arms_of(load(arms=None, baseline=None, factors=factors))
