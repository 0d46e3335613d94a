"""Judgements on made-up outcomes, against values worked by hand."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from burnish.evaluation.comparable import Arm
from burnish.evaluation.comparison import compare_arms
from burnish.evaluation.table import ScoreTable
from burnish.experiments.analysis import Analysis, analyse, decided_arms, detectable, profile
from burnish.experiments.folder import Version
from burnish.experiments.outcomes import Outcome
from burnish.experiments.plan import Plan, PlannedRun

Table = Mapping[str, list[float | str]]
ARMS = {"base": {}, "fast": {"optimizer.learning_rate": 1e-4}, "slow": {"optimizer.learning_rate": 1e-6}}
FOUR = {name: {"key": f"task.options.{name}", "levels": [0, 1]} for name in "abcd"}


def outcomes_of(plan: Plan, metric: str, table: Table) -> list[Outcome]:
    """`table[arm]` has a value for each seed in turn, or the state of a run without one."""
    found = []
    for arm, values in table.items():
        for seed, value in zip(plan.seeds, values, strict=True):
            is_word = isinstance(value, str)
            found.append(
                Outcome(
                    run=PlannedRun(arm=arm, seed=seed),
                    state=str(value) if is_word else "finished",
                    reason="",
                    folder=None,
                    step=1,
                    seconds=1.0,
                    values={} if is_word else {metric: float(value)},
                )
            )
    return found


def judge(plans: Plan | list[Plan], table: Table, metric: str = "held_out") -> Analysis:
    plans = plans if isinstance(plans, list) else [plans]
    versions = [Version(sha256="", time="", reason=None, plan=plan) for plan in plans]
    return analyse(versions, outcomes_of(plans[-1], metric, table))


def test_a_paired_difference_by_hand(plan_of) -> None:
    table = {"base": [0.1, 0.5, 0.3], "fast": [0.2, 0.7, 0.6]}  # differences 0.1, 0.2, 0.3
    analysis = judge(plan_of(), table)
    (claim,) = analysis.claims
    half = 4.302653 * 0.1 / 3**0.5
    assert claim.estimate.value == pytest.approx(0.2)
    assert (claim.estimate.low, claim.estimate.high) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)
    assert claim.adjusted_p == pytest.approx(1 - (12 / 14) ** 0.5)
    assert (claim.kind, claim.verdict, claim.num_seeds) == ("primary", "undecided", 3)
    base = analysis.arms[0]
    assert (
        base.mean.value == pytest.approx(0.3) and base.spread == pytest.approx(0.2) and base.iqm == pytest.approx(0.3)
    )


def with_items(plan: Plan, scores: Mapping[str, np.ndarray]) -> list[Outcome]:
    """`scores[arm]` is of shape seeds x items."""
    means = outcomes_of(plan, "held_out", {arm: of_arm.mean(axis=1).tolist() for arm, of_arm in scores.items()})
    found = []
    for each in means:
        items = scores[each.run.arm][plan.seeds.index(each.run.seed)]
        found.append(replace(each, items={f"item-{n}": float(score) for n, score in enumerate(items)}))
    return found


def drawn(seed: int = 0, gain: float = 0.1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    chances = {"base": rng.uniform(0, 1, 60)}
    chances["fast"] = chances["base"] + rng.normal(gain, 0.2, 60)
    return {arm: (rng.random((4, 60)) < chance).astype(float) for arm, chance in chances.items()}


def analysed(plan: Plan, outcomes: list[Outcome]) -> Analysis:
    return analyse([Version(sha256="", time="", reason=None, plan=plan)], outcomes)


def test_held_out_is_judged_over_seeds_and_items_as_compare_does(plan_of) -> None:
    scores = drawn()
    arms = [
        Arm(
            label=label,
            tables=tuple(
                ScoreTable(
                    label=f"{label} {seed}",
                    ids=tuple(map(str, range(60))),
                    scores_IK=items[:, None],
                    clusters=None,
                    slices={},
                    settings={},
                    origin={"seed": seed},
                )
                for seed, items in enumerate(of_arm)
            ),
        )
        for label, of_arm in scores.items()
    ]
    peer = compare_arms(arms, margin=0.1).claims[0]
    (claim,) = analysed(plan_of(seeds=4, margin=0.1), with_items(plan_of(seeds=4), scores)).claims
    found, both = claim.estimate, peer.evidence[0]
    assert both.unit == "both"
    assert (found.value, found.low, found.high) == pytest.approx((both.difference, both.low, both.high))
    assert (claim.adjusted_p, claim.equivalent_p) == pytest.approx((peer.p_adjusted, peer.p_equivalent))
    assert claim.verdict == peer.verdict and "over seeds and 60 items" in claim.note


def test_an_item_is_no_more_sure_for_being_asked_with_every_seed(plan_of) -> None:
    """Two items of ten take to the arm, with every seed alike: sure on these items, and unknown on others."""
    base = np.zeros((4, 10))
    base[[0, 1], [9, 8]] = 1.0
    fast = base.copy()
    fast[:, :2] = 1.0
    fast[3, 2] = 1.0
    plan = plan_of(seeds=4)
    (known,) = judge(plan, {arm: each.mean(axis=1).tolist() for arm, each in (("base", base), ("fast", fast))}).claims
    (claim,) = analysed(plan, with_items(plan, {"base": base, "fast": fast})).claims
    assert known.verdict == "better" and claim.verdict == "undecided"
    assert claim.estimate.value == pytest.approx(known.estimate.value)
    assert claim.estimate.standard_error > 3 * known.estimate.standard_error


def test_arms_of_other_items_are_judged_over_seeds(plan_of) -> None:
    plan, scores = plan_of(seeds=4), drawn()
    table = {arm: of_arm.mean(axis=1).tolist() for arm, of_arm in scores.items()}
    outcomes = with_items(plan, scores)
    outcomes[-1] = replace(outcomes[-1], items={"another": 1.0, **dict(list(outcomes[-1].items.items())[1:])})
    (claim,) = analysed(plan, outcomes).claims
    assert claim.estimate == judge(plan, table).claims[0].estimate and "over seeds alone" in claim.note


@pytest.mark.parametrize(
    ("changes", "is_said"),
    [
        ({}, False),
        ({"stopping": "sequential"}, True),
        ({"arms": None, "baseline": None, "factors": {"a": FOUR["a"]}}, True),
        ({"primary": "kl", "stopping": "sequential"}, False),
    ],
)
def test_where_the_items_are_taken_as_given_it_is_said(plan_of, changes: dict, is_said: bool) -> None:
    plan = plan_of(**changes)
    table = {arm.name: [0.1, 0.2, 0.4] for arm in plan.arms}
    cautions = judge(plan, table, plan.primary.name).cautions
    assert any("held_out is judged on these items as given" in each for each in cautions) == is_said


def test_a_secondary_held_out_of_factors_takes_the_items_as_given_too(plan_of) -> None:
    plan = plan_of(primary="kl", secondary=["held_out"], arms=None, baseline=None, factors={"a": FOUR["a"]})
    table = {arm.name: [0.1, 0.2, 0.4] for arm in plan.arms}
    outcomes = [replace(each, values={**each.values, "kl": 0.1}) for each in outcomes_of(plan, "held_out", table)]
    assert any("held_out is judged on these items as given" in each for each in analysed(plan, outcomes).cautions)


def test_better_and_worse_follow_the_metric(plan_of) -> None:
    table = {"base": [0.1, 0.2, 0.3], "fast": [0.5, 0.61, 0.7]}
    assert judge(plan_of(), table).claims[0].verdict == "better"
    plan = plan_of(primary={"name": "loss", "better": "lower"})
    assert judge(plan, table, "loss").claims[0].verdict == "worse"


def test_claims_share_alpha_by_holm(plan_of) -> None:
    # differences with means 0.4 and 0.29, both with sd 0.1: t = sqrt(48), p = 0.0202, and t = 5.0229, p = 0.0374
    table = {"base": [0.0, 0.0, 0.0], "fast": [0.3, 0.4, 0.5], "slow": [0.19, 0.29, 0.39]}
    first, second = judge(plan_of(arms=ARMS), table).claims
    by_hand = [1 - (t * t / (t * t + 2)) ** 0.5 for t in (48**0.5, 0.29 / (0.1 / 3**0.5))]
    assert [first.estimate.p_value, second.estimate.p_value] == pytest.approx(by_hand)
    assert first.adjusted_p == pytest.approx(2 * by_hand[0]) and first.verdict == "better"
    assert second.adjusted_p == pytest.approx(max(by_hand[1], 2 * by_hand[0])) and second.verdict == "better"


def test_equivalent_needs_a_margin(plan_of) -> None:
    table = {"base": [0.5, 0.6, 0.7, 0.5], "fast": [0.501, 0.6, 0.699, 0.5]}
    assert judge(plan_of(seeds=4, margin=0.05), table).claims[0].verdict == "equivalent"
    without = judge(plan_of(seeds=4), table)
    assert without.claims[0].verdict == "undecided"
    assert any("undecided does not mean equal" in caution for caution in without.cautions)


def test_better_by_less_than_the_margin(plan_of) -> None:
    table = {"base": [0.5, 0.6, 0.7], "fast": [0.51, 0.6101, 0.71]}
    (claim,) = judge(plan_of(margin=0.05), table).claims
    assert claim.verdict == "better" and "by less than the margin" in claim.note


def test_one_seed_claims_nothing(plan_of) -> None:
    analysis = judge(plan_of(seeds=1, margin=0.5), {"base": [0.1], "fast": [0.9]})
    assert analysis.claims[0].verdict == "undecided" and "one seed" in analysis.claims[0].note
    assert any("no claim about a method" in caution for caution in analysis.cautions)


def test_one_seed_of_factors_claims_nothing(plan_of) -> None:
    factors = {name: FOUR[name] for name in "abc"}
    plan = plan_of(arms=None, baseline=None, factors=factors, seeds=1, margin=0.9)
    rng = np.random.default_rng(0)
    table = {arm.name: [0.5 * int(arm.levels["a"]) + rng.normal(0, 0.01)] for arm in plan.arms}
    claims = judge(plan, table).claims
    assert claims[0].adjusted_p < 0.001 and {claim.verdict for claim in claims} == {"undecided"}
    assert "one seed shows no spread" in claims[0].note


def test_equal_differences_claim_nothing(plan_of) -> None:
    (claim,) = judge(plan_of(margin=0.5), {"base": [0.0, 0.0, 0.0], "fast": [1.0, 1.0, 1.0]}).claims
    assert claim.verdict == "undecided" and "no spread" in claim.note


@pytest.mark.parametrize("stopping", ["fixed", "sequential"])
def test_differences_that_are_equal_but_for_rounding_claim_nothing(plan_of, stopping: str) -> None:
    base = [0.35, 0.3, 0.4]
    table = {"base": base, "fast": [0.65, 0.6, 0.7]}
    assert len({fast - slow for fast, slow in zip(table["fast"], base, strict=True)}) > 1
    (claim,) = judge(plan_of(stopping=stopping), table).claims
    assert claim.verdict == "undecided" and "no spread" in claim.note


@pytest.mark.parametrize("state", ["diverged", "failed", "over budget"])
def test_a_lost_run_leaves_its_block_and_is_named(plan_of, state: str) -> None:
    table = {"base": [0.1, 0.5, 0.3, 0.0], "fast": [0.2, 0.7, 0.6, state]}
    analysis = judge(plan_of(seeds=4), table)
    (claim,) = analysis.claims
    assert claim.num_seeds == 3 and claim.estimate.value == pytest.approx(0.2)
    assert f"fast-seed3 ({state})" in claim.note
    assert analysis.arms[1].lost == (3,)


def test_missing_runs_are_said(plan_of) -> None:
    analysis = judge(plan_of(), {"base": [0.1, 0.5, 0.3], "fast": [0.2, "planned", "unfinished"]})
    assert "2 of 6 runs are still missing" in analysis.cautions[0]


def test_secondary_metrics_are_adjusted_as_a_group(plan_of) -> None:
    plan = plan_of(arms=ARMS, secondary=["kl"])
    table = {"base": [0.0, 0.0, 0.0], "fast": [0.3, 0.4, 0.5], "slow": [0.19, 0.29, 0.39]}
    first, second = (claim for claim in judge(plan, table, "kl").claims if claim.metric == "kl")
    by_hand = [1 - (t * t / (t * t + 2)) ** 0.5 for t in (48**0.5, 0.29 / (0.1 / 3**0.5))]
    assert first.kind == "secondary"
    assert [first.adjusted_p, second.adjusted_p] == pytest.approx([min(2 * by_hand[0], by_hand[1]), by_hand[1]])


def test_what_amendments_add_is_exploratory(plan_of) -> None:
    table = {"base": [0.0, 0.0, 0.0], "fast": [0.3, 0.4, 0.5], "slow": [0.3, 0.4, 0.5]}
    fast, slow = judge([plan_of(), plan_of(arms=ARMS)], table).claims
    assert (fast.kind, fast.verdict) == ("primary", "better")
    assert (slow.kind, slow.verdict) == ("exploratory", "") and math.isnan(slow.adjusted_p)
    assert fast.adjusted_p == fast.estimate.p_value  # it does not share alpha with what was not planned


@pytest.mark.parametrize("first", [{"seeds": 2}, {"alpha": 0.01}, {"margin": 0.3}, {"primary": "kl"}, {"arms": ARMS}])
def test_after_a_change_of_rules_everything_is_exploratory(plan_of, first: dict) -> None:
    table = {"base": [0.0, 0.0, 0.0], "fast": [0.3, 0.4, 0.5]}
    analysis = judge([plan_of(**first), plan_of()], table)
    assert [(claim.kind, claim.verdict) for claim in analysis.claims] == [("exploratory", "")]
    assert any("every figure is exploratory" in caution for caution in analysis.cautions)


def test_main_effects_by_hand(plan_of) -> None:
    factors = {name: FOUR[name] for name in "ab"}
    plan = plan_of(arms=None, baseline=None, factors=factors, seeds=2)
    # y = 0.1 a + 0.4 b, a second seed that adds 0.5, and an interaction of ±0.05 that the additive model leaves over
    cells = {"a-0-b-0": 0.0, "a-0-b-1": 0.3, "a-1-b-0": 0.0, "a-1-b-1": 0.5}
    analysis = judge(plan, {arm: [value, value + 0.5] for arm, value in cells.items()})
    a, b = analysis.claims
    assert (a.name, b.name) == ("a: 1 against 0", "b: 1 against 0")
    assert (a.estimate.value, b.estimate.value) == pytest.approx((0.1, 0.4))
    # residuals are ±0.05 in all 8 runs, 8 - 4 degrees: sd 0.05 sqrt(2), and 2 / sqrt(8) of that for an effect
    assert a.estimate.degrees == 4 and a.estimate.standard_error == pytest.approx(0.05)
    assert (a.verdict, b.verdict) == ("undecided", "better")


def test_main_effects_agree_with_statsmodels_where_runs_are_lost(plan_of) -> None:
    factors = {"a": FOUR["a"], "b": {"key": "task.options.b", "levels": [0, 1, 2]}}
    plan = plan_of(arms=None, baseline=None, factors=factors, seeds=3)
    rng = np.random.default_rng(1)
    table: dict[str, list] = {arm.name: list(rng.normal(size=3)) for arm in plan.arms}
    table["a-1-b-2"][1] = "diverged"
    rows = {"y": [], "a": [], "b": [], "seed": []}
    for arm in plan.arms:
        for seed, value in enumerate(table[arm.name]):
            if not isinstance(value, str):
                for key, each in (("y", value), ("a", arm.levels["a"]), ("b", arm.levels["b"]), ("seed", str(seed))):
                    rows[key].append(each)
    peer = smf.ols("y ~ C(a) + C(b) + C(seed)", pd.DataFrame(rows)).fit()
    claims = judge(plan, table).claims
    assert [claim.name for claim in claims] == ["a: 1 against 0", "b: 1 against 0", "b: 2 against 0"]
    for claim, name in zip(claims, ("C(a)[T.1]", "C(b)[T.1]", "C(b)[T.2]"), strict=True):
        assert claim.estimate.value == pytest.approx(peer.params[name])
        assert claim.estimate.p_value == pytest.approx(peer.pvalues[name])
        assert (claim.estimate.low, claim.estimate.high) == pytest.approx(tuple(peer.conf_int().loc[name]))


@pytest.mark.parametrize("interaction", [0.0, 5.0])
def test_effects_that_do_not_add_up_are_said(plan_of, interaction: float) -> None:
    factors = {"a": FOUR["a"], "b": {"key": "task.options.b", "levels": [0, 1, 2]}}
    plan = plan_of(arms=None, baseline=None, factors=factors, seeds=3)
    rng = np.random.default_rng(3)
    table, rows = {}, {"y": [], "a": [], "b": [], "seed": []}
    for arm in plan.arms:
        table[arm.name] = list(rng.normal(size=3) + interaction * (arm.levels == {"a": "1", "b": "2"}))
        for seed, value in enumerate(table[arm.name]):
            for key, each in (("y", value), ("a", arm.levels["a"]), ("b", arm.levels["b"]), ("seed", str(seed))):
                rows[key].append(each)
    frame = pd.DataFrame(rows)
    whole, additive = (smf.ols(f"y ~ C(a) {sign} C(b) + C(seed)", frame).fit() for sign in "*+")
    p = whole.compare_f_test(additive)[1]
    assert (p < 0.05) == (interaction > 0)
    said = [each for each in judge(plan, table).cautions if "do not add up" in each]
    assert len(said) == (interaction > 0) and all(f"p = {p:.2g})" in each for each in said)


def test_a_nested_factor_has_its_effect_within_its_parent(plan_of) -> None:
    factors = {
        "method": {"key": "rollout.curriculum", "levels": ["uniform", "middle"]},
        "beta": {"key": "optimizer.weight_decay", "levels": [0.1, 0.2], "within": {"method": "middle"}},
    }
    plan = plan_of(arms=None, baseline=None, factors=factors, seeds=3)
    noise = [0.01, -0.02, 0.01]
    cells = {"method-uniform": 0.2, "method-middle-beta-0.1": 0.5, "method-middle-beta-0.2": 0.7}
    table = {
        arm: [value + each * sign for each in noise]
        for sign, (arm, value) in zip((1, -1, 1), cells.items(), strict=True)
    }
    method, beta = judge(plan, table).claims
    assert method.estimate.value == pytest.approx(0.4)  # the mean over beta, against uniform
    assert beta.estimate.value == pytest.approx(0.2)


def test_a_fraction_names_the_aliases_of_each_effect(plan_of) -> None:
    plan = plan_of(arms=None, baseline=None, factors=FOUR, design="fraction", generators={"d": ["a", "b", "c"]})
    rng = np.random.default_rng(0)
    claims = judge(plan, {arm.name: list(rng.normal(size=3)) for arm in plan.arms}).claims
    assert claims[3].name == "d: 1 against 0" and "cannot be told from a x b x c" in claims[3].note


def test_detectable_differences(plan_of) -> None:
    assert detectable(plan_of(seeds=5)) == [("fast against base", pytest.approx(1.68, abs=0.005))]
    two = dict(detectable(plan_of(arms=ARMS, seeds=5)))
    assert two["fast against base"] == two["slow against base"] > 1.68  # two claims share alpha
    plan = plan_of(arms=None, baseline=None, factors={"a": FOUR["a"]}, seeds=10)
    # one factor of two levels over 10 blocks is the paired test; its unit is the residual sd: sqrt(2) times less
    assert detectable(plan)[0][1] == pytest.approx(detectable(plan_of(seeds=10))[0][1] * 2**0.5)


WINS = [1.0, 1.2, 0.9, 1.1, 1.0]  # t = 19 after three seeds


def test_a_sequential_look_waits_for_earlier_seeds(plan_of) -> None:
    plan = plan_of(seeds=5, stopping="sequential")
    whole = {"base": [0.0] * 5, "fast": [*WINS[:4], "planned"]}
    assert decided_arms(plan, outcomes_of(plan, "held_out", whole)) == {"fast"}
    with_gap = {"base": [0.0] * 5, "fast": [*WINS[:1], "running", *WINS[2:]]}
    assert decided_arms(plan, outcomes_of(plan, "held_out", with_gap)) == set()


def test_a_lost_seed_is_no_look_and_no_gap(plan_of) -> None:
    plan = plan_of(seeds=5, stopping="sequential")
    table = {"base": [0.0] * 5, "fast": [WINS[0], "diverged", *WINS[2:4], "planned"]}
    assert decided_arms(plan, outcomes_of(plan, "held_out", table)) == {"fast"}


def test_a_sequential_claim_has_the_interval_of_its_look(plan_of) -> None:
    table = {"base": [0.0] * 5, "fast": [0.1, 0.3, 0.0, 0.25, 0.2]}
    (fixed,), (looked,) = (judge(plan_of(seeds=5, stopping=each), table).claims for each in ("fixed", "sequential"))
    assert looked.estimate.value == fixed.estimate.value
    assert looked.estimate.low < fixed.estimate.low and looked.estimate.high > fixed.estimate.high
    assert fixed.adjusted_p < looked.adjusted_p < 0.05 and looked.estimate.low > 0  # they agree


def test_looks_cost_little_power(plan_of) -> None:
    fixed, looked = (detectable(plan_of(seeds=5, stopping=each))[0][1] for each in ("fixed", "sequential"))
    assert fixed < looked < 1.15 * fixed


def test_profile_by_hand() -> None:
    assert profile([0.2, 0.1]) == [(0.1, 1.0), (0.1, 0.5), (0.2, 0.5), (0.2, 0.0)]
    assert profile([]) == []
