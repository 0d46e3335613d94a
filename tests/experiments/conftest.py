import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from burnish.algorithms.session import schema_for, train
from burnish.config.loading import resolve
from burnish.experiments.folder import ExperimentFolder
from burnish.experiments.plan import Plan, make_plan
from burnish.experiments.runner import Runner
from burnish.experiments.schema import ExperimentFile, load_experiment
from burnish.reproducibility.run_folder import RunFolder

REWARD = """def score(completion, task):
    return sum(token < 100 for token in completion.token_ids) / len(completion.token_ids)
"""


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture
def project(tiny_folder: Path, tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A user's repository: a reward and a recipe are committed, the questions are ignored by git."""
    folder = tmp_path / "project"
    folder.mkdir()
    rows = [{"prompt": f"question {index}", "answer": str(index)} for index in range(10)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "project_rewards.py").write_text(REWARD)
    tree = {
        "algorithm": "grpo",
        "name": "mine",
        "model": {"path": str(tiny_folder), "compute_dtype": "float32"},
        "task": {"source": "tasks.jsonl", "num_held_out": 4, "reward": "project_rewards:score"},
        "rollout": {"num_prompts": 2, "group_size": 3, "max_tokens": 4},
        "optimizer": {"learning_rate": 0.006},
        "train": {"num_steps": 4},
        "evaluation": {"every_steps": 2, "right_at": 0.5},
        "checkpoint": {"every_steps": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    (folder / ".gitignore").write_text("tasks.jsonl\nruns/\n__pycache__/\n")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))
    sys.modules.pop("project_rewards", None)
    yield folder
    sys.modules.pop("project_rewards", None)


@pytest.fixture
def train_here() -> Callable[..., RunFolder]:
    """Train the recipe of the working directory in this process."""

    def make(*flags: str, **named: int) -> RunFolder:
        config = resolve(schema_for("recipe.yaml"), "recipe.yaml", flags=flags, environment={}).config
        return train(config, Console(file=io.StringIO()), **named)

    return make


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
