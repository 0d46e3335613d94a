"""What the runs of a plan say. Every number of the report comes from `analyse`, and the plan alone says what is judged.

Seeds are blocks: arms are compared seed by seed. Of the held-out figure the items are drawn at random too: all arms
share them, so what an item has for or against an arm stays however many seeds there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from burnish.experiments.designs import alias_table
from burnish.experiments.folder import Version
from burnish.experiments.outcomes import HELD_OUT, LOST, Outcome
from burnish.experiments.plan import Plan, PlannedRun, differences
from burnish.experiments.schema import Metric
from burnish.reproducibility.seeds import seed_for
from burnish.stats.aggregate import interquartile_mean, performance_profile, stratified_interval
from burnish.stats.difference import t_equivalence
from burnish.stats.linear import Coefficient, added_columns_p, least_squares, mean_with_t
from burnish.stats.multiple import benjamini_hochberg, holm
from burnish.stats.power import smallest_shift
from burnish.stats.seeds import compare_seeds_and_items
from burnish.stats.variance import split_error

_NO_ITEMS = "the runs have not the same two or more held-out items"
_ROUNDING = 1e-12  # differences below this share of the values are rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """The primary metric of one arm over its finished seeds; `lost` are the seeds that will never have a value."""

    arm: str
    values: Mapping[int, float]
    lost: tuple[int, ...]
    mean: Coefficient
    spread: float
    iqm: float
    iqm_low: float
    iqm_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One difference that is judged: an arm against the baseline, or a factor's level against its first.

    `verdict` is better, worse, equivalent or undecided; empty for what is exploratory. `kind` is primary, secondary
    or exploratory.
    """

    name: str
    metric: str
    kind: str
    num_seeds: int
    estimate: Coefficient
    adjusted_p: float
    equivalent_p: float
    verdict: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """All numbers of a report. `cautions` say what must not be concluded."""

    metric: str
    level: float
    arms: tuple[ArmSummary, ...]
    claims: tuple[Claim, ...]
    cautions: tuple[str, ...]


def analyse(versions: Sequence[Version], outcomes: Sequence[Outcome], *, also: Sequence[str] = ()) -> Analysis:
    """Judge what was planned first; what amendments added, and the metrics `also`, are exploratory."""
    plan, level = versions[-1].plan, 1 - versions[-1].plan.alpha
    primary = _by_arm(plan, outcomes, plan.primary.name)
    claims = judged_claims(versions, outcomes, also=also)
    return Analysis(
        metric=plan.primary.name,
        level=level,
        arms=tuple(_summary(plan, arm.name, primary[arm.name], outcomes, level) for arm in plan.arms),
        claims=tuple(claims),
        cautions=tuple(_cautions(plan, outcomes, claims, unplanned(versions)[0])),
    )


def judged_claims(versions: Sequence[Version], outcomes: Sequence[Outcome], *, also: Sequence[str] = ()) -> list[Claim]:
    """The claims of an analysis with their verdicts."""
    first, plan = versions[0].plan, versions[-1].plan
    all_late, late = unplanned(versions)
    pending = _pending(outcomes)
    claims: list[Claim] = []
    for metric in (plan.primary, *plan.secondary, *(Metric(name=name) for name in also)):
        table = _by_arm(plan, outcomes, metric.name)
        found = _factor_claims(plan, table, metric) if plan.factors else _arm_claims(plan, table, metric, pending)
        if plan.baseline is not None and metric.name == HELD_OUT and not _is_sequential(plan, metric):
            found = [_over_items(plan, claim, metric, outcomes) for claim in found]
        is_late = all_late or metric not in (first.primary, *first.secondary)
        kind = "primary" if metric == plan.primary else "secondary"
        claims += [replace(claim, kind="exploratory" if is_late or claim.name in late else kind) for claim in found]
    return _judged(claims, plan, outcomes)


def unplanned(versions: Sequence[Version]) -> tuple[bool, set[str]]:
    """Whether amendments changed what every claim depends on, and the arms that they added."""
    first, now = (versions[index].plan for index in (0, -1))
    rules = ("primary", "alpha", "margin", "baseline", "seeds", "factors", "generators", "stopping", "sweep")
    was, is_now = (plan.model_dump(mode="json", include=set(rules)) for plan in (first, now))
    before, after = ({arm.name for arm in plan.arms} for plan in (first, now))
    return bool(before - after) or any(differences(was, is_now)), after - before


def _by_arm(plan: Plan, outcomes: Sequence[Outcome], metric: str) -> dict[str, dict[int, float]]:
    table: dict[str, dict[int, float]] = {arm.name: {} for arm in plan.arms}
    for outcome in outcomes:
        if metric in outcome.values:
            table[outcome.run.arm][outcome.run.seed] = outcome.values[metric]
    return table


