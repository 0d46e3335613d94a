"""What became of each planned run, read from the files of the experiment; no model is loaded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from burnish.errors import UserError
from burnish.experiments.folder import ExperimentFolder
from burnish.experiments.plan import Plan, PlannedArm, PlannedRun
from burnish.reproducibility.differences import configuration_of, method_of
from burnish.reproducibility.environment import environment_differences
from burnish.reproducibility.run_folder import RunFolder
from burnish.reproducibility.seeds import seed_for

HELD_OUT = "held_out"
TRIAL = "trial-"  # beginning of the name under which a sweep tries settings
LOST = ("diverged", "failed", "over budget")  # of such a run there is no value, and there will be none

Half = Literal["search", "fresh"]

_NOT_FINITE = re.compile(r"(?<![a-z])(nan|inf|infinity|not finite)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One planned run as it stands. `values` are the metrics of a finished one, `items` the scores of its held-out
    items by id; `reason` says why another is lost.
    """

    run: PlannedRun
    state: str
    reason: str
    folder: RunFolder | None
    step: int
    seconds: float
    values: Mapping[str, float]
    items: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        """Nothing more will happen to it by itself."""
        return self.state in ("finished", "stopped early", *LOST)


def read_outcomes(folder: ExperimentFolder, plan: Plan, *, also: tuple[str, ...] = ()) -> list[Outcome]:
    """One for each run of the plan, in its order; `also` names metrics beside the planned ones.

    Raises:
        UserError: runs are finished, and none has such a metric, or one was trained with other settings than planned.
    """
    metrics = (plan.primary.name, *(metric.name for metric in plan.secondary), *also)
    runs, events = folder.run_folders(), folder.events()
    outcomes = [read_outcome(run, runs.get(run.name), events, metrics, plan) for run in plan.runs]
    finished = [each.folder for each in outcomes if each.state == "finished" and each.folder is not None]
    for name in metrics:
        require_metric(name, finished)
    return outcomes


def read_outcome(
    planned: PlannedRun, run: RunFolder | None, events: list[dict[str, Any]], metrics: tuple[str, ...], plan: Plan
) -> Outcome:
    """What became of one run; `events` are the experiment's."""
    own = [event for event in events if event.get("run") == planned.name]
    ends = [event for event in own if event["event"] == "ended"]
    seconds = sum(event["seconds"] for event in ends)
    lines = run.metrics() if run is not None else []
    state, reason, values = "planned", "", dict[str, float]()
    limit = plan.budget.hours_per_run
    is_over = limit is not None and seconds >= limit * 3600
    if run is None:
        if ends:
            state, reason = ("failed", ends[-1]["reason"]) if ends[-1]["status"] > 0 else ("unfinished", "")
    else:
        status, record = run.status(), run.record()
        if status == "finished":
            arm = next((each for each in plan.arms if each.name == planned.arm), None)
            if arm is not None and arm.config:  # a sweep finds the settings of its trials and its winner later
                _require_planned(run, arm)
            found = {name: metric_at_end(run, name, half_of(planned, plan)) for name in metrics}
            values = {name: value for name, value in found.items() if value is not None}
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            state, reason = ("diverged", f"{bad[0]} is {values[bad[0]]}") if bad else ("finished", "")
        elif status == "failed":
            reason = str(record["failure"])
            state = "diverged" if _NOT_FINITE.search(reason) else "failed"
        else:
            state = "running" if status == "running" else "unfinished"
    if is_over and state == "unfinished":
        state, reason = "over budget", f"{seconds / 3600:.3g} h of budget.hours_per_run={limit:g}"
    if state in ("planned", "unfinished") and any(event["event"] == "stopped early" for event in own):
        state, reason = "stopped early", "the arm was decided before"
    return Outcome(
        run=planned,
        state=state,
        reason=reason,
        folder=run,
        step=int(lines[-1]["step"]) if lines else 0,
        seconds=seconds,
        values=values if state == "finished" else {},
        items=_scores(run, half_of(planned, plan)) if run is not None and HELD_OUT in values else {},
    )


def half_of(planned: PlannedRun, plan: Plan) -> Half | None:
    """The half of the held-out items that a run is judged on: in a sweep, trials by one and the arms by the other."""
    if plan.sweep is None:
        return None
    return "search" if planned.arm.startswith(TRIAL) else "fresh"


