import math
import time
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_hypergeom

from burnish.stats.samples import best_of_n, kl_of_best_of_n, majority_at_k, pass_all_k, pass_at_k


def test_pass_at_k_published() -> None:
    assert pass_at_k([2, 4, 2], 5, 1) == pytest.approx([0.4, 0.8, 0.4])  # Hugging Face's code_eval
    assert float(pass_at_k(3, 10, 5)) == pytest.approx(0.9166666667, abs=5e-11)
    assert float(pass_at_k(10, 100, 10)) == pytest.approx(0.6695237889, abs=5e-11)
    assert float(pass_at_k(1, 8, 8)) == 1.0
    assert float(pass_all_k(6, 8, 3)) == pytest.approx(0.3571428571, abs=5e-11)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 9))
def test_pass_by_enumeration(is_right: list[bool], k: int) -> None:
    any_right, all_right = (
        float(pass_at_k(sum(is_right), len(is_right), k)),
        float(pass_all_k(sum(is_right), len(is_right), k)),
    )
    if k > len(is_right):
        assert math.isnan(any_right) and math.isnan(all_right)
        return
    subsets = list(combinations(is_right, k))
    assert any_right == pytest.approx(np.mean([any(each) for each in subsets]))
    assert all_right == pytest.approx(np.mean([all(each) for each in subsets]))


def test_items_with_different_numbers_of_samples() -> None:
    assert pass_at_k([[1, 2], [0, 8]], [[2, 4], [4, 8]], 3) == pytest.approx(
        np.array([[math.nan, 1.0], [0.0, 1.0]]), nan_ok=True
    )


def test_many_samples_keep_their_precision() -> None:
    assert float(pass_at_k(1, 10_000, 5_000)) == 0.5
    assert float(pass_at_k(1, 10**6, 1)) == 1e-6


def test_pass_of_many_items_is_quick() -> None:
    right = np.random.default_rng(0).integers(0, 17, 100_000)
    began = time.perf_counter()
    pass_at_k(right, 16, 4)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    ("right", "samples", "k", "message"),
    [
        (1, 2, 0, "k = 0"),
        (3, 2, 1, "fewer samples than right"),
        (-1, 2, 1, "less than none"),
        (0.5, 2, 1, "must be whole"),
    ],
)
def test_impossible_counts(right: float, samples: int, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at_k(right, samples, k)


def majority_by_enumeration(answers: list[str | None], right: set[str], k: int) -> float:
    chances = []
    for subset in combinations(answers, k):
        votes = Counter(answer for answer in subset if answer is not None)
        most = [answer for answer, count in votes.items() if count == max(votes.values())]
        chances.append(sum(answer in right for answer in most) / len(most) if most else 0.0)
    return float(np.mean(chances))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=10),
    st.sets(st.sampled_from("abcd")),
    st.data(),
)
def test_majority_by_enumeration(answers: list[str | None], right: set[str], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    is_right = [answer in right for answer in answers]
    assert majority_at_k(answers, is_right, k) == pytest.approx(majority_by_enumeration(answers, right, k), abs=1e-12)


def test_majority_of_one_is_the_share_and_of_all_is_the_vote() -> None:
    answers = ["4"] * 300 + ["5"] * 500 + [None] * 1200  # far beyond the range of C(2000, 1000)
    is_right = [answer == "4" for answer in answers]
    assert majority_at_k(answers, is_right, 1) == pytest.approx(0.15)
    assert majority_at_k(answers, is_right, 2000) == 0.0
    four, five = np.meshgrid(np.arange(201), np.arange(201))
    drawn = np.stack([four, five, 200 - four - five], axis=-1)[four + five <= 200]
    chances = multivariate_hypergeom.pmf(drawn, [300, 500, 1200], 200)
    expected = (
        chances[drawn[:, 0] > drawn[:, 1]].sum() + chances[(drawn[:, 0] == drawn[:, 1]) & (drawn[:, 0] > 0)].sum() / 2
    )
    assert majority_at_k(answers, is_right, 200) == pytest.approx(expected, rel=1e-9)


def test_majority_by_simulation() -> None:
    rng = np.random.default_rng(3)
    answers = [str(each) for each in [0] * 20 + [1] * 18 + [2] * 15 + list(range(3, 14))]
    is_right = [answer == "0" for answer in answers]
    wins = 0.0
    for _ in range(4000):
        votes = Counter(rng.permutation(answers)[:32].tolist())
        most = [answer for answer, count in votes.items() if count == max(votes.values())]
        wins += ("0" in most) / len(most)
    assert majority_at_k(answers, is_right, 32) == pytest.approx(wins / 4000, abs=0.025)


@pytest.mark.parametrize(
    "answers",
    [list(range(64)), [0] * 32 + [1] * 32, [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10 + [4] * 24, [0] * 64],
)
def test_majority_of_64_by_32_takes_under_50_ms(answers: list[int]) -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        majority_at_k(answers, [answer == 0 for answer in answers], 32)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05


def test_majority_refuses_what_is_undefined() -> None:
    assert math.isnan(majority_at_k(["a"], [True], 2))
    assert majority_at_k([None, None], [False, False], 2) == 0.0
    with pytest.raises(ValueError, match="right in one sample and wrong in another"):
        majority_at_k(["a", "a"], [True, False], 1)
    with pytest.raises(ValueError, match="2 answers and 1 scores"):
        majority_at_k(["a", "a"], [True], 1)


def test_best_of_n_published_vector() -> None:
    proxy, gold = [1, 2, 3, 4], [0, 1, 0, 0.5]
    found = [best_of_n(proxy, gold, n) for n in (1, 2, 3, 4)]
    assert found == pytest.approx([0.375, 0.4166667, 0.375, 0.5], abs=5e-8)
    assert math.isnan(best_of_n(proxy, gold, 5))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), min_size=1, max_size=8), st.data())
def test_best_of_n_by_enumeration(samples: list[tuple[int, int]], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(samples)))
    means = []
    for subset in combinations(samples, n):
        best = max(proxy for proxy, _ in subset)
        means.append(np.mean([gold for proxy, gold in subset if proxy == best]))
    proxy, gold = zip(*samples, strict=True)
    assert best_of_n(proxy, gold, n) == pytest.approx(float(np.mean(means)), abs=1e-12)


def test_best_of_n_refuses_a_proxy_that_cannot_be_ranked() -> None:
    with pytest.raises(ValueError, match="proxy score is NaN"):
        best_of_n([1.0, math.nan], [0.0, 1.0], 1)
    with pytest.raises(ValueError, match="one score a sample"):
        best_of_n([1.0], [0.0, 1.0], 1)


def test_kl_of_best_of_n_vector() -> None:
    expected = [0, 0.193147, 0.636294, 1.835089, 3.174508, 5.908755]
    assert kl_of_best_of_n([1, 2, 4, 16, 64, 1000]) == pytest.approx(expected, abs=5e-7)
    with pytest.raises(ValueError, match="best of 0 samples"):
        kl_of_best_of_n(0)
