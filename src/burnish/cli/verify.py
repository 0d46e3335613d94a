"""`burnish verify`."""

from pathlib import Path

from burnish.cli.json_output import print_json
from burnish.experiments.verify import verify
from burnish.monitoring.console import Waiting
from burnish.reproducibility.run_folder import RunFolder


def verify_run(name: str, runs_folder: Path, *, steps: int, repeats: int, as_json: bool) -> int:
    """Print how each training compares with the unbroken one; 1 if one differs."""
    with Waiting("looking at what was recorded") as wait:
        checks = verify(RunFolder.find(name, runs_folder), steps=steps, repeats=repeats, say=wait.say, told=wait.told)
    if as_json:
        found = [
            {
                "what": check.what,
                "bit_equal": check.comparison.are_equal,
                "compared": check.comparison.compared,
                "first_difference": None if check.comparison.difference is None else str(check.comparison.difference),
            }
            for check in checks
        ]
        print_json(found)
    else:
        print("\n".join(map(str, checks)))
    return 0 if all(check.comparison.are_equal for check in checks) else 1
