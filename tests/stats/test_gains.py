import numpy as np
import pytest
import statsmodels.api as sm

from burnish.stats.gains import explained_gain, largest_drop, rise_test, slopes_within


def test_rises_by_hand() -> None:
    proxy = [[0.0, 1.0]] * 6 + [[0.0, 0.0]] * 2
    gold = [[0.0, 0.0]] * 4 + [[1.0, 1.0]] * 4
    found = rise_test(proxy, gold)
    assert found.proxy_gain.value == 0.75 and found.gold_gain.value == 0.0
    # 6 ones among 16: variance 6/16 * 10/16; gold is 8 of 16, and does not move
    assert found.proxy_rise.value == pytest.approx(0.75 / (6 / 16 * 10 / 16) ** 0.5)
    assert found.gold_rise.value == 0.0 and found.gold_gain.low == found.gold_gain.high == 0.0
    assert found.p_value < 0.01


def test_neither_scale_nor_offset_of_a_score_matters() -> None:
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal((0, 1), size=(50, 2)), rng.normal((0, 0.2), size=(50, 2))
    one, other = rise_test(proxy, gold), rise_test(1000 + 7 * proxy, 3 * gold - 20)
    assert one.p_value == other.p_value
    assert one.proxy_rise.value == pytest.approx(other.proxy_rise.value)


def test_scores_that_do_not_move_are_no_rise() -> None:
    found = rise_test(np.ones((12, 2)), np.zeros((12, 2)))
    assert found.proxy_rise.value == 0.0 and found.p_value == 1.0


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite scores"):
        rise_test([[0.0, np.nan]], [[0.0, 1.0]])


def _answers(seed: int, *, length_worth: float, moves: float, learns: float):
    """20 prompts, 4 answers each at an early and a late time: reward = worth * length + learning + difficulty."""
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(40) % 20, 4)
    late = np.repeat(np.arange(40) >= 20, 4)
    length = rng.normal(10, 2, 160) + moves * late
    reward = length_worth * length + learns * late + rng.normal(0, 1, 20)[prompt] + rng.normal(0, 0.1, 160)
    sides = {"group": np.repeat(np.arange(40), 4), "prompt": prompt, "is_early": ~late, "is_late": late}
    return reward, {"length": length, "noise": rng.normal(size=160)}, sides


def test_a_gain_by_length_is_told_from_a_gain_by_learning() -> None:
    reward, features, sides = _answers(1, length_worth=0.1, moves=8.0, learns=0.4)
    found = explained_gain(reward, features, **sides)
    assert found.rest.value + found.explained.value == pytest.approx(found.gain.value)
    assert explained_gain(*_answers(1, length_worth=0.1, moves=8.0, learns=0.0)[:2], **sides).p_value < 0.01
    assert explained_gain(*_answers(1, length_worth=0.0, moves=8.0, learns=1.0)[:2], **sides).p_value > 0.1


@pytest.mark.slow
def test_what_length_explains_is_unbiased_and_covered() -> None:
    rest, covered = [], 0
    for seed in range(100):
        reward, features, sides = _answers(seed, length_worth=0.1, moves=8.0, learns=0.4)
        found = explained_gain(reward, features, **sides)
        rest.append(found.rest.value)
        covered += found.rest.low < 0.4 < found.rest.high
    assert np.mean(rest) == pytest.approx(0.4, abs=3 * np.std(rest) / 10)
    assert covered >= 85  # a percentile interval over 20 prompts is a little narrow


def test_what_a_feature_is_worth_is_that_of_a_regression_with_a_constant_for_each_group() -> None:
    reward, features, sides = _answers(2, length_worth=0.1, moves=5.0, learns=0.3)
    dummies = np.eye(40)[sides["group"]]
    fit = sm.OLS(reward, np.column_stack([features["length"], features["noise"], dummies])).fit()
    late = sides["is_late"]
    for index, name in enumerate(features):
        moved = features[name][late].mean() - features[name][~late].mean()
        found = explained_gain(reward, features, **sides).by_feature[name].value
        assert found == pytest.approx(fit.params[index] * moved)


def test_the_scale_of_a_feature_and_one_that_never_varies_do_not_matter() -> None:
    reward, features, sides = _answers(0, length_worth=0.1, moves=8.0, learns=0.4)
    one = explained_gain(reward, features, **sides)
    more = {"length": 1000 * features["length"], "noise": features["noise"], "none": np.ones(160)}
    other = explained_gain(reward, more, **sides)
    assert other.by_feature["length"].value == pytest.approx(one.by_feature["length"].value)
    assert other.by_feature["none"].value == 0.0


def test_an_early_and_a_late_time_are_needed() -> None:
    reward, features, sides = _answers(0, length_worth=0.1, moves=8.0, learns=0.4)
    with pytest.raises(ValueError, match="early and of a late"):
        explained_gain(reward, features, **{**sides, "is_late": np.zeros(160)})


def test_slopes_by_hand() -> None:
    slope, weight = slopes_within([1.0, 3.0, 10.0, 10.0], [0.0, 1.0, 0.0, 1.0], group=[0, 0, 1, 1])
    assert (slope, weight) == (1.0, 1.0)  # 2 in one group, 0 in the other
    slope, weight = slopes_within([1.0, 3.0], [1.0, 1.0], group=[0, 0])
    assert np.isnan(slope) and weight == 0.0


def test_a_drop_is_found_where_it_is() -> None:
    rng = np.random.default_rng(0)
    values = np.r_[np.ones(12), np.zeros(8)] + rng.normal(0, 0.2, 20)
    found = largest_drop(values, np.ones(20), np.arange(1, 21))
    assert found.last_before == 12 and found.p_value < 0.01
    assert found.before == pytest.approx(values[:12].mean()) and found.after == pytest.approx(values[12:].mean())


def test_a_rise_is_no_drop() -> None:
    assert largest_drop(np.r_[np.zeros(10), np.ones(10)], np.ones(20), np.arange(20)).p_value > 0.9


def test_steps_without_weight_are_left_out_and_few_steps_give_nothing() -> None:
    values = np.r_[[np.nan] * 3, np.ones(6), np.zeros(6)]
    weights = np.r_[[0.0] * 3, np.ones(12)]
    assert largest_drop(values, weights, np.arange(15)).last_before == 8
    assert largest_drop([1.0] * 5, [1.0] * 5, range(5)) is None


@pytest.mark.slow
def test_a_constant_series_with_unequal_noise_raises_few_false_alarms() -> None:
    alarms = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        weights = rng.uniform(0.5, 8.0, 25)
        found = largest_drop(0.8 + rng.normal(0, 1, 25) / weights**0.5, weights, np.arange(25))
        alarms += found.p_value <= 0.05
    assert alarms <= 24  # 300 runs of exactly 5% exceed it with probability 0.01
