"""`burnish runs`: a line a run. Of one that has ended only the summary is read: thousands are listed at once."""

from pathlib import Path
from typing import Any

from burnish.cli.columns import print_columns
from burnish.cli.json_output import print_json
from burnish.errors import UserError
from burnish.reproducibility.run_folder import RunFolder

_NO_SUMMARY: dict[str, Any] = {"step": 0, "reward_mean": None, "held_out": []}


def print_runs(runs_folder: Path, *, as_json: bool = False) -> int:
    """One line per run, oldest first."""
    listed = [(run.path.name, _summary(run, known)) for run, known in RunFolder.summaries(runs_folder)]
    if as_json:
        print_json([{"run": name, **summary} for name, summary in listed])
        return 0
    rows = [("run", "created", "status", "step", "reward", "held-out before", "after")]
    for name, summary in listed:
        reward = "-" if summary["reward_mean"] is None else f"{summary['reward_mean']:.3f}"
        before, after = ([f"{score:.3f}" for score in summary["held_out"]] + ["-", "-"])[:2]
        rows.append((name, summary["created"], summary["status"], str(summary["step"]), reward, before, after))
    if len(rows) > 1:
        print_columns(rows)
    else:
        print(f"there is no run in {runs_folder} yet; `burnish train quickstart` makes one")
    return 0


def _summary(run: RunFolder, known: dict[str, Any]) -> dict[str, Any]:
    if "held_out" in known:  # a summary, not a record
        return known
    try:
        return run.current_summary()
    except UserError:
        return {"created": known["created"], "status": "of another version", **_NO_SUMMARY}
