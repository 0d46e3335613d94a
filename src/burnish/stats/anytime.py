"""Tests and intervals that hold at every look: watch as often as you like, stop when you like.

By Ville's inequality a wealth that is fair under the null ever reaches 1/alpha with probability at most alpha. So the
largest wealth so far may be used, and what is once decided stays decided. This is exact for any number of items. It
needs items that are independent of each other, in an order that was fixed before and says nothing about them: not
sorted by kind, and not by which answer came first (a wrong answer may take longer).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, xlog1py, xlogy

from burnish.stats.levels import require_alpha

Verdict = Literal["better", "worse", "equivalent", "go on"]

_LARGEST_BET = 0.5  # share of the wealth at stake; Waudby-Smith & Ramdas use 1/2 or 3/4
_HALVINGS = 50


def discordant_log_e(only_a: ArrayLike, only_b: ArrayLike) -> NDArray[np.float64]:
    """Log of the e-value against "an item that only one of the two gets right is as often A's as B's".

    E = 2^n / ((n + 1) C(n, b)) for `b` of `n` discordant items: the uniform mixture over B's share (Robbins 1970).
    """
    a, b = np.asarray(only_a, dtype=np.float64), np.asarray(only_b, dtype=np.float64)
    if (a < 0).any() or (b < 0).any():
        raise ValueError("a number of items is negative")
    log_e: NDArray[np.float64] = (a + b) * math.log(2) + betaln(b + 1, a + 1)
    return log_e


def anytime_proportion_interval(successes: int, n: int, *, alpha: float = 0.05) -> tuple[float, float]:
    """Confidence sequence for a proportion: the shares that the uniform mixture does not refute after `n` trials.

    Shares p with B(s + 1, n - s + 1) / (p^s (1 - p)^(n - s)) < 1/alpha. It holds the true share at all `n` at once
    with probability 1 - alpha.
    """
    require_alpha(alpha)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} is no proportion")
    failures = n - successes
    evidence = float(betaln(successes + 1, failures + 1)) + math.log(alpha)

    def is_refuted(share: float) -> bool:
        return evidence >= float(xlogy(successes, share) + xlog1py(failures, -share))

    share = successes / n if n else 0.5
    low = 0.0 if successes == 0 or not is_refuted(0.0) else _border(is_refuted, 0.0, share)
    high = 1.0 if failures == 0 or not is_refuted(1.0) else _border(is_refuted, 1.0, share)
    return low, high


def anytime_mean_interval(values: ArrayLike, *, alpha: float = 0.05) -> tuple[float, float]:
    """Confidence sequence for the mean of values in [0, 1], after all of `values`, in their order.

    Hedged betting with predictable plug-in stakes (Waudby-Smith & Ramdas 2024, JRSS B 86:1, eqs. 24-26), intersected
    over the looks so far. It holds the mean at all looks at once with probability at least 1 - alpha, whatever the
    distribution.
    """
    require_alpha(alpha)
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not ((x >= 0) & (x <= 1)).all():
        raise ValueError("values must be a row of numbers between 0 and 1")
    if len(x) == 0:
        return 0.0, 1.0
    stakes = _stakes(x, alpha)
    needed = math.log(2 / alpha)  # each side bets with half of the wealth

    def is_too_low(mean: float) -> bool:
        return bool(_log_wealth(x, stakes, mean, 1).max() >= needed)

    def is_too_high(mean: float) -> bool:
        return bool(_log_wealth(x, stakes, mean, -1).max() >= needed)

    # wealth that bets on more falls with the mean it bets against, so each end is found by halving
    low = _border(is_too_low, 0.0, 1.0) if is_too_low(0.0) else 0.0
    high = _border(is_too_high, 1.0, 0.0) if is_too_high(1.0) else 1.0
    return low, max(low, high)


def anytime_interval(scores: ArrayLike, *, alpha: float = 0.05) -> tuple[float, float]:
    """Confidence sequence for a mean score: of a proportion where all are right or wrong, else of values in [0, 1].

    Raises:
        ValueError: a score outside [0, 1], or an impossible alpha.
    """
    x = np.asarray(scores, dtype=np.float64)
    if np.isin(x, (0.0, 1.0)).all():
        return anytime_proportion_interval(int(x.sum()), len(x), alpha=alpha)
    return anytime_mean_interval(x, alpha=alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the `n` paired items so far say of B - A.

    `e_value` is the largest so far against no difference; `low` and `high` bound the difference, both at the level
    1 - `alpha`, over all looks. `decided_at` is the number of items after which the verdict was there.
    """

    n: int
    only_a: int
    only_b: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    e_value: float
    alpha: float
    margin: float | None
    verdict: Verdict
    decided_at: int | None


