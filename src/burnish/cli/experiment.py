"""`burnish experiment plan | run | status | report`."""

import json
import time
from calendar import timegm
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from burnish.cli.columns import print_columns
from burnish.cli.json_output import print_json
from burnish.errors import UserError
from burnish.experiments.analysis import detectable
from burnish.experiments.designs import defining_words
from burnish.experiments.folder import ExperimentFolder
from burnish.experiments.outcomes import read_outcomes, require_metric
from burnish.experiments.plan import Plan, make_plan
from burnish.experiments.report import (
    alias_rows,
    run_table,
    runs_json,
    search_line,
    trial_table,
    trials_json,
    write_report,
)
from burnish.experiments.runner import Runner, run_experiment
from burnish.experiments.schema import load_experiment
from burnish.experiments.sweep import read_trials
from burnish.monitoring.console import Waiting
from burnish.reproducibility.run_folder import RunFolder

INTERRUPTED = 130


def print_plan(
    file: Path, like: Sequence[str], *, amend: str | None, experiments_folder: Path, runs_folder: Path, as_json: bool
) -> int:
    """Make the plan, keep it, and print it."""
    experiment = load_experiment(file)
    past = [RunFolder.find(name, runs_folder) for name in like]
    with Waiting("checking what each arm reads"):
        plan = make_plan(experiment)
    for metric in (plan.primary, *plan.secondary):  # so that a misspelt one is seen before the first run
        require_metric(metric.name, past)
    folder = ExperimentFolder(experiments_folder / plan.name)
    folder.write_plan(plan, reason=amend)
    num_runs = len(plan.runs) + (0 if plan.sweep is None else plan.sweep.num_trials)
    seconds = _seconds_of_a_run(past)
    sha256 = folder.versions()[-1].sha256
    if as_json:
        print_json(
            {
                "plan": plan.model_dump(mode="json"),
                "plan_file": str(folder.path / "plan.json"),
                "plan_sha256": sha256,
                "frozen": folder.is_frozen,
                "num_runs": num_runs,
                "seconds": None if seconds is None else seconds * num_runs,
                "smallest_difference_sd": dict(detectable(plan)),
            }
        )
        return 0
    _print_plan(plan)
    like_past = ", ".join(run.path.name for run in past)
    cost = _cost(seconds, num_runs, experiment.max_parallel, like_past)
    print(f"\n{num_runs} runs{cost}")
    state = "frozen" if folder.is_frozen else "will be frozen by the first run"
    print(f"plan {folder.path / 'plan.json'} sha256 {sha256[:12]}, {state}")
    return 0


def _print_plan(plan: Plan) -> None:
    print(f"{plan.question}\nhypothesis: {plan.hypothesis}\n")
    seeds = {seed: [run.arm for run in plan.runs if run.seed == seed] for seed in plan.seeds}
    print_columns(
        [("seed", "arms in the order of their runs"), *((str(s), ", ".join(arms)) for s, arms in seeds.items())]
    )
    if plan.generators:
        print(f"\nfraction: {' = '.join(['1', *defining_words(plan.generators)])}")
        print_columns(alias_rows(plan).rows)
    if plan.sweep is not None:
        print(f"\nbefore them, {search_line(plan.sweep)}, on one half of the held-out items")
    _print_detectable(plan)


def run_file(
    file: Path, *, max_parallel: int | None, retry_failed: bool, amend: str | None, experiments_folder: Path
) -> int:
    """Run what is missing. Status 130 if it was stopped, 1 if a run may still go on, 0 if all is settled."""
    experiment = load_experiment(file)
    if max_parallel is not None and max_parallel < 1:
        raise UserError(f"--max-parallel {max_parallel}: needs 1 or more")
    folder = ExperimentFolder(experiments_folder / experiment.name)
    is_checked = folder.is_frozen and amend is None
    with Waiting("checking what each arm reads"):
        plan = make_plan(experiment, check=(lambda config: None) if is_checked else None)
    folder.write_plan(plan, reason=amend)
    runner = Runner(
        folder=folder,
        plan=plan,
        say=lambda text: print(text, flush=True),
        max_parallel=max_parallel or experiment.max_parallel,
        retry_failed=retry_failed,
    )
    if not run_experiment(runner):
        return INTERRUPTED
    outcomes = read_outcomes(folder, plan)
    print(f"{_counts([each.state for each in outcomes])}; next: burnish experiment report {file}")
    return 0 if all(each.is_settled for each in outcomes) else 1


def print_status(experiment: str, experiments_folder: Path, *, as_json: bool) -> int:
    """What became of each run, from files alone."""
    folder = ExperimentFolder.find(experiment, experiments_folder)
    plan = folder.plan()
    with Waiting("reading the runs"):
        outcomes = read_outcomes(folder, plan)
        trials = read_trials(folder, plan)
    if as_json:
        version = folder.versions()[-1]
        told = {"plan_sha256": version.sha256, "frozen": folder.is_frozen, "runs": runs_json(outcomes)}
        print_json(told | ({"trials": trials_json(trials)} if plan.sweep is not None else {}))
        return 0
    if trials:
        print_columns(trial_table(plan, trials).rows)
        print(f"{_counts([each.state for each in trials])}\n")
    print_columns(run_table(plan, outcomes).rows)
    print(_counts([each.state for each in outcomes]))
    return 0


def print_report(experiment: str, experiments_folder: Path, *, also: Sequence[str], as_json: bool) -> int:
    """Write the report; print its result and where it is."""
    folder = ExperimentFolder.find(experiment, experiments_folder)
    with Waiting("judging what was planned, and drawing"):
        path = write_report(folder, also=also)
    if as_json:
        print_json(json.loads((folder.path / "report.json").read_text(encoding="utf-8")))
        return 0
    text = (folder.path / "report.md").read_text(encoding="utf-8")
    print(text.partition("## Result\n")[2].partition("\n![")[0].strip())
    print(path)
    return 0


def _print_detectable(plan: Plan) -> None:
    found = detectable(plan)
    unit = (
        "standard deviations of what factors and seeds leave open"
        if plan.factors
        else ("standard deviations of the differences within a seed")
    )
    print(f"\nsmallest difference in {plan.primary.name} that is found with power {plan.power:g}, in {unit}")
    alpha = f"alpha {plan.alpha:g}" + (f" / {len(found)} by Holm" if len(found) > 1 else "")
    rows = [
        (name, "none: one seed shows no spread" if value == float("inf") else f"{value:.2f}") for name, value in found
    ]
    print_columns([(alpha, ""), *rows])


def _seconds_of_a_run(past: Sequence[RunFolder]) -> float | None:
    """By the clock of past runs, on average; None where there are none."""
    seconds = []
    for run in past:
        record = run.record()
        if "finished" not in record:
            raise UserError(f"--like {run.path.name}: the run is not finished, so its time is not known")
        seconds.append(_epoch(record["finished"]) - _epoch(record["created"]))
    return sum(seconds) / len(seconds) if seconds else None


def _cost(seconds: float | None, num_runs: int, max_parallel: int, like: str) -> str:
    """How long the runs will take, each so many seconds."""
    if seconds is None:
        return "; --like RUN estimates their time from a past run"
    hours = seconds * num_runs / 3600
    more = f", at best {hours / max_parallel:.2f} h with {max_parallel} at once" if max_parallel > 1 else ""
    return f" of about {seconds:.0f} s (as {like}): {hours:.2f} h{more}"


def _epoch(utc: str) -> int:
    return timegm(time.strptime(utc, "%Y-%m-%dT%H:%M:%SZ"))


def _counts(states: Sequence[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(states).items())