def _summary(
    plan: Plan, arm: str, values: Mapping[int, float], outcomes: Sequence[Outcome], level: float
) -> ArmSummary:
    numbers = list(values.values())
    runs_RT = np.array(numbers)[:, None]
    low = high = iqm = math.nan
    if numbers:
        iqm = interquartile_mean(runs_RT)
    if len(numbers) > 1:
        seed = seed_for(0, "interval of an interquartile mean", plan.name, arm)
        low, high = map(
            float, stratified_interval(interquartile_mean, runs_RT, runs_span_tasks=True, level=level, seed=seed)
        )
    return ArmSummary(
        arm=arm,
        values=dict(values),
        lost=tuple(each.run.seed for each in outcomes if each.run.arm == arm and each.state in LOST),
        mean=mean_with_t(numbers, level=level),
        spread=float(np.std(numbers, ddof=1)) if len(numbers) > 1 else math.nan,
        iqm=iqm,
        iqm_low=low,
        iqm_high=high,
    )


def _pending(outcomes: Sequence[Outcome]) -> set[PlannedRun]:
    return {outcome.run for outcome in outcomes if not outcome.is_settled}


def _arm_claims(
    plan: Plan, table: Mapping[str, Mapping[int, float]], metric: Metric, pending: Set[PlannedRun]
) -> list[Claim]:
    """Each arm against the baseline, over the seeds that both have finished."""
    from burnish.stats.looks import look_at_blocks  # brings scipy

    base = plan.baseline or ""
    is_sequential = _is_sequential(plan, metric)
    claims = []
    for arm in plan.others:
        shared = []
        for seed in plan.seeds:
            if is_sequential and not pending.isdisjoint(PlannedRun(arm=each, seed=seed) for each in (arm, base)):
                break  # looks are at the seeds in their order, whichever ends first
            if seed in table[base] and seed in table[arm]:
                shared.append(seed)
        values = _differences([table[arm][seed] for seed in shared], [table[base][seed] for seed in shared])
        claim = _claim(arm, metric, len(shared), mean_with_t(values, level=1 - plan.alpha), plan)
        if is_sequential:
            look = look_at_blocks(values, num_planned=len(plan.seeds), alpha=plan.alpha)
            estimate = replace(claim.estimate, p_value=look.p_value, low=look.low, high=look.high)
            claim = replace(claim, estimate=estimate, note=f"looked at after every seed of {len(plan.seeds)}")
        claims.append(claim)
    return claims


def _is_sequential(plan: Plan, metric: Metric) -> bool:
    return plan.stopping == "sequential" and metric == plan.primary and len(plan.seeds) > 1


def _over_items(plan: Plan, claim: Claim, metric: Metric, outcomes: Sequence[Outcome]) -> Claim:
    """The claim over seeds and items at once, as `burnish compare` judges two methods; over seeds alone where the runs
    have not the same items.
    """
    items = {(each.run.arm, each.run.seed): each.items for each in outcomes if each.state == "finished"}
    seeds = [seed for seed in plan.seeds if {(claim.name, seed), (plan.baseline, seed)} <= items.keys()]
    sides = [[items[arm, seed] for seed in seeds] for arm in (plan.baseline or "", claim.name)]
    if len(seeds) < 2:
        return claim
    ids = list(sides[0][0])
    if len(ids) < 2 or any(each.keys() != set(ids) for side in sides for each in side):
        return replace(claim, note=f"over seeds alone: {_NO_ITEMS}")
    base_SIK, arm_SIK = (np.array([[[each[item]] for item in ids] for each in side]) for side in sides)
    errors = split_error(base_SIK, arm_SIK, is_paired=True)
    means = float(base_SIK.mean()), float(arm_SIK.mean())
    margin = plan.margin if metric == plan.primary else None
    found = compare_seeds_and_items(*means, errors, num_seeds=len(seeds), alpha=plan.alpha, margin=margin)
    has_spread = not math.isnan(found.low)
    estimate = Coefficient(
        value=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value if has_spread else math.nan,
        standard_error=math.sqrt(errors.squared_error) if has_spread else math.nan,
        degrees=errors.freedom,
    )
    judged = _claim(claim.name, metric, len(seeds), estimate, plan)
    equivalent_p = math.nan if found.p_equivalent is None or not has_spread else found.p_equivalent
    note = f"over seeds and {len(ids)} items"
    if has_spread:
        note += (
            f"; twice the seeds leave {errors.factor_seeds:.0%} of the error, twice the items {errors.factor_items:.0%}"
        )
    return replace(judged, equivalent_p=equivalent_p, note=note)


def _differences(arm_S: Sequence[float], base_S: Sequence[float]) -> list[float]:
    """Arm minus baseline, without what rounding alone makes differ: it would look like certainty."""
    quantum = _ROUNDING * max(map(abs, (*arm_S, *base_S)), default=0.0)
    return [round((a - b) / quantum) * quantum if quantum else 0.0 for a, b in zip(arm_S, base_S, strict=True)]


