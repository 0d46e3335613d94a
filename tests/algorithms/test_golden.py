"""Twenty steps of every algorithm give the curve that is kept here, and learn.

Recreate a curve with GOLDEN=write, and say in the commit why.
"""

import json
import os
from pathlib import Path

import pytest

from burnish.algorithms.session import train
from burnish.reproducibility.run_folder import RunFolder

from .conftest import ALGORITHMS

FOLDER = Path(__file__).parent / "golden"
NAMES = (
    "step",
    "tokens",
    "reward_mean",
    "loss",
    "grad_norm",
    "entropy",
    "mismatch_mean",
    "reward_margin",
    "kl",
    "kl_baseline",
    "divergence",
)
CHANGES = {
    "sft": {"optimizer__learning_rate": 1e-2},
    "dpo": {"loss__weights": {"sigmoid": 1.0, "nll": 0.1}},
    "online_dpo": {"optimizer__learning_rate": 1e-2, "loss__beta": 0.05},
    "rejection_sampling": {"rollout__group_size": 8},
    "distillation": {"optimizer__learning_rate": 1e-2},
}


def held_out(run: RunFolder, step: int) -> float:
    items = run.read_step("evaluations", step)
    return sum(item["score"] for item in items) / len(items)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_golden_curve(make_config, quiet, tmp_path, monkeypatch, algorithm: str) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"train__num_steps": 20, "checkpoint__every_steps": 20, **CHANGES.get(algorithm, {})}
    run = train(make_config(algorithm, **changes), quiet)
    curve = [{name: line[name] for name in NAMES if name in line} for line in run.metrics()]
    path = FOLDER / f"{algorithm}.json"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(json.dumps(curve, indent=1) + "\n")
    expected = json.loads(path.read_text())
    assert len(curve) == len(expected) == 20
    for line, wanted in zip(curve, expected, strict=True):
        assert line["tokens"] == wanted["tokens"]
        assert set(wanted) <= set(line)
        assert line.get("mismatch_mean", 0.0) < 1e-5
        for name in set(wanted) - {"step", "tokens", "mismatch_mean"}:
            # other processors add in another order; the tokens above are equal all the same
            assert line[name] == pytest.approx(wanted[name], rel=2e-3, abs=2e-5), (line["step"], name)
    if "reward_mean" in curve[0]:
        first, last = (sum(line["reward_mean"] for line in part) / 5 for part in (curve[:5], curve[-5:]))
        if algorithm != "distillation":  # whose reward is not what it learns
            assert last > first + 0.02
    if "divergence" in curve[0]:
        assert curve[-1]["divergence"] < 0.9 * curve[0]["divergence"]
    if algorithm in ("sft", "off_policy_distillation"):
        assert held_out(run, 20) > held_out(run, 0)
    if algorithm in ("dpo", "kto", "reward_model"):
        assert held_out(run, 20) > 0.5
