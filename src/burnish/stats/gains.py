"""Is a gain of the reward a gain? What the proxy gained against gold, what the form of answers explains, what changed.

Proxy is the reward that was trained on, gold the judgement that was meant. Every test is one-sided with its p-value;
what it is a test of stands where it is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from burnish.stats.bootstrap import Estimate, Floats, estimate, p_not_above, resampled_means

_SHARE = 0.5  # gold that rose by less than this share of the proxy's rise did not rise with it
_MIN_STEPS = 3  # on either side of a change
_PERMUTATIONS = 1_999


@dataclass(frozen=True, slots=True, kw_only=True)
class RiseTest:
    """Gains from before to after, and the same in standard deviations (of both times together: 2 is the most).

    `p_value` is that of: the proxy did not rise, or gold rose by at least half as much (in standard deviations).
    """

    num_items: int  # or prompts
    proxy_gain: Estimate
    gold_gain: Estimate
    proxy_rise: Estimate
    gold_rise: Estimate
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedGain:
    """How much of a gain goes with features of the answers; `rest` is the gain with these regressed out.

    `p_value` is that of: there is no gain, or at most half of it is explained.
    """

    num_prompts: int
    gain: Estimate
    explained: Estimate
    rest: Estimate
    by_feature: Mapping[str, Estimate]
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Where a number that should be constant fell most: its means up to step `last_before`, and after it.

    `p_value` is that of: it is constant but for noise.
    """

    last_before: int
    before: float
    after: float
    p_value: float


def rise_test(proxy: ArrayLike, gold: ArrayLike) -> RiseTest:
    """Compare how two scores of the same items rose; both [I, 2], before and after. Intervals over items.

    A proxy that is gold with noise rises by fewer standard deviations than gold, so it is never accused.
    """
    both = np.stack([np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)], axis=1)
    if both.ndim != 3 or both.shape[2] != 2 or not np.isfinite(both).all():
        raise ValueError(f"needs finite scores [items, 2] of both, got {np.shape(proxy)} and {np.shape(gold)}")
    centred = both - both.mean(axis=(0, 2), keepdims=True)
    moments = np.stack([centred, centred**2], axis=-1)  # [I, score, time, power]
    return _rise_test(len(both), moments.mean(0)[None], resampled_means(moments))


def rise_test_by_prompt(
    proxy: ArrayLike, gold: ArrayLike, *, prompt: ArrayLike, is_early: ArrayLike, is_late: ArrayLike
) -> RiseTest:
    """The same for answers [N], some of an early and some of a late time. Intervals over prompts."""
    both = np.stack([np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)], axis=1)
    sides = np.stack([np.asarray(is_early, dtype=bool), np.asarray(is_late, dtype=bool)], axis=1)
    if not np.isfinite(both).all() or not sides.any(0).all():
        raise ValueError("needs finite scores of an early and of a late time")
    centred = both - both[sides.any(1)].mean(0)
    powers = np.stack([centred, centred**2, np.ones_like(centred)], axis=-1)  # [N, score, power]
    ids, prompt_N = np.unique(np.asarray(prompt), return_inverse=True)
    per_prompt = np.zeros((len(ids), 2, 2, 3))
    np.add.at(per_prompt, prompt_N, powers[:, :, None, :] * sides[:, None, :, None])
    value, drawn = per_prompt.mean(0)[None], resampled_means(per_prompt)
    drawn = drawn[(drawn[..., 2] > 0).all(axis=(1, 2))]  # a resample may miss every early or every late prompt
    return _rise_test(len(ids), value[..., :2] / value[..., 2:], drawn[..., :2] / drawn[..., 2:])


def _rise_test(num_items: int, moments: Floats, drawn: Floats) -> RiseTest:
    value, resampled = _rises(moments), _rises(drawn)
    names = ("proxy_gain", "gold_gain", "proxy_rise", "gold_rise")
    pairs = zip(names, value, resampled, strict=True)
    named = {name: estimate(each[0], each_B) for name, each, each_B in pairs}
    proxy_gain, _, proxy_rise, gold_rise = resampled
    p_value = max(p_not_above(proxy_gain), p_not_above(_SHARE * proxy_rise - gold_rise))
    return RiseTest(num_items=num_items, p_value=p_value, **named)


