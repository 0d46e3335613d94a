"""How often an experiment claims a difference where there is none, with the simulation's own interval.

    python scripts/simulate_experiment.py [--runs 2000]

Each experiment has two arms and a baseline. With stopping=sequential an arm gets no further seed once it is decided, as
`burnish experiment run` does it, and what counts is the verdict of the report. The rate of better or worse for an arm
that is equal to the baseline must be at most alpha = 0.05, over both arms together.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.stats import ttest_1samp

from burnish.experiments.analysis import decided_arms, judged_claims
from burnish.experiments.folder import Version
from burnish.experiments.outcomes import Outcome
from burnish.experiments.plan import Plan, PlannedArm, PlannedRun
from burnish.experiments.schema import Budget, Metric
from burnish.stats.intervals import wilson_interval

ALPHA = 0.05
ARMS = ("base", "one", "two")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The arms that an experiment called better or worse, and the runs that it trained of those planned."""

    claimed: frozenset[str]
    num_runs: int
    num_planned: int


def plan_of(num_seeds: int, stopping: str, metric: str = "score") -> Plan:
    seeds = tuple(range(num_seeds))
    return Plan(
        name="simulated",
        question="-",
        hypothesis="-",
        arms=tuple(PlannedArm(name=arm, levels={}, config={}) for arm in ARMS),
        baseline="base",
        factors={},
        generators={},
        seeds=seeds,
        runs=tuple(PlannedRun(arm=arm, seed=seed) for seed in seeds for arm in ARMS),
        primary=Metric(name=metric),
        secondary=(),
        alpha=ALPHA,
        power=0.8,
        margin=None,
        budget=Budget(),
        stopping=stopping,
    )


def experiment(values_SA: np.ndarray, stopping: str) -> Result:
    """Run it block by block on what each seed of each arm would score; NaN is a run that diverged."""
    plan = plan_of(len(values_SA), stopping)
    states = dict.fromkeys(plan.runs, "planned")

    def outcomes() -> list[Outcome]:
        return [outcome_of(run, state, values_SA[run.seed, ARMS.index(run.arm)]) for run, state in states.items()]

    for seed in plan.seeds:
        decided = decided_arms(plan, outcomes()) if stopping == "sequential" else set()
        if decided == set(plan.others):
            decided.add("base")
        for arm in ARMS:
            lost = np.isnan(values_SA[seed, ARMS.index(arm)])
            states[PlannedRun(arm=arm, seed=seed)] = (
                "stopped early" if arm in decided else "diverged" if lost else "finished"
            )
    claims = judged_claims([Version(sha256="-", time="-", reason=None, plan=plan)], outcomes())
    trained = sum(state != "stopped early" for state in states.values())
    claimed = frozenset(claim.name for claim in claims if claim.verdict in ("better", "worse"))
    return Result(claimed=claimed, num_runs=trained, num_planned=len(states))


def outcome_of(run: PlannedRun, state: str, value: float) -> Outcome:
    values = {"score": float(value)} if state == "finished" else {}
    return Outcome(run=run, state=state, reason="", folder=None, step=0, seconds=0.0, values=values)


