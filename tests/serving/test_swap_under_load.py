"""scripts/swap_under_load.py on the tiny model, for ten seconds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/swap_under_load.py"


@pytest.mark.slow
def test_no_answer_is_lost_or_mixed_up(tiny_folder: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model", str(tiny_folder), "--seconds", "10", "--every", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found = re.search(r"^(\d+) answers .* 0 failed, 0 mixed, (\d+) exchanges; (\d+) of 8", done.stdout)
    assert done.returncode == 0 and found, done.stdout + done.stderr
    answers, exchanges, told_apart = map(int, found.groups())
    assert answers >= 8 and exchanges >= 3 and told_apart >= 4
