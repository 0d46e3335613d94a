"""`burnish export`."""

from pathlib import Path

from burnish.experiments.export import export
from burnish.monitoring.console import Waiting
from burnish.reproducibility.run_folder import RunFolder


def export_run(name: str, runs_folder: Path, to: Path) -> int:
    """Write the files and list them."""
    with Waiting("hashing and writing the files"):
        files = export(RunFolder.find(name, runs_folder), to)
    for file in files:
        print(to / file)
    return 0
