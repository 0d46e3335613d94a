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
from burnish.stats.difference import Difference, Verdict, judge
from burnish.stats.discordance import Discordance, cochrans_q, discordance
from burnish.stats.intervals import wilson_interval
from burnish.stats.levels import require_alpha, require_margin
from burnish.stats.multiple import benjamini_hochberg, holm
from burnish.stats.paired import compare_paired
from burnish.stats.ranking import Strengths, bradley_terry, win_rate
from burnish.stats.seeds import compare_seeds
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
    """B against the baseline A. With seeds, the verdict needs both: the seeds on these items, and the items.

    `p_value` is the larger of the two, `p_adjusted` Holm's over all claims, as is `p_equivalent`. `alpha_each` is what
    a claim would need alone. `discordance` is of answers that are right or wrong, one to an item.
    """

    label_a: str
    label_b: str
    over_items: Difference
    over_seeds: Difference | None
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
    def evidence(self) -> tuple[Difference, ...]:
        """What the verdict stands on."""
        return (self.over_items,) if self.over_seeds is None else (self.over_seeds, self.over_items)


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
    means_ASI = _by_arm(arms, items.means_TI)
    means_AI = [means_SI.mean(axis=0) for means_SI in means_ASI]
    claims = [
        _claim(arms, index, means_ASI, items.clusters, {"alpha": alpha, "margin": margin})
        for index in range(1, len(arms))
    ]
    claims = _with_errors(_adjusted(claims, alpha), arms, _by_arm(arms, items.scores_TIK))
    if slice_field is not None:
        claims = _with_slices(claims, means_AI, slice_field, items.slice_of(slice_field), items.clusters)
    is_binary = all(np.isin(means_SI, (0.0, 1.0)).all() for means_SI in means_AI)
    strengths, note = _strengths(means_AI, alpha)
    return Comparison(
        num_items=len(items.ids),
        num_clusters=None if items.clusters is None else len(set(items.clusters)),
        alpha=alpha,
        margin=margin,
        arms=tuple(_arm_mean(arm, means, items.clusters, alpha) for arm, means in zip(arms, means_ASI, strict=True)),
        claims=tuple(claims),
        cochrans_q=cochrans_q(np.stack(means_AI, axis=1)) if is_binary and len(arms) > 2 else None,
        strengths=strengths,
        notes=(*cautions(arms, items), *_counted_as_wrong(arms, alpha, margin), *note),
    )


def _by_arm(arms: Sequence[Arm], of_tables: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    rest = list(of_tables)
    return [np.stack([rest.pop(0) for _ in arm.tables]) for arm in arms]


def _claim(
    arms: Sequence[Arm],
    index: int,
    means_ASI: Sequence[NDArray[np.float64]],
    clusters: Sequence[str] | None,
    levels: dict[str, Any],
) -> Claim:
    a_SI, b_SI = means_ASI[0], means_ASI[index]
    a_I, b_I = a_SI.mean(axis=0), b_SI.mean(axis=0)
    over_items = compare_paired(a_I, b_I, clusters=clusters, **levels)
    is_binary = over_items.unit == "item" and bool(np.isin([a_I, b_I], (0.0, 1.0)).all())
    over_seeds = None
    if max(len(a_SI), len(b_SI)) > 1:
        order = _shared_seeds(arms[0], arms[index])
        of_a, of_b = a_SI.mean(axis=1), b_SI.mean(axis=1)
        over_seeds = compare_seeds(of_a, of_b if order is None else of_b[order], is_paired=order is not None, **levels)
    evidence = [over_items] if over_seeds is None else [over_items, over_seeds]
    equivalent = [each.p_equivalent for each in evidence if each.p_equivalent is not None]
    return Claim(
        label_a=arms[0].label,
        label_b=arms[index].label,
        over_items=over_items,
        over_seeds=over_seeds,
        discordance=discordance(a_I == 1, b_I == 1, level=1 - levels["alpha"]) if is_binary else None,
        p_value=max(each.p_value for each in evidence),
        p_adjusted=1.0,  # needs all claims
        p_equivalent=max(equivalent) if equivalent else None,
        alpha_each=levels["alpha"],
        verdict="undecided",
        wins=win_rate(a_I, b_I, level=1 - levels["alpha"]),
        errors=None,
        slices=(),
    )


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


def _with_errors(
    claims: Sequence[Claim], arms: Sequence[Arm], scores_ASIK: Sequence[NDArray[np.float64]]
) -> list[Claim]:
    """Where there are seeds or samples to split by; on the items that have every score."""
    done = []
    for index, claim in enumerate(claims, start=1):
        a_SIK, b_SIK = scores_ASIK[0], scores_ASIK[index]
        has_parts = max(a_SIK.shape[0], b_SIK.shape[0]) > 1 or max(a_SIK.shape[2], b_SIK.shape[2]) > 1
        whole_I = ~(np.isnan(a_SIK).any(axis=(0, 2)) | np.isnan(b_SIK).any(axis=(0, 2)))
        if has_parts and claim.over_items.unit == "item" and np.count_nonzero(whole_I) > 1:
            claim = replace(claim, errors=split_error(a_SIK[:, whole_I], b_SIK[:, whole_I]))
        done.append(claim)
    return done


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
        f"counted as wrong, they would make {claim.label_b} {claim.over_items.difference:+.3f} against "
        f"{claim.label_a}: {claim.verdict}"
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


def _strengths(means_AI: Sequence[NDArray[np.float64]], alpha: float) -> tuple[Strengths | None, list[str]]:
    if len(means_AI) < 3:
        return None, []
    scores_IM = np.stack(means_AI, axis=1)
    outcomes_IMM = 0.5 * (1 + np.sign(scores_IM[:, :, None] - scores_IM[:, None, :]))
    try:
        return bradley_terry(outcomes_IMM, level=1 - alpha), []
    except ValueError as error:
        return None, [f"no Bradley-Terry strengths: {error}"]
