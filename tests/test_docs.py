"""README, CONTRIBUTING and the page of inputs say what is so."""

import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

from burnish.algorithms import grpo
from burnish.cli.app import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
INPUTS = (ROOT / "docs" / "reference" / "inputs.md").read_text(encoding="utf-8")
PYTHON = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


def test_the_loop_is_the_loop() -> None:
    (block,) = PYTHON.findall(CONTRIBUTING)
    assert block.strip() == inspect.getsource(grpo.train).strip()


def test_the_reward_and_the_command_on_data_in_the_format_of_gsm8k(capsys, tiny_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(PYTHON.findall(README)[0])
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": f"What is {i} + 1?", "answer": f"Add them.\n#### {i + 1}"} for i in range(120)]
    (tmp_path / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (command,) = re.findall(r"^burnish (train grpo --task.source gsm8k.*--dry-run)$", INPUTS, re.MULTILINE)
    arguments = shlex.split(command)
    model = ["--model.path", str(tiny_folder), "--model.compute_dtype", "float32"]
    assert run([*arguments, *model]) == 0
    assert "ok: 20 questions to train on, 100 held out" in capsys.readouterr().out
    small = ["--train.num_steps", "1", "--task.num_held_out", "4", "--rollout.max_tokens", "4"]
    assert run([*arguments[:-1], *model, *small]) == 0
    assert "exact McNemar p" in capsys.readouterr().out


def test_the_command_with_an_environment(capsys, tiny_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(120)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (command,) = re.findall(r"^burnish (train grpo .* --task.environment .*)$", INPUTS, re.MULTILINE)
    small = ["--train.num_steps=1", "--task.num_held_out=4", "--rollout.max_tokens=4", "--model.compute_dtype=float32"]
    monkeypatch.setattr("burnish.models.load.find_model", lambda path: str(tiny_folder))
    assert run([*shlex.split(command), *small, "--dry-run"]) == 0
    assert "<tool_call>" in capsys.readouterr().out  # the tiny model's template shows no tools, so a message does


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)", README + CONTRIBUTING))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
