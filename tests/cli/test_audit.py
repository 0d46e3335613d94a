"""`burnish audit` and `burnish check reward` as a user meets them."""

import json
from pathlib import Path

import pytest
import yaml

from burnish.cli.app import run

MODULE = """
def words(completion, task):
    return min(1.0, len(completion.text.split()) / 8)

def ascii_share(completion, task):
    return sum(letter.isascii() for letter in completion.text) / max(1, len(completion.text))
"""


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "paid_for_words.py").write_text(MODULE)
    rows = [{"prompt": f"question {i}", "answer": f"a blue {i}"} for i in range(30)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "algorithm": "grpo",
        "model": {"path": str(tiny_folder), "compute_dtype": "float32"},
        "task": {"source": "tasks.jsonl", "num_held_out": 12, "reward": "paid_for_words:words"},
        "rollout": {"num_prompts": 4, "group_size": 8, "max_tokens": 16},
        "loss": {"kl_coefficient": 1e-6},
        "train": {"num_steps": 12},
        "optimizer": {"learning_rate": 1e-2},
        "evaluation": {"every_steps": 4},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "recipe.yaml"


@pytest.mark.slow
def test_a_run_that_learns_to_be_wordy_is_caught(capsys, recipe: Path, tmp_path: Path) -> None:
    assert run(["train", str(recipe)]) == 0
    capsys.readouterr()
    gold = ["--gold", "paid_for_words:ascii_share"]
    assert run(["audit", "last", "--plot", "audit.svg"]) == 1
    out = capsys.readouterr().out
    assert "SUSPICIOUS" in out and "ALARM: gain by form" in out and "--gold names a reward that can" in out
    assert (tmp_path / "audit.svg").read_text().startswith("<svg")
    status = run(["audit", "last", "--json", *gold])
    found = json.loads(capsys.readouterr().out)
    assert status == int(any(alarm["is_raised"] for alarm in found["alarms"]))
    assert [step["step"] for step in found["steps"]] == [0, 4, 8, 12]
    assert found["steps"][0]["kl"] == 0.0 and found["steps"][-1]["kl"] > 0
    assert found["training_rise"]["num_items"] > 4 and len(found["best_of_n"]) == 4
    for gold_path, message in [
        ("paid_for_words:words", "it is the run's own reward"),
        ("paid_for_words:nothing", "cannot import 'paid_for_words:nothing'"),
    ]:
        assert run(["audit", "last", "--gold", gold_path]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "new", "answer": "1"}\n' * 1)
    assert run(["audit", "last", *gold]) == 2


def test_check_reward_prints_a_table_or_json(capsys, recipe: Path) -> None:
    assert run(["check", "reward", "paid_for_words:words", "tasks.jsonl"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["answer", "tasks", "mean", "reward", "of", "the", "right", "answer's", "ms"]
    assert any(line.startswith("serious: filler scores 1, more than the reference answer's 0.375") for line in lines)
    assert run(["check", "reward", "burnish.rewards.answers:last_number", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"] == [] and found["probes"][0]["mean"] == 1.0
