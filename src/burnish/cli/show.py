"""`burnish show`: everything is read from the run folder; no model is loaded."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from burnish.cli.json_output import print_json
from burnish.errors import UserError
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


def print_run(name: str, runs_folder: Path, *, step: int | None, num_groups: int, as_json: bool) -> int:
    """Result, curves, rollouts."""
    run = RunFolder.find(name, runs_folder)
    record, metrics, evaluations = run.record(), run.metrics(), run.steps("evaluations")
    scores = [(each, mean_score(run.read_step("evaluations", each))) for each in evaluations]
    stored = run.steps("rollouts")
    shown = (stored[-1] if stored else None) if step is None else step
    if step is not None and step not in stored:
        those = f"stored are {stored[0]} to {stored[-1]}" if stored else "there are none"
        raise UserError(f"--step {step}: no rollouts are stored for it; {those}")
    groups = [] if shown is None else _groups(run, shown)[:num_groups]
    unscored = [event for event in run.events() if event["event"] == "reward_failed"]
    if as_json:
        print_json(
            {
                "run": str(run.path),
                "status": run.status(),
                "created": record["created"],
                "failure": record.get("failure"),
                "measure": record["measure"],
                "held_out": [{"step": each, "mean": score} for each, score in scores],
                "verdict": _verdict(run, record["measure"]),
                "metrics": metrics,
                "rollout_step": shown,
                "groups": groups,
                "reward_failures": unscored,
            }
        )
        return 0
    print(f"{run.path}  {run.status()}  created {record['created']}")
    if record["status"] == "failed":
        print(f"failed: {record['failure']}")
    if (said := _verdict(run, record["measure"])) is not None:
        print(f"step {evaluations[-1]}: {said}")
    _print_curves(scores, metrics)
    for line in groups:
        _print_group(line, cast(int, shown))
    for event in unscored[-_FAILURES:]:
        print(f"step {event['step']}: no reward for {event['text'][:60]!r}: {event['reason']}")
    if len(unscored) > _FAILURES:
        print(f"and {len(unscored) - _FAILURES} earlier ones in {run.path / 'events.jsonl'}")
    return 0


def _verdict(run: RunFolder, measure: str) -> str | None:
    """What the last evaluation says against the first, in one line; None where there is one only."""
    evaluations = run.steps("evaluations")
    if len(evaluations) < 2:
        return None
    return verdict(
        measure, compare_items(*(run.read_step("evaluations", each) for each in evaluations[:: len(evaluations) - 1]))
    )


def _groups(run: RunFolder, step: int) -> list[dict[str, Any]]:
    """The groups of a step, those that teach first."""
    return sorted(
        run.read_step("rollouts", step), key=lambda group: len({each["reward"] for each in group["rollouts"]}) == 1
    )


def _print_curves(scores: Sequence[tuple[int, float]], metrics: Sequence[Mapping[str, Any]]) -> None:
    if scores:
        print(_curve("held_out", scores))
    parts = {metric: None for line in metrics for metric in line if metric.startswith("reward_mean.")}
    for metric in (*_CURVES, *parts):
        points = [(line["step"], line[metric]) for line in metrics if metric in line]
        if points:
            print(_curve(metric, points))


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


def _print_group(line: Mapping[str, Any], step: int) -> None:
    """The best and the worst completions of one prompt, each under its reward and advantage: side by side on a
    terminal, one below the other elsewhere, where there is no width to keep to.
    """
    ranked = sorted(line["rollouts"], key=lambda rollout: -rollout["reward"])
    half = _SIDE_BY_SIDE // 2
    rollouts = ranked if len(ranked) <= _SIDE_BY_SIDE else ranked[:half] + ranked[-half:]
    more = len(ranked) - len(rollouts)
    title = f"step {step}, group {line['group']}: {line['messages'][-1]['content']}  (answer {line['answer']})"
    left_out = f"and {more} more between them" if more else None
    headings = [[f"reward {each['reward']:.3g}", f"advantage {each['advantage']:+.2f}"] for each in rollouts]
    for heading, each in zip(headings, rollouts, strict=True):
        heading += [f"{name} {value:.3g}" for name, value in each["components"].items()]
    texts = [each["text"] + (" …(cut)" if each["finish_reason"] == "length" else "") for each in rollouts]
    console = Console()
    if not console.is_terminal:
        print(f"\n{title}")
        for heading, text in zip(headings, texts, strict=True):
            print(f"--- {', '.join(heading)}\n{text}")
        if left_out is not None:
            print(f"--- {left_out}")
        return
    table = Table(title=Text(title), title_justify="left", caption=left_out)
    for heading in headings:
        table.add_column(Text("\n".join(heading)), overflow="fold")
    table.add_row(*map(Text, texts))
    console.print(table)
