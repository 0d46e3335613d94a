"""What several samples of the same item would give: k of n without replacement, exactly, over all subsets."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom


def pass_at_k(num_right: ArrayLike, num_samples: ArrayLike, k: int) -> NDArray[np.float64]:
    """Chance that at least one of `k` samples is right, item by item: 1 - C(n-c, k) / C(n, k).

    Unbiased (Chen et al. 2021, arXiv 2107.03374, eq. 1). NaN where an item has fewer than `k` samples.
    """
    return _of_each(num_right, num_samples, k, lambda c, n: _ratio(math.comb(n, k) - math.comb(n - c, k), n, k))


def pass_all_k(num_right: ArrayLike, num_samples: ArrayLike, k: int) -> NDArray[np.float64]:
    """Chance that all of `k` samples are right, item by item: C(c, k) / C(n, k), also written pass^k.

    Unbiased (Yao et al. 2024, arXiv 2406.12045). NaN where an item has fewer than `k` samples.
    """
    return _of_each(num_right, num_samples, k, lambda c, n: _ratio(math.comb(c, k), n, k))


def majority_at_k(answers: Sequence[Hashable | None], is_right: Sequence[bool], k: int) -> float:
    """Chance that the commonest answer of `k` of an item's samples is right, over all subsets; ties are drawn by lot.

    `answers` are as parsed, one a sample; None does not vote, and where nobody votes the item is wrong. NaN for fewer
    than `k` samples.

    Raises:
        ValueError: samples with the same answer are scored differently.
    """
    _require_k(k)
    if len(answers) != len(is_right):
        raise ValueError(f"{len(answers)} answers and {len(is_right)} scores")
    if k > len(answers):
        return math.nan
    right: dict[Hashable, bool] = {}
    for answer, score in zip(answers, is_right, strict=True):
        if answer is not None and right.setdefault(answer, bool(score)) != bool(score):
            raise ValueError(f"the answer {answer!r} is right in one sample and wrong in another")
    counts = Counter(answer for answer in answers if answer is not None)
    silent = len(answers) - counts.total()
    chance = 0.0
    for answer, count in counts.items():
        if right[answer]:
            others = [each for other, each in counts.items() if other != answer]
            chance += _win_chance(count, others, silent, k)
    return min(1.0, chance)


def best_of_n(proxy: ArrayLike, gold: ArrayLike, n: int) -> float:
    """Mean gold score of the sample with the highest proxy score among `n`, over all subsets of an item's samples.

    The i-th lowest of N by proxy is chosen by C(i-1, n-1) of C(N, n) subsets; equal proxies share. NaN for fewer than
    `n` samples.
    """
    _require_k(n)
    proxies, golds = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if proxies.shape != golds.shape or proxies.ndim != 1:
        raise ValueError(f"proxy and gold need one score a sample, got shapes {proxies.shape} and {golds.shape}")
    if np.isnan(proxies).any():
        raise ValueError("a proxy score is NaN: what cannot be ranked must be left out or given the lowest score")
    total = len(proxies)
    if n > total:
        return math.nan
    weights = np.array([math.comb(rank, n - 1) / math.comb(total, n) for rank in range(total)])
    ranks = np.argsort(proxies, kind="stable")
    _, block = np.unique(proxies[ranks], return_inverse=True)
    shared = np.bincount(block, weights) / np.bincount(block)
    return float(shared[block] @ golds[ranks])


def kl_of_best_of_n(n: ArrayLike) -> NDArray[np.float64]:
    """KL divergence of best-of-n from the policy it samples, in nats: log n - (n-1)/n.

    An upper bound, reached where no two completions have the same score (Beirami et al. 2024, arXiv 2401.01879).
    """
    ns = np.asarray(n, dtype=np.float64)
    if (ns < 1).any():
        raise ValueError(f"best of {ns.min():g} samples is not defined")
    divergence: NDArray[np.float64] = np.log(ns) - (ns - 1) / ns
    return divergence


def _require_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k = {k}: at least one sample must be drawn")


def _ratio(favourable: int, n: int, k: int) -> float:
    return favourable / math.comb(n, k)  # of whole numbers, so rounded once


def _of_each(num_right: ArrayLike, num_samples: ArrayLike, k: int, chance: Any) -> NDArray[np.float64]:
    _require_k(k)
    right, samples = np.broadcast_arrays(np.asarray(num_right), np.asarray(num_samples))
    if not (np.issubdtype(right.dtype, np.integer) and np.issubdtype(samples.dtype, np.integer)):
        raise ValueError("the numbers of right answers and of samples must be whole")
    if ((right < 0) | (right > samples)).any():
        raise ValueError("an item has fewer samples than right answers, or less than none")
    pairs, index = np.unique(np.stack([right.ravel(), samples.ravel()], axis=1), axis=0, return_inverse=True)
    values = np.array([chance(int(c), int(n)) if k <= n else math.nan for c, n in pairs], dtype=np.float64)
    return values[index].reshape(right.shape)


def _win_chance(count: int, others: Sequence[int], silent: int, k: int) -> float:
    """Chance that an answer given by `count` samples wins the vote of `k` samples.

    Each sample is drawn with chance k/n by itself, which given that `k` are drawn makes all subsets equally likely and
    keeps every number in the range of floats, whatever n is. For each number of votes `t` of the answer, the others
    may have at most `t`; those that could not have more are one pool, the rest are added one by one, with ties counted.
    """
    n = count + sum(others) + silent
    share = k / n
    chance = 0.0
    for votes in range(1, min(count, k) + 1):
        rivals = [each for each in others if each >= votes]
        pool = n - count - sum(rivals)
        size = k - votes
        most_ties = min(len(rivals), size // votes)
        ways = np.zeros((most_ties + 1, size + 1))  # ties x drawn samples
        ways[0, : min(pool, size) + 1] = binom.pmf(np.arange(min(pool, size) + 1), pool, share)
        for rival in rivals:
            weights = binom.pmf(np.arange(votes + 1), rival, share)
            added = np.zeros_like(ways)
            for drawn in range(min(votes - 1, size) + 1):
                added[:, drawn:] += weights[drawn] * ways[:, : size + 1 - drawn]
            if votes <= size:
                added[1:, votes:] += weights[votes] * ways[:-1, : size + 1 - votes]
            ways = added
        by_lot = ways[:, size] @ (1 / np.arange(1, most_ties + 2))
        chance += float(binom.pmf(votes, count, share)) * float(by_lot)
    return chance / float(binom.pmf(k, n, share))