def metric_at_end(run: RunFolder, name: str, half: Half | None = None) -> float | None:
    """held_out: the mean of the last evaluation's items, or of half of them; otherwise the last number that
    metrics.jsonl has.

    None where there is none: a step that learns nothing has no loss.
    """
    if name == HELD_OUT and (steps := run.steps("evaluations")):
        return _mean_score(run, steps[-1], half)
    values = [line[name] for line in run.metrics() if isinstance(line.get(name), int | float)]
    return float(values[-1]) if values else None


def num_items(run: RunFolder, half: Half) -> int:
    """How many held-out items a half has."""
    return len(_items(run, run.steps("evaluations")[-1], half))


def require_metric(name: str, runs: Sequence[RunFolder]) -> None:
    """Raise a UserError if there are runs and none has a metric of this name."""
    if runs and all(metric_at_end(run, name) is None for run in runs):
        lines = [line for run in runs for line in run.metrics()]
        known = {key for line in lines for key, value in line.items() if isinstance(value, int | float)}
        raise UserError(f"metric {name!r}: no finished run has it; they have {', '.join(sorted(known - {'step'}))}")


def curve(run: RunFolder, name: str, half: Half | None = None) -> dict[int, float]:
    """A metric by step; held_out for half of the items if one is named."""
    if name == HELD_OUT and half is not None:
        return {step: _mean_score(run, step, half) for step in run.steps("evaluations")}
    lines = [line for line in run.metrics() if isinstance(line.get(name), int | float)]
    points = {int(line["step"]): float(line[name]) for line in lines}
    if name == HELD_OUT and 0 in run.steps("evaluations"):
        points = {0: _mean_score(run, 0), **points}
    return {step: value for step, value in points.items() if math.isfinite(value)}


def unlike(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """In what the runs differ that should be the same for all, or for all of one arm, in words."""
    records = {each.run: each.folder.record() for each in outcomes if each.folder is not None}
    codes = {str(record.get("code", {}).get("package", {}).get("sha256")) for record in records.values()}
    if len(codes) > 1:
        yield f"the runs are not alike: {len(codes)} versions of burnish's code"
    environments = [record.get("environment", {}) for record in records.values()]
    others = [each for other in environments[1:] for each in environment_differences(environments[0], other)]
    if keys := sorted({each.key for each in others if each.breaks_exactness}):
        yield f"the runs are not alike: machine or packages differ in {', '.join(keys)}"
    for arm in dict.fromkeys(run.arm for run in records):
        of_arm = [record for run, record in records.items() if run.arm == arm]
        for what in ("model", "tokenizer", "reward", "loss"):
            if len(found := {json.dumps(record.get(what), sort_keys=True) for record in of_arm}) > 1:
                yield f"the runs of arm {arm} are not alike: {len(found)} versions of its {what}"


def _require_planned(run: RunFolder, arm: PlannedArm) -> None:
    """Raise a UserError for a run that was trained with other settings than the arm that it is counted for."""
    planned, trained = method_of(arm.config), method_of(configuration_of(run))
    fixed = [key for key in planned | trained if planned.get(key) != "auto"]  # a run says what `auto` became
    if changed := sorted(key for key in fixed if planned.get(key) != trained.get(key)):
        key = changed[0]
        raise UserError(
            f"{run.path}: was trained with {key}={trained.get(key)}, but arm {arm.name} is planned with "
            f"{planned.get(key)}; move the run away, and it is trained anew"
        )


def _mean_score(run: RunFolder, step: int, half: Half | None = None) -> float:
    from burnish.evaluation.held_out import mean_score  # brings the rollout side

    items = _items(run, step, half)
    if not items:
        raise UserError(f"{run.path.name}: no held-out item falls into the half of the {half} runs: hold out more")
    return mean_score(items)


def _scores(run: RunFolder, half: Half | None) -> dict[str, float]:
    """Of each held-out item after training; none where the run keeps none."""
    steps = run.steps("evaluations")
    return {str(item["id"]): float(item["score"]) for item in _items(run, steps[-1], half)} if steps else {}


def _items(run: RunFolder, step: int, half: Half | None) -> list[dict[str, Any]]:
    """The items of an evaluation. An item is always in the same half, whatever else is held out."""
    items = run.read_step("evaluations", step)
    halves: tuple[Half, Half] = ("search", "fresh")
    return [
        item
        for item in items
        if half is None or halves[seed_for(0, "half of the held-out items", str(item["id"])) % 2] == half
    ]
