"""`burnish export`."""

from pathlib import Path

from burnish.experiments.export import export
from burnish.reproducibility.run_folder import RunFolder


def export_run(name: str, runs_folder: Path, to: Path) -> int:
    """Write the files and list them."""
    for file in export(RunFolder.find(name, runs_folder), to):
        print(to / file)
    return 0
