"""From an installed wheel: a user's own loss, advantage and reward in one file, and nothing of ours touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN = """
import numpy as np
from burnish import loss

@loss(normalizer="sequences")
def own_loss(scored, batch):
    return -(scored.logprobs_S * batch.weights_S).sum()

def own_advantage(rewards_B, group_B):
    return np.sign(rewards_B - rewards_B.mean())

def own_reward(completion, task):
    return float(len(completion.text))
"""


@pytest.mark.slow
def test_your_own_from_a_wheel(tiny_folder: Path, tmp_path: Path) -> None:
    def call(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    call(*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", "wheels")
    (wheel,) = (tmp_path / "wheels").glob("burnish-*.whl")
    call(*pip, "install", "--no-deps", "--target", "installed", str(wheel))
    where = call(sys.executable, "-c", "import burnish; print(burnish.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path / "installed")

    (tmp_path / "mine.py").write_text(OWN)
    rows = [{"prompt": f"say {i}", "completion": f"word {i}", "answer": str(i)} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    burnish = [sys.executable, "-m", "burnish"]
    assert "nothing found" in call(*burnish, "check", "loss", "mine:own_loss")
    shared = [f"--model.path={tiny_folder}", "--model.compute_dtype=float32", "--train.num_steps=2"]
    shared += ["--checkpoint.every_steps=2"]
    sft = ["train", "sft", "--data.source=rows.jsonl", "--data.num_held_out=4", '--loss={"own": "mine:own_loss"}']
    assert "held-out log-likelihood" in call(*burnish, *sft, *shared)
    grpo = ["train", "grpo", "--task.source=rows.jsonl", "--task.num_held_out=4", "--task.reward=mine:own_reward"]
    grpo += ["--loss.advantage=mine:own_advantage", '--loss.also={"mine:own_loss": 0.1}', "--rollout.max_tokens=8"]
    assert "held-out accuracy" in call(*burnish, *grpo, *shared)
