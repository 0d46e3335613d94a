"""`burnish check loss | advantage | reward | environment | gradients`."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from burnish.algorithms.conflicts import part_gradients
from burnish.cli.columns import print_columns
from burnish.cli.json_output import print_json
from burnish.cli.train import run_config
from burnish.config.schema import TaskConfig
from burnish.data.tasks import load_tasks
from burnish.environments.base import load_environment
from burnish.environments.check import check_environment
from burnish.errors import UserError
from burnish.losses.advantages import ADVANTAGES, load_advantage
from burnish.losses.check_advantage import check_advantage
from burnish.losses.loss import load_loss
from burnish.monitoring.console import Waiting
from burnish.records import Task
from burnish.reproducibility.run_folder import RunFolder
from burnish.rewards.check import RewardCheck, check_reward
from burnish.rewards.probes import built_in_tasks
from burnish.rewards.scoring import load_reward
from burnish.training.check_loss import check_loss

_TASKS = 20
_QUOTED = re.compile(r"'[^']*'|^[^:]*(?= makes it fail)")
_AGREE = 0.1  # a cosine nearer to 0 than this is called neither agreement nor conflict


def check_own_loss(path: str, *, at_ends: bool, as_json: bool) -> int:
    """Print what is wrong with a loss; exit status 1 where something is."""
    with Waiting("trying the loss"):
        findings = check_loss(load_loss(path, "loss"), at_ends=at_ends)
    return _print(path, findings, as_json=as_json)


def check_own_advantage(path: str, *, as_json: bool) -> int:
    """Print what is wrong with an advantage; exit status 1 where something is."""
    advantage = ADVANTAGES[path] if path in ADVANTAGES else load_advantage(path, "advantage")
    return _print(path, check_advantage(advantage), as_json=as_json)


def check_own_reward(path: str, source: str | None, *, as_json: bool) -> int:
    """Print what a reward gives to right answers, garbage and tricks; exit status 1 where it can be gamed.

    `source` None takes sums.
    """
    if source is None:
        tasks: Sequence[Task] = built_in_tasks()
    else:
        tasks = load_tasks(TaskConfig(source=source, num_held_out=1)).train[:_TASKS]
    with Waiting("trying the reward"):
        checked = check_reward(load_reward(path), tasks)
    on = "built-in sums" if source is None else source
    if as_json:
        found = {"probes": checked.probes, "findings": checked.findings}
        print_json({"path": path, "tasks": on, "passes": checked.passes, **found})
    else:
        _print_reward_check(path, checked, on=on)
    return 0 if checked.passes else 1


def _print_reward_check(path: str, checked: RewardCheck, *, on: str) -> None:
    rows = [("answer", "tasks", "mean reward", "of the right answer's", "ms")]
    for result in checked.probes:
        mean = "no score" if result.mean is None else f"{result.mean:.3g}"
        share = "-" if result.share is None else f"{result.share:.0%}"
        rows.append((result.what, str(result.num_tasks), mean, share, f"{1000 * result.seconds_per_answer:.1f}"))
    print_columns(rows)
    for finding in checked.findings:
        print(f"{finding.severity}: {finding.text}")
    if checked.passes:
        print(f"{path}: no way to game it was found on {on}")


def check_own_environment(path: str, source: str, *, as_json: bool) -> int:
    """Print what is wrong with an environment on the tasks of a source; exit status 1 where something is."""
    tasks = load_tasks(TaskConfig(source=source, num_held_out=1)).train[:_TASKS]
    with Waiting("trying the environment"):
        findings = check_environment(load_environment(path), tasks)
    return _print(path, findings, as_json=as_json)


def check_run_gradients(run: str, runs_folder: Path, *, num_batches: int, as_json: bool) -> int:
    """Print norms and cosines of the gradients of a run's parts."""
    if num_batches < 1:
        raise UserError(f"--batches {num_batches}: must be at least 1")
    folder = RunFolder.find(run, runs_folder)
    with Waiting("computing the gradients"):
        step, found = part_gradients(folder, run_config(folder), num_batches=num_batches)
    if as_json:
        parts = [{"part": name, "gradient_norm_mean": fmean(norms)} for name, norms in found.norms.items()]
        pairs = [
            {"first": one, "second": other, "cosine_mean": fmean(known) if (known := _known(each)) else None}
            | {"cosine_lowest": min(known, default=None), "cosine_highest": max(known, default=None)}
            for (one, other), each in found.cosines.items()
        ]
        print_json({"run": str(folder.path), "step": step, "num_batches": num_batches, "parts": parts, "pairs": pairs})
        return 0
    print(f"{folder.path.name}, step {step}, {num_batches} batches")
    print_columns([("part", "gradient norm"), *((name, f"{fmean(norms):.3g}") for name, norms in found.norms.items())])
    if not found.norms:
        print("no part has a gradient: every advantage of these batches is 0")
        return 0
    if not found.cosines:
        print("one part only: there is nothing to compare it with")
        return 0
    rows = [(one, other, *_compared(_known(cosines))) for (one, other), cosines in found.cosines.items()]
    print()
    print_columns([("part", "and", "cosine, mean", "lowest", "highest", "they"), *rows])
    return 0


def _known(cosines: Sequence[float | None]) -> list[float]:
    return [each for each in cosines if each is not None]


def _compared(cosines: Sequence[float]) -> tuple[str, ...]:
    if not cosines:
        return "-", "-", "-", "cannot be compared: one has no gradient"
    mean = fmean(cosines)
    they = "conflict" if mean < -_AGREE else "agree" if mean > _AGREE else "hardly matter to each other"
    return f"{mean:+.2f}", f"{min(cosines):+.2f}", f"{max(cosines):+.2f}", they


def _print(what: str, findings: list[str], *, as_json: bool) -> int:
    if as_json:
        print_json({"path": what, "passes": not findings, "findings": findings})
        return 1 if findings else 0
    alike: dict[str, list[str]] = {}
    for finding in findings:
        alike.setdefault(_QUOTED.sub("", finding), []).append(finding)
    for first, *others in alike.values():
        print(f"{what}: {first}" + (f" (and {len(others)} more like it)" if others else ""))
    if not findings:
        print(f"{what}: nothing found")
    return 1 if findings else 0
