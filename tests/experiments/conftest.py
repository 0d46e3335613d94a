import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from burnish.experiments.folder import ExperimentFolder
from burnish.experiments.plan import Plan, make_plan
from burnish.experiments.runner import Runner
from burnish.experiments.schema import ExperimentFile, load_experiment

TRAINER = Path(__file__).parent / "fake_trainer.py"

BASIC: Mapping[str, Any] = {
    "name": "tried",
    "question": "Does a higher rate learn more?",
    "hypothesis": "Yes, for the runs are short.",
    "recipe": "quickstart",
    "arms": {"base": {}, "fast": {"optimizer.learning_rate": 1e-4}},
    "baseline": "base",
    "seeds": 3,
}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ExperimentFile]:
    """Write the file of an experiment with these changes, None to leave a key out, and load it."""

    def make(**changes: Any) -> ExperimentFile:
        tree = {key: value for key, value in {**BASIC, **changes}.items() if value is not None}
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return load_experiment(path)

    return make


@pytest.fixture
def plan_of(load: Callable[..., ExperimentFile]) -> Callable[..., Plan]:
    """The plan of such a file; what the arms read is not looked at."""
    return lambda **changes: make_plan(load(**changes), environment={}, check=lambda config: None)


@pytest.fixture
def folder(tmp_path: Path) -> ExperimentFolder:
    return ExperimentFolder(tmp_path / "experiments" / "tried")


@pytest.fixture
def runner_of(folder: ExperimentFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runner]:
    """A runner of a trainer that does what `behaviour[run name]` says, see fake_trainer.py; `said` is what it says."""

    def make(plan: Plan, behaviour: Mapping[str, Mapping[str, Any]], **options: Any) -> Runner:
        script = tmp_path / "behaviour.json"
        script.write_text(json.dumps(behaviour))
        monkeypatch.setenv("FAKE_BEHAVIOUR", str(script))
        folder.write_plan(plan)
        return Runner(
            folder=folder,
            plan=plan,
            program=(sys.executable, "-S", str(TRAINER)),
            **{"say": lambda text: None, "grace_seconds": 20.0, **options},
        )

    return make
