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
from burnish.evaluation.comparable import Arm, CommonItems, common_items, require_arm
from burnish.evaluation.figures import items_figure
from burnish.evaluation.two_arms import TwoArms, two_arms
from burnish.stats.bootstrap import Estimate
from burnish.stats.difference import Difference, Unit, Verdict, judge
from burnish.stats.discordance import Discordance, cochrans_q, discordance
from burnish.stats.levels import require_alpha, require_margin
from burnish.stats.multiple import benjamini_hochberg, holm, holm_of_given
from burnish.stats.ranking import Strengths, bradley_terry, win_rate
from burnish.stats.variance import ErrorParts
from burnish.stats.wording import claimed, open_questions, what_both_take


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

    Of methods with seeds, `differences` are over both seeds and items, on which the verdict stands, over seeds with
    these items as given, and over items with these runs as given; of single runs, over items. `p_value` is that of the
    verdict, `p_adjusted` Holm's over all claims, as is `p_equivalent`. `alpha_each` is what a claim would need alone.
    `discordance` is of answers that are right or wrong, one to an item.
    """

    label_a: str
    label_b: str
    differences: tuple[Difference, ...]
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
    def over_items(self) -> Difference:
        """With these runs as given."""
        return self.differences[-1]

    @property
    def evidence(self) -> tuple[Difference, ...]:
        """What the verdict stands on, all of it."""
        return self.differences[:1] if self.differences[0].unit == "both" else self.differences


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
    pairs = [
        two_arms((arms[0], arm), (scores_ASIK[0], scores_SIK), (means_ASI[0], means_SI), items.clusters)
        for arm, scores_SIK, means_SI in zip(arms[1:], scores_ASIK[1:], means_ASI[1:], strict=True)
    ]
    claims = [_claim(arms[0].label, arm.label, pair, alpha, margin) for arm, pair in zip(arms[1:], pairs, strict=True)]
    claims = _adjusted(claims, alpha)
    if slice_field is not None:
        claims = _with_slices(claims, pairs, slice_field, items.slice_of(slice_field), alpha)
    are_coins = items.clusters is None and all(np.isin(means_I, (0.0, 1.0)).all() for means_I in means_AI)
    strengths, note = _strengths(means_AI, items.clusters, alpha)
    return Comparison(
        num_items=len(items.ids),
        num_clusters=None if items.clusters is None else len(set(items.clusters)),
        alpha=alpha,
        margin=margin,
        arms=tuple(_arm_mean(arm, means, items, alpha) for arm, means in zip(arms, means_ASI, strict=True)),
        claims=tuple(claims),
        cochrans_q=cochrans_q(np.stack(means_AI, axis=1)) if are_coins and len(arms) > 2 else None,
        strengths=strengths,
        notes=(*_counted_as_wrong(arms, alpha, margin), *cautions(arms, items), *note),
    )


def verdict_lines(claim: Claim, found: Comparison) -> list[str]:
    """The verdict in words, and where it is undecided what it would take to decide, a line each."""
    small = claim.p_equivalent is not None and claim.p_equivalent < found.alpha
    verdict = claimed(claim.verdict, small, found.margin)
    if claim.verdict != "undecided":
        return [verdict]
    if claim.evidence[0].unit == "both" and claim.errors is not None:
        takes = what_both_take(claim.evidence[0], claim.errors, num_items=found.num_units, alpha=claim.alpha_each)
        return [verdict, takes]
    return [verdict, *open_questions(claim.evidence, alpha=claim.alpha_each)]


def _by_arm(arms: Sequence[Arm], of_tables: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    rest = list(of_tables)
    return [np.stack([rest.pop(0) for _ in arm.tables]) for arm in arms]


def _claim(label_a: str, label_b: str, pair: TwoArms, alpha: float, margin: float | None) -> Claim:
    a_I, b_I = pair.item_means
    errors = pair.errors()
    differences = pair.differences(errors, alpha=alpha, margin=margin)
    is_binary = differences[-1].unit == "item" and bool(np.isin([a_I, b_I], (0.0, 1.0)).all())
    claim = Claim(
        label_a=label_a,
        label_b=label_b,
        differences=differences,
        discordance=discordance(a_I == 1, b_I == 1, level=1 - alpha) if is_binary else None,
        p_value=1.0,  # see below
        p_adjusted=1.0,  # needs all claims
        p_equivalent=None,
        alpha_each=alpha,
        verdict="undecided",
        wins=win_rate(a_I, b_I, clusters=pair.clusters, level=1 - alpha),
        errors=errors,
        slices=(),
    )
    return replace(
        claim,
        p_value=max(each.p_value for each in claim.evidence),
        p_equivalent=max((p for each in claim.evidence if (p := each.p_equivalent) is not None), default=None),
    )


def _adjusted(claims: Sequence[Claim], alpha: float) -> list[Claim]:
    p_adjusted = holm([claim.p_value for claim in claims])
    equivalent = holm_of_given([claim.p_equivalent for claim in claims])
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
    claims: Sequence[Claim], pairs: Sequence[TwoArms], field: str, value_of_item: NDArray[np.str_], alpha: float
) -> list[Claim]:
    """The most careful difference of each claim on each slice, adjusted over all of them."""
    chosen = {value: np.flatnonzero(value_of_item == value).tolist() for value in sorted(set(value_of_item.tolist()))}
    found = []
    for pair in pairs:
        parts = {value: pair.on(items) for value, items in chosen.items()}
        found.append(
            {value: _most_careful(each.differences(each.errors(), alpha=alpha)) for value, each in parts.items()}
        )
    adjusted = iter(benjamini_hochberg([each.p_value for rows in found for each in rows.values()]).tolist())
    done = []
    for claim, rows in zip(claims, found, strict=True):
        slices = []
        for value, each in rows.items():
            p = next(adjusted)
            word = judge((each,), p, None, alpha)
            slices.append(SliceClaim(field=field, value=value, found=each, p_adjusted=p, verdict=word))
        done.append(replace(claim, slices=tuple(slices)))
    return done


def _most_careful(differences: Sequence[Difference]) -> Difference:
    """Over seeds and items, where there is one; else the least sure."""
    return max(differences, key=lambda each: (each.unit == "both", each.p_value))


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


def _arm_mean(arm: Arm, means_SI: NDArray[np.float64], items: CommonItems, alpha: float) -> ArmMean:
    scores = np.concatenate([table.scores_IK.ravel() for table in arm.tables])
    figure = items_figure(
        means_SI.mean(axis=0),
        items.ids if items.clusters is None else items.clusters,
        measure="mean",
        is_share=bool(np.isin(scores[np.isfinite(scores)], (0.0, 1.0)).all()),
        level=1 - alpha,
    )
    return ArmMean(
        label=arm.label,
        mean=figure.value,
        low=figure.low,
        high=figure.high,
        interval=figure.method,
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
