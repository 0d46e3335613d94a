import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from burnish.algorithms.grpo import GRPOConfig


@pytest.fixture
def tiny_config(tiny_folder: Path, tmp_path: Path) -> Callable[..., GRPOConfig]:
    """A run on the tiny model that takes a second: the reward is the share of tokens below 100."""
    source = tmp_path / "tasks.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"question {i}", "answer": str(i)}) + "\n" for i in range(14)))
    (tmp_path / "low_tokens.py").write_text(
        "def share(completion, task):\n"
        "    return sum(token < 100 for token in completion.token_ids) / len(completion.token_ids)\n"
    )

    def make(**changes: object) -> GRPOConfig:
        tree: dict[str, dict[str, object]] = {
            "model": {"path": str(tiny_folder), "compute_dtype": "float32"},
            "task": {"source": str(source), "reward": "low_tokens:share", "num_held_out": 4},
            "rollout": {"num_prompts": 3, "group_size": 4, "max_tokens": 8},
            "optimizer": {"learning_rate": 6e-3},
            "train": {"num_steps": 6},
            "evaluation": {"every_steps": 3, "right_at": 0.8},
            "checkpoint": {"every_steps": 2},
        }
        top = {"runs_folder": tmp_path / "runs"}
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name:
                tree[section] = {**tree.get(section, {}), name: value}
            else:
                top[key] = value
        return GRPOConfig.model_validate({**tree, **top})

    return make


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO())
