"""What a verification may call bit-equal."""

from pathlib import Path

import pytest

from burnish.data.rows import tell_nobody
from burnish.errors import MachineError
from burnish.experiments.verify import _Trials
from burnish.reproducibility.run_folder import RunFolder


def test_without_the_weights_of_its_end_nothing_is_verified(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    trials = _Trials(run=run, folder=tmp_path, steps=1, say=print, told=tell_nobody)
    run.add_metrics({"step": 1})
    assert str(trials.compare(run, run).difference).startswith("step 2: the number of steps")
    run.add_metrics({"step": 2})
    for step in (1, 2):
        with pytest.raises(MachineError, match="did not both save step 2: their weights are not compared"):
            trials.compare(run, run)
        folder = run.checkpoints / f"step-{step:06d}"
        folder.mkdir()
        for name in ("manifest.json", "state.json"):
            (folder / name).write_text("{}")
    assert trials.compare(run, run).are_equal