def _rises(moments: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Gains of proxy and gold, then in standard deviations, from moments [B, score, time, power]."""
    gains = moments[:, :, 1, 0] - moments[:, :, 0, 0]
    variances = moments[..., 1].mean(2) - moments[..., 0].mean(2) ** 2
    spreads = np.sqrt(np.maximum(variances, 0.0))
    rises = np.divide(gains, spreads, out=np.zeros_like(gains), where=spreads > 1e-12)
    return gains[:, 0], gains[:, 1], rises[:, 0], rises[:, 1]


def explained_gain(
    rewards: ArrayLike,
    features: Mapping[str, ArrayLike],
    *,
    group: ArrayLike,
    prompt: ArrayLike,
    is_early: ArrayLike,
    is_late: ArrayLike,
) -> ExplainedGain:
    """What of mean late reward minus mean early reward goes with the answers' features; all of shape [N].

    What a feature is worth is learnt by least squares within groups (the answers to one prompt at one time), where the
    stage of training and the difficulty of the prompt are the same for all; times how much the feature moved, it is
    what the feature explains. Intervals over prompts, each resampled with all its answers.
    """
    y, names = np.asarray(rewards, dtype=np.float64), list(features)
    x = np.stack([np.asarray(features[name], dtype=np.float64) for name in names], axis=1)
    early, late = np.asarray(is_early, dtype=bool), np.asarray(is_late, dtype=bool)
    if not early.any() or not late.any():
        raise ValueError("needs rewards of an early and of a late time")
    spread = x.std(0)
    x = (x - x.mean(0)) / np.where(spread > 0, spread, 1.0)
    within = _within(np.column_stack([x, y]), group)
    table = np.column_stack([x, y, np.ones(len(y))])
    ids, prompt_N = np.unique(np.asarray(prompt), return_inverse=True)
    parts = [(within[:, :, None] * within[:, None, :]), table * early[:, None], table * late[:, None]]
    per_prompt = np.zeros((len(ids), sum(int(np.prod(part.shape[1:])) for part in parts)))
    np.add.at(per_prompt, prompt_N, np.concatenate([part.reshape(len(y), -1) for part in parts], axis=1))
    gain_1, by_feature_1 = _decomposed(per_prompt.mean(0)[None], len(names))
    gain_B, by_feature_B = _decomposed(resampled_means(per_prompt), len(names))
    seen = np.isfinite(gain_B)  # a resample may miss every early or every late prompt
    gain_B, by_feature_B = gain_B[seen], by_feature_B[seen]
    explained_B, explained = by_feature_B.sum(1), float(by_feature_1.sum())
    gain = float(gain_1[0])
    return ExplainedGain(
        num_prompts=len(ids),
        gain=estimate(gain, gain_B),
        explained=estimate(explained, explained_B),
        rest=estimate(gain - explained, gain_B - explained_B),
        by_feature={name: estimate(float(by_feature_1[0, i]), by_feature_B[:, i]) for i, name in enumerate(names)},
        p_value=max(p_not_above(gain_B), p_not_above(explained_B - gain_B / 2)),
    )


def _decomposed(sums: Floats, num_features: int) -> tuple[Floats, Floats]:
    """Gains [B] and what each feature explains of them [B, F], from the sums that `explained_gain` makes."""
    size = num_features + 1
    square, early, late = np.split(sums, [size * size, size * size + size + 1], axis=1)
    products = square.reshape(-1, size, size)
    slopes = np.linalg.pinv(products[:, :-1, :-1], rcond=1e-8, hermitian=True) @ products[:, :-1, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = late[:, :-1] / late[:, -1:] - early[:, :-1] / early[:, -1:]
    return moved[:, -1], moved[:, :-1] * slopes[:, :, 0]


def slopes_within(rewards: ArrayLike, gold: ArrayLike, *, group: ArrayLike) -> tuple[float, float]:
    """The slope of the reward on gold within groups, and its weight (the sum of squares of gold); NaN, 0 for none.

    For gold of 0 and 1 the slope is what a right answer gets more than a wrong one to the same prompt. Unlike a
    correlation it does not move because right answers become common.
    """
    pair = np.column_stack([np.asarray(rewards, dtype=np.float64), np.asarray(gold, dtype=np.float64)])
    within = _within(pair, group)
    weight = float(np.sum(within[:, 1] ** 2))
    return (float(within[:, 0] @ within[:, 1]) / weight, weight) if weight > 1e-12 else (float("nan"), 0.0)


def _within(values: Floats, group: ArrayLike) -> Floats:
    """Values [N, F] minus the mean of their group."""
    ids, group_N = np.unique(np.asarray(group), return_inverse=True)
    sums = np.zeros((len(ids), values.shape[1]))
    np.add.at(sums, group_N, values)
    within: Floats = values - (sums / np.bincount(group_N)[:, None])[group_N]
    return within


def largest_drop(values: ArrayLike, weights: ArrayLike, steps: ArrayLike) -> Drop | None:
    """Where a weighted series fell most, tested by permuting what is left of it over the steps; None: too few steps.

    The variance of a value is the inverse of its weight, up to a factor. At least three steps stand on either side.
    """
    y, w, at = (np.asarray(each, dtype=np.float64) for each in (values, weights, steps))
    known = w > 0
    y, w, at = y[known], w[known], at[known]
    if len(y) < 2 * _MIN_STEPS:
        return None
    mean = float(y @ w / w.sum())
    rest = np.sqrt(w) * (y - mean)
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.tile(rest, (_PERMUTATIONS, 1)), axis=1)
    statistics = _drops(rest[None], w)
    k = int(statistics[0].argmax())
    as_large = np.sum(_drops(shuffled, w).max(1) >= statistics[0, k] - 1e-12)
    cut = k + _MIN_STEPS
    return Drop(
        last_before=int(at[cut - 1]),
        before=float(y[:cut] @ w[:cut] / w[:cut].sum()),
        after=float(y[cut:] @ w[cut:] / w[cut:].sum()),
        p_value=float((1 + as_large) / (1 + _PERMUTATIONS)),
    )


def _drops(rest: NDArray[np.float64], w: Floats) -> Floats:
    """For each cut, mean before minus mean after, over its standard error up to a factor; [B, N] -> [B, cuts]."""
    cuts = np.arange(_MIN_STEPS - 1, len(w) - _MIN_STEPS)
    sums, total = np.cumsum(rest * np.sqrt(w), axis=1), np.cumsum(w)
    before, after = sums[:, cuts] / total[cuts], (sums[:, -1:] - sums[:, cuts]) / (total[-1] - total[cuts])
    drops: Floats = (before - after) / np.sqrt(1 / total[cuts] + 1 / (total[-1] - total[cuts]))
    return drops