def decided_arms(plan: Plan, outcomes: Sequence[Outcome]) -> set[str]:
    """The arms of a sequential experiment that need no more seeds: Bonferroni over the arms holds their alpha."""
    table = _by_arm(plan, outcomes, plan.primary.name)
    claims = _arm_claims(plan, table, plan.primary, _pending(outcomes))
    return {claim.name for claim in claims if claim.estimate.p_value * len(plan.others) < plan.alpha}


def _factor_claims(plan: Plan, table: Mapping[str, Mapping[int, float]], metric: Metric) -> list[Claim]:
    """Main effects: each level against the factor's first, in an additive model of factors and seeds."""
    rows = [(arm.levels, seed, value) for arm in plan.arms for seed, value in table[arm.name].items()]
    if not rows:
        return []
    names, columns = _design(plan, [row[:2] for row in rows])
    estimates = least_squares(columns, np.array([row[2] for row in rows]), level=1 - plan.alpha)[: len(names)]
    num_seeds = len({row[1] for row in rows})
    claims = [_claim(name, metric, num_seeds, each, plan) for name, each in zip(names, estimates, strict=True)]
    if not plan.generators:
        return claims
    aliases = dict(alias_table(list(plan.factors), plan.generators))
    return [
        replace(claim, note=f"cannot be told from {' and '.join(aliases[factor])}")
        for claim, factor in zip(claims, plan.factors, strict=True)
    ]


def _design(plan: Plan, rows: Sequence[tuple[Mapping[str, str], int]]) -> tuple[list[str], list[NDArray[np.float64]]]:
    """The columns of the additive model, those with names first, then one for each seed.

    The indicator of a level is centred among the runs that have the factor, so that the effect of a factor is the
    mean over those that lie within it.
    """
    names, columns = [], []
    for factor, levels in plan.factors.items():
        for level in levels[1:]:
            share = 1 / len(levels)
            names.append(f"{factor}: {level} against {levels[0]}")
            columns.append(np.array([(each[factor] == level) - share if factor in each else 0.0 for each, _ in rows]))
    seeds = dict.fromkeys(seed for _, seed in rows)
    return names, columns + [np.array([float(seed == block) for _, seed in rows]) for block in seeds]


def _interaction_p(plan: Plan, table: Mapping[str, Mapping[int, float]]) -> float:
    """Of the F test that no factor's effect depends on another's: all products of two factors' columns together."""
    rows = [(arm.levels, seed, value) for arm in plan.arms for seed, value in table[arm.name].items()]
    if not rows:
        return math.nan
    names, columns = _design(plan, [row[:2] for row in rows])
    factors = [name.partition(": ")[0] for name in names]
    products = [columns[a] * columns[b] for a, b in combinations(range(len(names)), 2) if factors[a] != factors[b]]
    return added_columns_p(columns, products, np.array([row[2] for row in rows]))


def detectable(plan: Plan) -> list[tuple[str, float]]:
    """The smallest difference that each claim about the primary metric will find with the planned power.

    In standard deviations: of the differences within a seed for arms, of what the factors leave open for factors.
    The strictest of Holm's steps is taken, which asks alpha / number of claims.
    """
    if not plan.factors:
        alpha = plan.alpha / len(plan.others)
        n = len(plan.seeds)
        if plan.stopping == "sequential":
            from burnish.stats.looks import alpha_of_look  # brings scipy

            alpha = alpha_of_look(n, num_planned=n, alpha=alpha)
        found = smallest_shift(n - 1, alpha=alpha, power=plan.power) / math.sqrt(n)
        return [(f"{arm} against {plan.baseline}", found) for arm in plan.others]
    names, columns = _design(plan, [(plan.arm(run.arm).levels, run.seed) for run in plan.runs])
    matrix = np.column_stack(columns)
    inverse = np.linalg.pinv(matrix.T @ matrix)
    degrees = len(plan.runs) - int(np.linalg.matrix_rank(matrix))
    shift = smallest_shift(degrees, alpha=plan.alpha / len(names), power=plan.power)
    return [(name, math.sqrt(inverse[at, at]) * shift) for at, name in enumerate(names)]


def _claim(name: str, metric: Metric, num_seeds: int, estimate: Coefficient, plan: Plan) -> Claim:
    margin = plan.margin if metric == plan.primary else None
    equivalent_p = math.nan
    if margin is not None:
        equivalent_p = t_equivalence(estimate.value, estimate.standard_error, estimate.degrees, margin)
    return Claim(
        name=name,
        metric=metric.name,
        kind="",
        num_seeds=num_seeds,
        estimate=estimate,
        adjusted_p=math.nan,
        equivalent_p=equivalent_p,
        verdict="",
        note="",
    )


