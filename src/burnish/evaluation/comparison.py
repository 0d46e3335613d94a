"""Models, or methods of several seeds, on the same items: who is better, how sure, and what it would take to know.

The first arm is the baseline; every other is one claim against it. Tables whose items, prompts, parser or decoding
differ are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.errors import UserError
from burnish.evaluation.cautions import cautions
from burnish.evaluation.comparable import Arm, common_items, require_arm
from burnish.stats.bootstrap import Estimate
from burnish.stats.clustered import clustered_mean
from burnish.stats.difference import Difference, Unit, Verdict, judge
from burnish.stats.discordance import Discordance, cochrans_q, discordance
from burnish.stats.intervals import wilson_interval
from burnish.stats.levels import require_alpha, require_margin
from burnish.stats.multiple import benjamini_hochberg, holm
from burnish.stats.paired import compare_paired
from burnish.stats.ranking import Strengths, bradley_terry, win_rate
from burnish.stats.seeds import compare_seeds, compare_seeds_and_items
from burnish.stats.variance import ErrorParts, split_error


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmMean:
    """Mean score of an arm over the common items with its interval, and of each of its runs."""

    label: str
    mean: float
    low: float
    high: float
    interval: str
    seeds: tuple[Any, ...]
    mean_of_seed: tuple[float, ...]
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceClaim:
    """B against A on the items of one slice; `p_adjusted` is Benjamini and Hochberg's over all slices shown."""

    field: str
    value: str
    found: Difference
    p_adjusted: float
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """B against the baseline A.

    Of methods with seeds, the verdict stands on `over_both`: `over_seeds` takes these items as given, and `over_items`
    these runs. `p_value` is that of the verdict, `p_adjusted` Holm's over all claims, as is `p_equivalent`.
    `alpha_each` is what a claim would need alone. `discordance` is of answers that are right or wrong, one to an item.
    """

    label_a: str
    label_b: str
    over_items: Difference
    over_seeds: Difference | None
    over_both: Difference | None
    discordance: Discordance | None
    p_value: float
    p_adjusted: float
    p_equivalent: float | None
    alpha_each: float
    verdict: Verdict
    wins: Estimate
    errors: ErrorParts | None
    slices: tuple[SliceClaim, ...]

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All that was found."""
        return tuple(each for each in (self.over_both, self.over_seeds, self.over_items) if each is not None)

    @property
    def evidence(self) -> tuple[Difference, ...]:
        """What the verdict stands on, all of it."""
        return self.differences if self.over_both is None else (self.over_both,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that is known of some arms; `cochrans_q` is (Q, p) of three or more that are right or wrong."""

    num_items: int
    num_clusters: int | None
    alpha: float
    margin: float | None
    arms: tuple[ArmMean, ...]
    claims: tuple[Claim, ...]
    cochrans_q: tuple[float, float] | None
    strengths: Strengths | None
    notes: tuple[str, ...]

    @property
    def num_units(self) -> int:
        """Of items, or of clusters where they come in such."""
        return self.num_items if self.num_clusters is None else self.num_clusters

    @property
    def unit(self) -> Unit:
        """What counts once, seeds apart."""
        return "item" if self.num_clusters is None else "cluster"


def compare_arms(
    arms: Sequence[Arm], *, alpha: float = 0.05, margin: float | None = None, slice_field: str | None = None
) -> Comparison:
    """Compare every arm with the first.

    Raises:
        UserError: fewer than two arms, or an impossible alpha, margin or slice.
        DataError: tables that cannot be compared, and in what they differ.
    """
    if len(arms) < 2:
        raise UserError("there is nothing to compare with: name two or more")
    try:
        require_alpha(alpha)
        require_margin(margin)
    except ValueError as error:
        raise UserError(str(error)) from error
    for arm in arms:
        require_arm(arm)
    items = common_items([table for arm in arms for table in arm.tables])
    means_ASI, scores_ASIK = _by_arm(arms, items.means_TI), _by_arm(arms, items.scores_TIK)
    means_AI = [means_SI.mean(axis=0) for means_SI in means_ASI]
    claims = [
        _claim(arms, index, scores_ASIK, means_ASI, items.clusters, {"alpha": alpha, "margin": margin})
        for index in range(1, len(arms))
    ]
    claims = _adjusted(claims, alpha)
    if slice_field is not None:
        claims = _with_slices(claims, means_AI, slice_field, items.slice_of(slice_field), items.clusters)
    is_binary = all(np.isin(means_SI, (0.0, 1.0)).all() for means_SI in means_AI)
    strengths, note = _strengths(means_AI, items.clusters, alpha)
    return Comparison(
        num_items=len(items.ids),
        num_clusters=None if items.clusters is None else len(set(items.clusters)),
        alpha=alpha,
        margin=margin,
        arms=tuple(_arm_mean(arm, means, items.clusters, alpha) for arm, means in zip(arms, means_ASI, strict=True)),
        claims=tuple(claims),
        cochrans_q=cochrans_q(np.stack(means_AI, axis=1)) if is_binary and len(arms) > 2 else None,
        strengths=strengths,
        notes=(*_counted_as_wrong(arms, alpha, margin), *cautions(arms, items), *note),
    )


