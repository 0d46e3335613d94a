"""`burnish show`: everything is read from the run folder; no model is loaded."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from burnish.evaluation.held_out import compare_items, mean_score, verdict
from burnish.reproducibility.run_folder import RunFolder

_CURVES = (
    "loss",
    "reward_mean",
    "groups_without_signal",
    "entropy",
    "kl",
    "completion_tokens_mean",
    "mismatch_mean",
    "grad_norm",
)
_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 60
_SIDE_BY_SIDE = 4
_FAILURES = 5


def print_run(name: str, runs_folder: Path, *, step: int | None, num_groups: int) -> int:
    """Result, curves, rollouts."""
    run = RunFolder.find(name, runs_folder)
    console = Console()
    record, metrics = run.record(), run.metrics()
    console.print(f"{run.path}  {run.status()}  created {record['created']}", highlight=False)
    if record["status"] == "failed":
        console.print(f"failed: {record['failure']}", markup=False, highlight=False, soft_wrap=True)
    evaluations = run.steps("evaluations")
    if len(evaluations) > 1:
        first, last = (run.read_step("evaluations", each) for each in (evaluations[0], evaluations[-1]))
        console.print(
            f"step {evaluations[-1]}: {verdict(record['measure'], compare_items(first, last))}",
            highlight=False,
            soft_wrap=True,
        )
    scores = [(each, mean_score(run.read_step("evaluations", each))) for each in evaluations]
    if scores:
        console.print(_curve("held_out", scores), highlight=False)
    parts = {metric: None for line in metrics for metric in line if metric.startswith("reward_mean.")}
    for metric in (*_CURVES, *parts):
        points = [(line["step"], line[metric]) for line in metrics if metric in line]
        if points:
            console.print(_curve(metric, points), highlight=False)
    stored = run.steps("rollouts")
    if stored:
        shown = stored[-1] if step is None else step
        if shown not in stored:
            console.print(f"no rollouts are stored for step {shown}; stored are {stored[0]} to {stored[-1]}")
        groups = run.read_step("rollouts", shown)
        groups.sort(
            key=lambda group: len({each["reward"] for each in group["rollouts"]}) == 1
        )  # those that teach first
        for line in groups[:num_groups]:
            console.print(_group(line, shown))
    unscored = [event for event in run.events() if event["event"] == "reward_failed"]
    for event in unscored[-_FAILURES:]:
        text = f"step {event['step']}: no reward for {event['text'][:60]!r}: {event['reason']}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if len(unscored) > _FAILURES:
        console.print(f"and {len(unscored) - _FAILURES} earlier ones in {run.path / 'events.jsonl'}")
    return 0


def _curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    """A metric over the steps as a row of bars, each the mean of the points that fall into it."""
    values = [value for _, value in points]
    low, high = min(values), max(values)
    width = min(_CURVE_WIDTH, len(values))
    edges = [round(index * len(values) / width) for index in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    bars = "".join(_BARS[round((mean - low) * scale)] for mean in means)
    return f"{name:<24} {values[0]:>10.4g} -> {values[-1]:<10.4g} {bars}  [{low:.4g}, {high:.4g}]"


def _group(line: Mapping[str, Any], step: int) -> Table:
    """The best and the worst completions of one prompt side by side, each under its reward and advantage."""
    ranked = sorted(line["rollouts"], key=lambda rollout: -rollout["reward"])
    half = _SIDE_BY_SIDE // 2
    rollouts = ranked if len(ranked) <= _SIDE_BY_SIDE else ranked[:half] + ranked[-half:]
    more = len(ranked) - len(rollouts)
    title = f"step {step}, group {line['group']}: {line['messages'][-1]['content']}  (answer {line['answer']})"
    table = Table(title=Text(title), title_justify="left", caption=f"and {more} more between them" if more else None)
    for rollout in rollouts:
        parts = "".join(f"\n{name} {value:.3g}" for name, value in rollout["components"].items())
        header = f"reward {rollout['reward']:.3g}\nadvantage {rollout['advantage']:+.2f}{parts}"
        table.add_column(header, overflow="fold")
    cells = []
    for rollout in rollouts:
        cut = " …(cut)" if rollout["finish_reason"] == "length" else ""
        cells.append(Text(rollout["text"] + cut))
    table.add_row(*cells)
    return table
