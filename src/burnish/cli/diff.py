"""`burnish diff`: two runs side by side. Everything is read from their folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from burnish.cli.columns import print_columns
from burnish.cli.json_output import print_json
from burnish.errors import DataError
from burnish.evaluation.comparable import common_items
from burnish.evaluation.held_out import verdict
from burnish.evaluation.table import table_of_run
from burnish.monitoring.console import Waiting
from burnish.reproducibility.differences import ABSENT, Section, record_sections
from burnish.reproducibility.run_folder import RunFolder
from burnish.stats.paired import compare_paired

_RESULTS = ("step", "held_out", "reward_mean", "loss", "kl", "entropy")
_WIDTH = 60


def print_diff(first: str, second: str, runs_folder: Path, *, as_json: bool) -> int:
    """Print results first, then each section with its differences; sections without one stand in a line."""
    runs = [RunFolder.find(each, runs_folder) for each in (first, second)]
    with Waiting("comparing the runs"):
        for run in runs:
            run.require_unchanged()
        sections = [Section("results", _results(runs)), *record_sections(*runs)]
        paired = _paired(runs)
    if as_json:
        differences = {each.name: each.differences for each in sections}
        print_json({"runs": [str(run.path) for run in runs], "held_out": paired, "differences": differences})
        return 0
    rows = [("", *(run.path.name for run in runs))]
    for section in sections:
        if section.differences:
            rows.append((section.name, "", ""))
            rows += [(f"  {key}", *map(_text, pair)) for key, pair in section.differences.items()]
    print_columns(rows)
    if paired is not None:
        print(paired)
    if equal := [section.name for section in sections if not section.differences]:
        print(f"equal: {'; '.join(equal)}")
    return 0


def _results(runs: Sequence[RunFolder]) -> dict[str, tuple[Any, Any]]:
    """The figures of the last step in which the runs differ."""
    lines = [(run.metrics() or [{}])[-1] for run in runs]
    figures = [{key: line[key] for key in _RESULTS if key in line} for line in lines]
    for run, each in zip(runs, figures, strict=True):
        each["status"] = run.status()
    pairs = {key: (figures[0].get(key, ABSENT), figures[1].get(key, ABSENT)) for key in {**figures[0], **figures[1]}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _paired(runs: Sequence[RunFolder]) -> str | None:
    """The last held-out items of both, item by item, where they were evaluated alike."""
    if not all(run.steps("evaluations") for run in runs):
        return None
    tables = [table_of_run(run) for run in runs]
    try:
        means = common_items(tables).means_TI
    except DataError as error:
        figures = " and ".join(f"{float(table.scores_IK.mean()):.3f} on {len(table.ids)} items" for table in tables)
        return f"held-out figures {figures}: {error}"
    return verdict(runs[0].record()["measure"], compare_paired(*means))


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