def look_at_pairs(
    scores_a: ArrayLike, scores_b: ArrayLike, *, alpha: float = 0.05, margin: float | None = None
) -> Look:
    """Judge B against A on the items so far, in their order; scores lie in [0, 1].

    Right and wrong are judged by the e-process on discordant items, other scores by betting on the mean difference.
    With a `margin`, "equivalent" is said where the interval lies inside it and no difference was found.

    Raises:
        ValueError: scores outside [0, 1] or of different items; an impossible `alpha` or `margin`.
    """
    require_alpha(alpha)
    a, b = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"the two need scores of the same items, got shapes {a.shape} and {b.shape}")
    if not ((a >= 0) & (a <= 1) & (b >= 0) & (b <= 1)).all():
        raise ValueError("a score is not between 0 and 1")
    if margin is not None and not 0 < margin < 1:
        raise ValueError(f"the margin must lie between 0 and 1, not {margin:g}")
    halves = (b - a + 1) / 2
    is_binary = bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all())
    log_e = _binary_log_e(a, b) if is_binary else _score_log_e(halves, alpha)
    low, high = (2 * end - 1 for end in anytime_mean_interval(halves, alpha=alpha))
    verdict: Verdict = "go on"
    decided_at = None
    crossed = np.flatnonzero(log_e >= -math.log(alpha))
    if len(crossed):
        decided_at = int(crossed[0]) + 1
        verdict = "better" if (b - a)[:decided_at].sum() > 0 else "worse"
    elif margin is not None and -margin < low and high < margin:
        verdict, decided_at = "equivalent", len(a)
    return Look(
        n=len(a),
        only_a=int((a > b).sum()),
        only_b=int((b > a).sum()),
        mean_a=float(a.mean()) if len(a) else math.nan,
        mean_b=float(b.mean()) if len(a) else math.nan,
        difference=float((b - a).mean()) if len(a) else math.nan,
        low=low,
        high=high,
        e_value=math.exp(min(700.0, max(0.0, log_e.max(initial=0.0)))),
        alpha=alpha,
        margin=margin,
        verdict=verdict,
        decided_at=decided_at,
    )


def _binary_log_e(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return discordant_log_e(np.cumsum(a > b), np.cumsum(b > a))


def _score_log_e(halves: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Log wealth of two gamblers with half each, who bet on a mean above and below 1/2."""
    stakes = _stakes(halves, alpha)
    both: NDArray[np.float64] = np.logaddexp(
        _log_wealth(halves, stakes, 0.5, 1), _log_wealth(halves, stakes, 0.5, -1)
    ) - math.log(2)
    return both


def _stakes(x: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """What is staked on each value, from those before it alone: large where they vary little."""
    t = np.arange(1, len(x) + 1)
    means = (0.5 + np.cumsum(x)) / (t + 1)
    variances = (0.25 + np.cumsum((x - means) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    stakes: NDArray[np.float64] = np.sqrt(2 * math.log(2 / alpha) / (before * t * np.log1p(t)))
    return stakes


def _log_wealth(x: NDArray[np.float64], stakes: NDArray[np.float64], mean: float, side: int) -> NDArray[np.float64]:
    """Log of the wealth after each value of one who bets that the mean is more (side 1) or less (-1) than `mean`."""
    room = mean if side == 1 else 1 - mean  # the most that a value can fall on the wrong side
    capped = np.minimum(stakes, _LARGEST_BET / room) if room > 0 else stakes
    log_wealth: NDArray[np.float64] = np.cumsum(np.log1p(side * capped * (x - mean)))
    return log_wealth


def _border(is_refuted: Callable[[float], bool], refuted: float, kept: float) -> float:
    """Where refuting ends, between an end that is refuted and one that is not, rounded to the refuted side."""
    for _ in range(_HALVINGS):
        middle = (refuted + kept) / 2
        if is_refuted(middle):
            refuted = middle
        else:
            kept = middle
    return refuted
