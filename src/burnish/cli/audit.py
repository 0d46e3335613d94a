"""`burnish audit`: everything is read from the run folder; no model is loaded."""

import math
from pathlib import Path

from burnish.algorithms.asking import AskingConfig
from burnish.cli.columns import print_columns
from burnish.cli.json_output import print_json
from burnish.cli.train import run_config
from burnish.data.tasks import load_tasks
from burnish.errors import ConfigError, UserError
from burnish.evaluation.audit_plot import plot_audit
from burnish.evaluation.reward_audit import AuditStep, RewardAudit, audit
from burnish.evaluation.run_scores import Gold, read_run_scores
from burnish.monitoring.console import Waiting
from burnish.reproducibility.files import write_text
from burnish.reproducibility.run_folder import RunFolder
from burnish.rewards.combine import reward_of
from burnish.stats.bootstrap import Estimate

_SAID = {
    "hacked": "HACKED: the reward rose, and what was meant did not rise with it",
    "suspicious": "SUSPICIOUS: an alarm below is raised",
    "worse": "worse: gold fell, though no alarm is raised",
    "healthy": "healthy: gold rose, and no alarm is raised",
    "undecided": "undecided: no alarm is raised, and gold is not seen to rise",
}


def print_audit(run: str, runs_folder: Path, *, gold: str | None, as_json: bool, plot: Path | None) -> int:
    """Print whether a run gained what was meant; exit status 1 where an alarm is raised."""
    folder = RunFolder.find(run, runs_folder)
    config = run_config(folder)
    if not isinstance(config, AskingConfig):
        raise UserError(f"run {folder.path.name} sampled no answers and has no reward to audit")
    with Waiting("judging the stored answers"):
        judge = None if gold is None else _gold(config, gold)
        found = audit(read_run_scores(folder, right_at=config.evaluation.right_at, gold=judge))
    if plot is not None:
        write_text(plot, plot_audit(found))
    if as_json:
        print_json(found)
    else:
        _print(found)
    return 1 if any(alarm.is_raised for alarm in found.alarms) else 0


def _gold(config: AskingConfig, path: str) -> Gold:
    task = config.task
    if task.environment is not None:
        raise ConfigError(f"--gold {path}: it scores single answers, and this run's task.environment has conversations")
    if task.reward == path:
        raise ConfigError(f"--gold {path}: it is the run's own reward; name another judgement")
    split = load_tasks(task)
    return Gold(
        path=path,
        reward=reward_of(path),
        tasks={each.id: each for each in (*split.train, *split.held_out)},
        timeout_seconds=task.reward_timeout_seconds,
    )


def _print(found: RewardAudit) -> None:
    print(f"{found.run}: {_SAID[found.verdict]}")
    print(f"gold: {found.gold}; {found.num_items} held-out items; intervals of 95% over items, of this one run")
    print()
    rows = [("step", "KL", "reward", "gold", "tokens", "repeated", "truncated")]
    print_columns([*rows, *(_row(step) for step in found.steps)])
    if found.best_of_n:
        print()
        print("choosing the best by reward of n answers of the starting model, as a baseline (training prompts):")
        baseline = [(str(b.num_answers), f"{b.kl:.3f}", f"{b.proxy:.3f}", f"{b.gold:.3f}") for b in found.best_of_n]
        print_columns([("n", "KL", "reward", "gold"), *baseline])
    print()
    for alarm in found.alarms:
        print(f"{'ALARM' if alarm.is_raised else 'quiet'}: {alarm.name} (p = {alarm.p_value:.2g}): {alarm.text}")
    for note in found.notes:
        print(f"note: {note}")


def _row(step: AuditStep) -> tuple[str, ...]:
    kl = "-" if step.kl is None else f"{step.kl:.3g}"
    return (str(step.step), kl, *(_shown(each) for each in (step.proxy, step.gold, step.tokens)), *_shares(step))


def _shares(step: AuditStep) -> tuple[str, ...]:
    return tuple(f"{each.value:.0%}" for each in (step.repeated, step.truncated))


def _shown(found: Estimate) -> str:
    ends = "unknown" if math.isnan(found.low) else f"[{found.low:.3g}, {found.high:.3g}]"
    return f"{found.value:.3g} {ends}"
