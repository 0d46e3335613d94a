"""What a user has after a day: runs of two seeds, and evaluations of two models, made by the commands themselves."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from burnish.cli.app import run
from burnish.reproducibility.run_folder import RunFolder
from burnish.ui.app import Places, create_app

REWARD = """
def score(completion, task):
    return {"vowels": float(sum(each in "aeiou" for each in completion.text)), "short": 0.5}
"""


@dataclass(frozen=True)
class Project:
    """Folders, and the names of what stands in them."""

    runs_folder: Path
    evals_folder: Path

    @property
    def runs(self) -> list[RunFolder]:
        """Two seeds of a method, and another method."""
        return [RunFolder.find(name, self.runs_folder) for name in ("seed1", "seed2", "other")]


@pytest.fixture(scope="session")
def project(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("BURNISH_MODEL__COMPUTE_DTYPE", "float32")
        (folder / "ui_reward.py").write_text(REWARD)
        rows = [{"prompt": f"What is {i}?", "answer": str(i), "kind": "ab"[i % 2]} for i in range(12)]
        (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.symlink(tiny_folder, folder / "tiny")
        tree = {
            "algorithm": "grpo",
            "model": {"path": "tiny"},
            "task": {"source": "tasks.jsonl", "num_held_out": 4, "reward": "ui_reward:score"},
            "rollout": {"num_prompts": 2, "group_size": 3, "max_tokens": 6},
            "train": {"num_steps": 3},
            "evaluation": {"every_steps": 1},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
        for seed in (1, 2):
            assert run(["train", "recipe.yaml", "--name", f"seed{seed}", "--seed", str(seed)]) == 0
        assert run(["train", "recipe.yaml", "--name", "other", "--optimizer.learning_rate", "0.1"]) == 0
        for model in ("tiny", "seed1"):
            task = ("--task", "tasks.jsonl", "--slices", "kind", "--sampling.max_tokens", "4")
            assert run(["eval", model, *task]) == 0
    return Project(folder / "runs", folder / "evals")


def client_of(runs_folder: Path, evals_folder: Path | None = None, serve_url: str | None = None) -> TestClient:
    """Asks the page as a browser on this machine would."""
    evals = evals_folder or runs_folder.parent / "evals"
    places = Places(runs_folder=runs_folder, evals_folder=evals, serve_url=serve_url)
    return TestClient(create_app(places), base_url="http://127.0.0.1:7878")


@pytest.fixture
def client(project: Project) -> TestClient:
    return client_of(project.runs_folder, project.evals_folder)