def _by_arm(arms: Sequence[Arm], of_tables: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    rest = list(of_tables)
    return [np.stack([rest.pop(0) for _ in arm.tables]) for arm in arms]


def _claim(
    arms: Sequence[Arm],
    index: int,
    scores_ASIK: Sequence[NDArray[np.float64]],
    means_ASI: Sequence[NDArray[np.float64]],
    clusters: Sequence[str] | None,
    levels: dict[str, Any],
) -> Claim:
    a_SI, b_SI = means_ASI[0], means_ASI[index]
    order = _shared_seeds(arms[0], arms[index])
    in_order = slice(None) if order is None else order
    a_I, b_I = a_SI.mean(axis=0), b_SI.mean(axis=0)
    over_items = compare_paired(a_I, b_I, clusters=clusters, **levels)
    is_binary = over_items.unit == "item" and bool(np.isin([a_I, b_I], (0.0, 1.0)).all())
    errors = _errors(scores_ASIK[0], scores_ASIK[index][in_order], clusters, is_paired=order is not None)
    over_seeds = over_both = None
    if max(len(a_SI), len(b_SI)) > 1:
        of_a, of_b = a_SI.mean(axis=1), b_SI.mean(axis=1)[in_order]
        over_seeds = compare_seeds(of_a, of_b, is_paired=order is not None, **levels)
        if errors is not None:
            means = float(a_SI.mean()), float(b_SI.mean())
            over_both = compare_seeds_and_items(*means, errors, num_seeds=over_seeds.n, **levels)
    claim = Claim(
        label_a=arms[0].label,
        label_b=arms[index].label,
        over_items=over_items,
        over_seeds=over_seeds,
        over_both=over_both,
        discordance=discordance(a_I == 1, b_I == 1, level=1 - levels["alpha"]) if is_binary else None,
        p_value=1.0,  # see below
        p_adjusted=1.0,  # needs all claims
        p_equivalent=None,
        alpha_each=levels["alpha"],
        verdict="undecided",
        wins=win_rate(a_I, b_I, clusters=clusters, level=1 - levels["alpha"]),
        errors=errors,
        slices=(),
    )
    return replace(
        claim,
        p_value=max(each.p_value for each in claim.evidence),
        p_equivalent=max((p for each in claim.evidence if (p := each.p_equivalent) is not None), default=None),
    )


def _errors(
    a_SIK: NDArray[np.float64], b_SIK: NDArray[np.float64], clusters: Sequence[str] | None, *, is_paired: bool
) -> ErrorParts | None:
    """Where there are seeds or samples to split by, and items to see a spread over."""
    has_parts = max(len(a_SIK), len(b_SIK)) > 1 or max(a_SIK.shape[2], b_SIK.shape[2]) > 1
    num_units = a_SIK.shape[1] if clusters is None else len(set(clusters))
    if not has_parts or num_units < 2:
        return None
    return split_error(a_SIK, b_SIK, clusters=clusters, is_paired=is_paired)


def _shared_seeds(a: Arm, b: Arm) -> list[int] | None:
    """The place in B of each of A's seeds, if both have the same and more than one."""
    seeds_a, seeds_b = ([table.origin.get("seed") for table in arm.tables] for arm in (a, b))
    if len(seeds_a) < 2 or None in seeds_a or set(seeds_a) != set(seeds_b):
        return None
    return [seeds_b.index(seed) for seed in seeds_a]


def _adjusted(claims: Sequence[Claim], alpha: float) -> list[Claim]:
    p_adjusted = holm([claim.p_value for claim in claims])
    given = [claim.p_equivalent for claim in claims if claim.p_equivalent is not None]
    equivalent: list[float | None] = [float(each) for each in holm(given)] if given else [None] * len(claims)
    return [
        replace(
            claim,
            p_adjusted=float(p),
            p_equivalent=same,
            alpha_each=alpha / len(claims),
            verdict=judge(claim.evidence, float(p), same, alpha),
        )
        for claim, p, same in zip(claims, p_adjusted, equivalent, strict=True)
    ]


def _with_slices(
    claims: Sequence[Claim],
    means_AI: Sequence[NDArray[np.float64]],
    field: str,
    value_of_item: NDArray[np.str_],
    clusters: Sequence[str] | None,
) -> list[Claim]:
    found: list[list[tuple[str, Difference]]] = []
    for index, claim in enumerate(claims, start=1):
        rows = []
        for value in sorted(set(value_of_item.tolist())):
            chosen: list[int] = np.flatnonzero(value_of_item == value).tolist()
            own = None if clusters is None else [clusters[item] for item in chosen]
            alpha = claim.over_items.alpha
            rows.append(
                (value, compare_paired(means_AI[0][chosen], means_AI[index][chosen], clusters=own, alpha=alpha))
            )
        found.append(rows)
    adjusted = iter(benjamini_hochberg([each.p_value for rows in found for _, each in rows]).tolist())
    done = []
    for claim, rows in zip(claims, found, strict=True):
        slices = []
        for value, each in rows:
            p = next(adjusted)
            word = judge((each,), p, None, each.alpha)
            slices.append(SliceClaim(field=field, value=value, found=each, p_adjusted=p, verdict=word))
        done.append(replace(claim, slices=tuple(slices)))
    return done


def _counted_as_wrong(arms: Sequence[Arm], alpha: float, margin: float | None) -> list[str]:
    """What would be found if answers without a score were wrong, where some are missing from scores of 0 to 1."""
    scores = np.concatenate([table.scores_IK.ravel() for arm in arms for table in arm.tables])
    if not np.isnan(scores).any() or np.nanmin(scores) < 0 or np.nanmax(scores) > 1:
        return []
    filled = [
        Arm(
            label=arm.label,
            tables=tuple(replace(table, scores_IK=np.nan_to_num(table.scores_IK)) for table in arm.tables),
        )
        for arm in arms
    ]
    return [
        f"with answers without a score counted as wrong, {claim.label_b} would be "
        f"{claim.over_items.difference:+.3f} against {claim.label_a}: {claim.verdict}"
        for claim in compare_arms(filled, alpha=alpha, margin=margin).claims
    ]


def _arm_mean(arm: Arm, means_SI: NDArray[np.float64], clusters: Sequence[str] | None, alpha: float) -> ArmMean:
    means_I = means_SI.mean(axis=0)
    if clusters is None and np.isin(means_I, (0.0, 1.0)).all():
        low, high = wilson_interval(int(means_I.sum()), len(means_I), level=1 - alpha)
        interval = "Wilson"
    else:
        found = clustered_mean(means_I, range(len(means_I)) if clusters is None else clusters, level=1 - alpha)
        low, high, interval = found.low, found.high, "t" if clusters is None else "cluster-robust t"
    return ArmMean(
        label=arm.label,
        mean=float(means_I.mean()),
        low=low,
        high=high,
        interval=interval,
        seeds=tuple(table.origin.get("seed") for table in arm.tables),
        mean_of_seed=tuple(means_SI.mean(axis=1).tolist()),
        num_samples=arm.tables[0].scores_IK.shape[1],
    )


def _strengths(
    means_AI: Sequence[NDArray[np.float64]], clusters: Sequence[str] | None, alpha: float
) -> tuple[Strengths | None, list[str]]:
    if len(means_AI) < 3:
        return None, []
    scores_IM = np.stack(means_AI, axis=1)
    outcomes_IMM = 0.5 * (1 + np.sign(scores_IM[:, :, None] - scores_IM[:, None, :]))
    try:
        return bradley_terry(outcomes_IMM, clusters=clusters, level=1 - alpha), []
    except ValueError as error:
        return None, [f"no Bradley-Terry strengths: {error}"]
