import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from burnish.algorithms.grpo import GRPOConfig
from burnish.algorithms.session import schema_of
from burnish.config.schema import RunConfig

WORDS = ("red", "blue", "green", "gold", "grey", "pink", "teal")
REWARD = """
from burnish.environments.base import StepResult
from burnish.records import Message

class Twice:
    def __init__(self):
        self.turns = 0

    def reset(self, task):
        return task.messages

    def step(self, said):
        self.turns += 1
        low = sum(token < 100 for token in said.token_ids) / len(said.token_ids)
        return StepResult(messages=(Message(role="user", content="go on"),), reward=low / 2, done=self.turns == 2)

def share(completion, task):
    return sum(token < 100 for token in completion.token_ids) / len(completion.token_ids)
"""
ASKING = {"rollout": {"num_prompts": 3, "group_size": 4, "max_tokens": 8}, "evaluation": {"every_steps": 3}}


def _tasks(index: int) -> dict[str, Any]:
    return {"prompt": f"question {index}", "answer": str(index)}


def _pair(index: int) -> dict[str, Any]:
    word = WORDS[index % len(WORDS)]
    return {"prompt": f"say {word} {index}", "chosen": f"{word} {word}", "rejected": f"not {index}"}


def _completion(index: int) -> dict[str, Any]:
    return {"prompt": f"say {index}", "completion": f"{WORDS[index % len(WORDS)]} {index}"}


def _labelled(index: int) -> dict[str, Any]:
    pair = _pair(index)
    return {
        "prompt": pair["prompt"],
        "completion": pair["chosen" if index % 2 else "rejected"],
        "label": bool(index % 2),
    }


# algorithm -> (row of its data, sections beside the shared ones)
ALGORITHMS: dict[str, tuple[Callable[[int], dict[str, Any]], dict[str, Any]]] = {
    "grpo": (_tasks, {**ASKING, "evaluation": {"every_steps": 3, "right_at": 0.8}}),
    "sft": (_completion, {}),
    "dpo": (_pair, {}),
    "kto": (_labelled, {}),
    "reward_model": (_pair, {}),
    "ppo": (_tasks, {**ASKING, "train": {"num_steps": 6, "minibatches_per_step": 2}}),
    "online_dpo": (_tasks, ASKING),
    "rejection_sampling": (_tasks, {**ASKING, "loss": {"keep_from": 0.3}}),
    "distillation": (_tasks, ASKING),
    "off_policy_distillation": (_completion, {}),
}


@pytest.fixture
def make_config(tiny_folder: Path, tiny_teacher_folder: Path, tmp_path: Path, monkeypatch) -> Callable[..., RunConfig]:
    """`make_config("dpo", loss__beta=0.2)`: a run on the tiny model that takes a second.

    Where there is a reward, it is the share of tokens below 100.
    """
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "low_tokens.py").write_text(REWARD)

    def make(algorithm: str, **changes: object) -> RunConfig:
        row, sections = ALGORITHMS[algorithm]
        source = tmp_path / f"{row.__name__}.jsonl"
        if not source.is_file():
            source.write_text("".join(json.dumps(row(index)) + "\n" for index in range(14)))
        tree: dict[str, dict[str, object]] = {
            "model": {"path": str(tiny_folder), "compute_dtype": "float32"},
            "optimizer": {"learning_rate": 6e-3},
            "train": {"num_steps": 6},
            "evaluation": {"every_steps": 3},
            "checkpoint": {"every_steps": 2},
            **sections,
        }
        if row is _tasks:
            tree["task"] = {"source": str(source), "reward": "low_tokens:share", "num_held_out": 4}
        else:
            tree["data"] = {"source": str(source), "num_held_out": 4, "batch_size": 3}
        top: dict[str, object] = {"runs_folder": tmp_path / "runs"}
        if "distillation" in algorithm:
            top["teachers"] = [{"path": str(tiny_teacher_folder)}]
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name:
                tree[section] = {**tree.get(section, {}), name: value}
            else:
                top[key] = value
        return schema_of(algorithm).model_validate({**tree, **top})

    return make


@pytest.fixture
def tiny_config(make_config) -> Callable[..., GRPOConfig]:
    """A GRPO run on the tiny model."""
    return lambda **changes: make_config("grpo", **changes)


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO())