def blocks(rng: np.random.Generator, num_seeds: int, effects: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    """Scores whose difference within a seed has a standard deviation of 1; seeds differ by more than that."""
    shared = rng.normal(0, 2, size=(num_seeds, 1))
    return shared + rng.normal(0, 0.5**0.5, size=(num_seeds, 3)) + np.array(effects)


def shares_of_items(rng: np.random.Generator, num_seeds: int) -> np.ndarray:
    """Shares of 100 held-out items, with a spread over seeds."""
    return rng.binomial(100, rng.beta(8, 4, size=(num_seeds, 3))) / 100


def heavy_tails(rng: np.random.Generator, num_seeds: int) -> np.ndarray:
    return rng.standard_t(2, size=(num_seeds, 3))


def with_lost_runs(rng: np.random.Generator, num_seeds: int) -> np.ndarray:
    values = blocks(rng, num_seeds)
    values[rng.random(values.shape) < 0.15] = np.nan
    return values


Draw = Callable[[np.random.Generator, int], np.ndarray]

NULL: dict[str, tuple[Draw, int, str]] = {
    "5 seeds, fixed": (blocks, 5, "fixed"),
    "5 seeds, sequential": (blocks, 5, "sequential"),
    "10 seeds, sequential": (blocks, 10, "sequential"),
    "8 seeds, sequential, shares of 100 items": (shares_of_items, 8, "sequential"),
    "8 seeds, sequential, heavy tails": (heavy_tails, 8, "sequential"),
    "8 seeds, sequential, 15% of the runs diverge": (with_lost_runs, 8, "sequential"),
}
EFFECTS = (2.0, 4.0)  # standard deviations of the difference within a seed


def false_alarm(draw: Draw, num_seeds: int, stopping: str, rng: np.random.Generator) -> bool:
    return bool(experiment(draw(rng, num_seeds), stopping).claimed)


def beside_an_effect(rng: np.random.Generator, num_seeds: int = 6) -> bool:
    """One arm is better, the other is not: whether the other is claimed."""
    return "two" in experiment(blocks(rng, num_seeds, (0, 2.5, 0)), "sequential").claimed


def tastes(rng: np.random.Generator, num_seeds: int = 5, num_items: int = 100, *, has_items: bool = True) -> bool:
    """Held-out items that take to one arm more than to another, with every seed alike; over all items that could have
    been held out no arm is better. Without `has_items` the report knows the means alone.
    """
    plan = plan_of(num_seeds, "fixed", "held_out")
    chances_IA = np.clip(rng.beta(2, 2, size=(num_items, 1)) + rng.normal(0, 0.3, size=(num_items, 3)), 0, 1)
    outcomes = []
    for run in plan.runs:
        scores_I = (rng.random(num_items) < chances_IA[:, ARMS.index(run.arm)]).astype(float)
        items = {str(item): float(score) for item, score in enumerate(scores_I)} if has_items else {}
        one = outcome_of(run, "finished", 0.0)
        outcomes.append(replace(one, values={"held_out": float(scores_I.mean())}, items=items))
    claims = judged_claims([Version(sha256="-", time="-", reason=None, plan=plan)], outcomes)
    return any(claim.verdict in ("better", "worse") for claim in claims)


def peeking(rng: np.random.Generator, num_seeds: int = 10) -> bool:
    """What goes wrong: a t test after every seed from the third, each at alpha / 2."""
    values = blocks(rng, num_seeds)
    differences = values[:, 1:] - values[:, :1]
    return any((ttest_1samp(differences[:n], 0).pvalue < ALPHA / 2).any() for n in range(3, num_seeds + 1))


def count(case: Callable[[np.random.Generator], bool], runs: int, seed: int) -> int:
    rng = np.random.default_rng([seed, runs])
    return sum(case(rng) for _ in range(runs))


def cases() -> dict[str, Callable[[np.random.Generator], bool]]:
    """Every case under the null."""

    def case(draw: Draw, num_seeds: int, stopping: str) -> Callable[[np.random.Generator], bool]:
        return lambda rng: false_alarm(draw, num_seeds, stopping, rng)

    return {name: case(*what) for name, what in NULL.items()} | {
        "6 seeds, one arm is better": beside_an_effect,
        "5 seeds, items with a taste for an arm": tastes,
    }


def print_price(runs: int, seed: int) -> None:
    """What looking costs and spares: the share of experiments that find an effect, and the runs that they train."""
    print("\n| effect of one arm | stopping | found | runs trained of those planned |\n|---|---|---|---|")
    for effect in EFFECTS:
        for stopping in ("fixed", "sequential"):
            rng = np.random.default_rng([seed, runs, int(effect)])
            results = [experiment(blocks(rng, 6, (0, effect, effect)), stopping) for _ in range(runs)]
            found = sum("one" in result.claimed for result in results)
            low, high = wilson_interval(found, runs)
            share = sum(result.num_runs for result in results) / sum(result.num_planned for result in results)
            print(f"| {effect:g} sd | {stopping} | {found / runs:.1%} ({low:.1%} to {high:.1%}) | {share:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    print(f"{arguments.runs} experiments each, alpha {ALPHA}\n\n| case | false alarms | 95% CI | at most nominal |")
    print("|---|---|---|---|")
    controls = {
        "(control) t tests after every seed of 10": peeking,
        "(control) items with a taste for an arm, over seeds alone": partial(tastes, has_items=False),
    }
    for name, case in (cases() | controls).items():
        found = count(case, arguments.runs, arguments.seed)
        low, high = wilson_interval(found, arguments.runs)
        word = "yes" if low <= ALPHA else "NO"
        print(f"| {name} | {found / arguments.runs:.2%} | {low:.2%} to {high:.2%} | {word} |", flush=True)
    print_price(arguments.runs // 4, arguments.seed)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