def _judged(claims: Sequence[Claim], plan: Plan, outcomes: Sequence[Outcome]) -> list[Claim]:
    """With p-values adjusted within their kind: Holm for the primary metric, Benjamini-Hochberg for the others."""
    judged = list(claims)
    for kind, adjust in (("primary", holm), ("secondary", benjamini_hochberg)):
        places = [index for index, claim in enumerate(claims) if claim.kind == kind]
        adjusted = adjust([claims[index].estimate.p_value for index in places])
        equivalent = adjust([claims[index].equivalent_p for index in places])
        for index, p, p_equivalent in zip(places, adjusted, equivalent, strict=True):
            claim = replace(claims[index], adjusted_p=float(p), equivalent_p=float(p_equivalent))
            verdict, why = _verdict(claim, plan)
            lost = _lost_note(claim, plan, outcomes)
            judged[index] = replace(claim, verdict=verdict, note="; ".join(filter(None, (claim.note, why, lost))))
    return judged


def _verdict(claim: Claim, plan: Plan) -> tuple[str, str]:
    """The word, and why where it does not say so itself."""
    if claim.num_seeds < 2:
        return "undecided", "one seed shows no spread" if claim.num_seeds else "no seed is finished on both sides"
    metric = next(each for each in (plan.primary, *plan.secondary) if each.name == claim.metric)
    is_equivalent = claim.equivalent_p < plan.alpha
    if claim.adjusted_p < plan.alpha:
        is_up = claim.estimate.value > 0
        word = "better" if is_up == (metric.better == "higher") else "worse"
        return word, f"by less than the margin {plan.margin:g}" if is_equivalent else ""
    if is_equivalent:
        return "equivalent", ""
    if math.isnan(claim.estimate.p_value):
        return "undecided", "there is no spread to judge by"
    return "undecided", ""


def _lost_note(claim: Claim, plan: Plan, outcomes: Sequence[Outcome]) -> str:
    arms = (claim.name, plan.baseline) if plan.baseline is not None else tuple(arm.name for arm in plan.arms)
    lost = [outcome for outcome in outcomes if outcome.run.arm in arms and outcome.state in LOST]
    if not lost:
        return ""
    return f"of the seeds that finished; lost: {', '.join(f'{each.run.name} ({each.state})' for each in lost)}"


def _cautions(plan: Plan, outcomes: Sequence[Outcome], claims: Sequence[Claim], all_late: bool) -> list[str]:
    said = []
    missing = [outcome for outcome in outcomes if not outcome.is_settled]
    if missing:
        said.append(f"{len(missing)} of {len(outcomes)} runs are still missing: this is not the planned look yet")
    if len(plan.seeds) == 1:
        said.append(
            "one seed: no claim about a method can be made, for another seed may turn it round; of the two models "
            "themselves, `burnish diff` judges the held-out items"
        )
    elif len(plan.seeds) < 5:
        said.append(f"{len(plan.seeds)} seeds: only large effects can be found; every value stands in the table")
    if all_late:
        said.append("the rules were amended after the first run: every figure is exploratory")
    if plan.margin is None and any(claim.verdict == "undecided" for claim in claims):
        said.append("undecided does not mean equal: no margin was planned, so equivalence was not tested")
    if plan.stopping == "sequential":
        said.append(
            "stopped when decided: primary p-values and intervals hold at every look, but the mean of an arm that was "
            "stopped early overstates its difference; secondary metrics are judged as at a fixed number of seeds"
        )
    given = plan.factors or (plan.stopping == "sequential" and plan.primary.name == HELD_OUT)
    if given and any(claim.metric == HELD_OUT for claim in claims):
        said.append(
            "held_out is judged on these items as given: over other items the error is larger, and "
            "`burnish compare` judges two arms over both"
        )
    elif any(_NO_ITEMS in claim.note for claim in claims):
        said.append(f"held_out is judged on its items as given, for {_NO_ITEMS}: over other items the error is larger")
    p = _interaction_p(plan, _by_arm(plan, outcomes, plan.primary.name)) if plan.factors else math.nan
    if p < plan.alpha:
        said.append(
            f"the effects of the factors on {plan.primary.name} do not add up (F test of all interactions of two, "
            f"p = {p:.2g}): what a level brings depends on the others; compare the arms' means"
        )
    if plan.generators:
        said.append("a fraction: each effect stands for its aliases too")
    return said


def profile(values: Sequence[float]) -> list[tuple[float, float]]:
    """Performance profile: the share of runs above each threshold, as corners of its steps (Agarwal et al. 2021)."""
    thresholds = sorted(set(values))
    above = [1.0, *performance_profile([[value] for value in values], thresholds)] if thresholds else []
    return [(value, float(share)) for value, sides in zip(thresholds, pairwise(above), strict=True) for share in sides]
