"""A run whose generator is vLLM, for real. `make test-vllm` makes its environment."""

import os
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest

from burnish.algorithms.session import train
from burnish.distributed import ray_roles
from burnish.models.tiny import make_tiny_model
from tests.distributed.test_vllm import PYTHON, processes_of
from tests.distributed.test_vllm import pytestmark as _marks

pytestmark = _marks


def test_it_learns_from_what_vllm_samples_and_heals_when_vllm_is_killed(
    make_config: Any, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mark = f"BURNISH_TEST={uuid.uuid4()}"
    monkeypatch.setenv(*mark.split("="))
    killed: list[int] = []
    original = ray_roles.RayRoles.publish_weights

    def publish_weights(self: Any, version: int) -> None:
        original(self, version)
        if version == 2 and not killed:
            servers = [each for each in processes_of(mark) if is_server(each)]
            os.kill(servers[0], signal.SIGKILL)
            killed.extend(servers)

    monkeypatch.setattr(ray_roles.RayRoles, "publish_weights", publish_weights)
    where = {"kind": "ray", "engine": "vllm", "vllm_python": str(PYTHON), "timeout_seconds": 200}
    model = make_tiny_model(tmp_path / "model", hidden_size=128)
    rollout = {"num_prompts": 3, "group_size": 4, "max_tokens": 8, "temperature": 0.7, "max_rows": 16}
    config = make_config("grpo", cluster=where, model__path=str(model), model__num_threads=1, rollout=rollout)
    run = train(config, quiet)
    assert len(killed) == 1
    lines = [line for line in run.metrics() if "mismatch_mean" in line]
    assert len(lines) == 6
    # the rates are large: weights that had not arrived would be far from the learner's
    assert max(line["mismatch_max"] for line in lines) < 1e-3, [line["mismatch_max"] for line in lines]
    held_out = [line["held_out"] for line in run.metrics() if "held_out" in line]
    assert len(held_out) == 2  # after steps 3 and 6, by greedy answers of vLLM's


def is_server(process_id: int) -> bool:
    command = Path(f"/proc/{process_id}/cmdline").read_bytes()
    return b"api_server" in command and b"keeper.py" not in command
