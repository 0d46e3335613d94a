"""A run's model met again with something that is not what it was trained with."""

import json
from pathlib import Path

import pytest
import yaml

from burnish.cli.app import run
from burnish.config.evaluation import EvalConfig
from burnish.evaluation.runner import prepare_eval


@pytest.mark.slow
def test_what_changed_since_training_is_said(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BURNISH_MODEL__COMPUTE_DTYPE", "float32")
    reward, rows = tmp_path / "own_reward.py", tmp_path / "tasks.jsonl"
    reward.write_text("def score(completion, task):\n    return 1.0\n")
    questions = [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(6)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in questions))
    recipe = {
        "algorithm": "grpo",
        "name": "small",
        "model": {"path": str(tiny_folder)},
        "task": {"source": "tasks.jsonl", "num_held_out": 3, "reward": "own_reward:score"},
        "rollout": {"num_prompts": 2, "group_size": 2, "max_tokens": 4},
        "train": {"num_steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["train", "recipe.yaml"]) == 0
    (trained,) = (tmp_path / "runs").iterdir()

    def changed(**task: object) -> list[str]:
        config = EvalConfig.model_validate(
            {
                "model": {"path": str(trained), "compute_dtype": "float32"},
                "task": {**recipe["task"], "split": "held_out", "right_at": 1.0, **task},
                "sampling": {"max_tokens": 4},
            }
        )
        found: list[str] = prepare_eval(config).origin()["differs_from_run"]
        return found

    assert changed() == []
    assert changed(reward="burnish.rewards.answers:last_number") == []  # another one, on purpose
    reward.write_text("def score(completion, task):\n    return 0.5\n")
    assert changed() == ["the code of own_reward:score is another"]
    rows.write_text("".join(json.dumps({**row, "tests": "assert True"}) + "\n" for row in questions))
    assert changed()[1:] == ["the fields beside the questions that it holds out are others"]
    rows.write_text("".join(json.dumps({**row, "answer": "7"}) + "\n" for row in questions))
    assert changed() == ["the code of own_reward:score is another", "the questions that it holds out are others"]
    assert changed(num_items=2) == ["the code of own_reward:score is another"]  # some of them only
    (template,) = (trained / "checkpoints" / "step-000001").glob("chat_template.jinja")
    template.write_text("{{ 'Listen: ' }}" + template.read_text())
    assert changed()[0] == "the chat template of the tokenizer is another"
    capsys.readouterr()
    assert run(["eval", "last", "--task", "last"]) == 0
    out = capsys.readouterr().out
    assert out.count("not as in training: the ") == 3
