"""`burnish rerun`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.cli.json_output import print_json
from burnish.experiments.rerun import Rerun, rerun
from burnish.monitoring.console import Waiting
from burnish.reproducibility.run_folder import RunFolder


def rerun_run(
    name: str, runs_folder: Path, *, into: Path | None, replicates: str | None, as_json: bool, **options: Any
) -> int:
    """Repeat the run and print the verdict; 0 if the runs are equal or within seed noise, 1 otherwise."""
    run = RunFolder.find(name, runs_folder)
    others = [RunFolder.find(each, runs_folder) for each in (replicates or "").split(",") if each]
    with Waiting("looking at what was recorded") as wait:
        result = rerun(run, into=into or run.path.parent, say=wait.say, told=wait.told, replicates=others, **options)
    if as_json:
        print_json(_as_json(result))
    else:
        print(f"{result.text()}\nthe new run: {result.run.path}")
    return 1 if result.verdict == "different" else 0


def _as_json(result: Rerun) -> Mapping[str, Any]:
    difference, noise = result.comparison.difference, result.noise
    return {
        "run": str(result.run.path),
        "verdict": result.verdict,
        "compared": result.comparison.compared,
        "first_difference": None
        if difference is None
        else {key: getattr(difference, key) for key in ("step", "key", "first", "second")},
        "held_out": result.held_out,
        "noise": None if noise is None else {"num_runs": noise.num_runs, "half_width": noise.half_width},
        "remarks": result.remarks,
    }
