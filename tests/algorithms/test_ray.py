"""The same recipe on Ray: the same tokens, the same numbers, whatever the layout; and what is lost is made anew."""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from burnish.algorithms.session import resume, train
from burnish.config.schema import RunConfig
from burnish.distributed import ray_roles
from burnish.errors import ConfigError
from burnish.reproducibility.run_folder import RunFolder
from tests.distributed.ray_cluster import ray_cluster

from .test_resume import interrupted, outcome

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ray_cluster(8, tmp_path_factory.mktemp("ray") / "log") as found:
        yield found


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def on_ray(make_config: Callable[..., RunConfig], address: str) -> Callable[..., RunConfig]:
    def make(algorithm: str, cluster: dict[str, Any], **changes: object) -> RunConfig:
        where = {"kind": "ray", "address": address, "timeout_seconds": 120, "start_seconds": 120, **cluster}
        return make_config(algorithm, cluster=where, model__num_threads=1, **changes)

    return make


def weights_of(run: RunFolder, name: str = "model.safetensors") -> dict[str, Any]:
    (checkpoint,) = run.checkpoints.glob("step-*")
    return load_file(checkpoint / name)


def assert_alike(run: RunFolder, local: RunFolder, name: str = "model.safetensors") -> None:
    """The same tokens; losses, norms and weights as near as another order of additions leaves them."""
    for line, other in zip(run.metrics(), local.metrics(), strict=True):
        assert line.get("rollouts_sha256") == other.get("rollouts_sha256")
        for key in ("loss", "grad_norm", "entropy", "held_out"):
            if key in other:
                assert line[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5), key
    mine, theirs = weights_of(run, name), weights_of(local, name)
    assert mine.keys() == theirs.keys()
    for key, weight in mine.items():
        apart = (weight - theirs[key]).abs()
        # AdamW divides a gradient by its own size: where that is near 0, rounding is a part of a step (6e-3)
        assert float(apart.mean()) < 2e-6 and float(apart.max()) < 2e-4, key


@pytest.mark.parametrize(
    ("algorithm", "cluster", "changes"),
    [
        ("grpo", {"learners": 2, "generators": 2}, {"loss__kl_coefficient": 0.05, "rollout__lag": 1}),
        ("dpo", {"learners": 4, "tensor_parallel": 2}, {}),
        ("dpo", {"learners": 4, "replicas": 2}, {"data__batch_size": 4}),
        ("ppo", {"learners": 2, "tensor_parallel": 2}, {"critic__kind": "shared"}),
        ("ppo", {"learners": 2}, {}),
        ("distillation", {"learners": 2}, {"train__recompute": 1}),
    ],
    ids=["grpo", "dpo", "copies", "shared critic", "own critic", "distillation"],
)
def test_the_layout_changes_nothing(
    on_ray: Any,
    make_config: Any,
    quiet: Any,
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str,
    cluster: dict[str, int],
    changes: dict[str, Any],
) -> None:
    local = train(make_config(algorithm, model__num_threads=1, **changes), quiet)
    config = on_ray(algorithm, cluster, **changes)
    if algorithm == "dpo":  # and its checkpoint is cut as it was
        run = interrupted(config, quiet, monkeypatch, 3)
        resume(run, config, quiet)
    else:
        run = train(config, quiet)
    assert_alike(run, local)
    if algorithm == "grpo":
        lines = run.metrics()
        assert all(0 <= line["idle_learners"] <= 1 and 0 <= line["idle_generators"] <= 1 for line in lines)
        assert sum(line["bytes_published"] for line in lines) > 0


def test_adapters_and_a_checkpoint_of_another_layout(on_ray: Any, make_config: Any, quiet: Any, monkeypatch) -> None:
    lora = {"rank": 2}
    unbroken = train(make_config("sft", model__lora=lora, model__num_threads=1), quiet)
    spread = on_ray("sft", {"learners": 2}, model__lora=lora)
    run = interrupted(spread, quiet, monkeypatch, 3)
    resume(run, make_config("sft", model__lora=lora, model__num_threads=1), quiet)
    assert_alike(run, unbroken, "adapter_model.safetensors")
    other = interrupted(make_config("sft", model__lora=lora, model__num_threads=1), quiet, monkeypatch, 3)
    resume(other, spread, quiet)
    assert_alike(other, unbroken, "adapter_model.safetensors")


def test_adapters_in_bfloat16_are_published_as_they_are(on_ray: Any, make_config: Any, quiet: Any) -> None:
    """Peft keeps them in float32. The reference is scored first, with the adapters switched off."""
    changes = {"model__lora": {"rank": 2}, "model__compute_dtype": "bfloat16", "loss__kl_coefficient": 0.05}
    local = train(make_config("grpo", model__num_threads=1, **changes), quiet)
    run = train(on_ray("grpo", {"learners": 2}, **changes), quiet)
    pairs = list(zip(run.metrics(), local.metrics(), strict=True))
    first, alone = pairs[0]
    assert first["rollouts_sha256"] == alone["rollouts_sha256"]
    assert first["grad_norm"] == pytest.approx(alone["grad_norm"], rel=0.05)
    for line, other in pairs:  # rounding moves a token, but noise for weights would be far from what the learner says
        assert line["mismatch_mean"] == pytest.approx(other["mismatch_mean"], abs=0.02)


def test_what_is_lost_is_made_anew_and_changes_no_bit(on_ray: Any, quiet: Any, monkeypatch) -> None:
    config = on_ray("grpo", {"learners": 2, "generators": 1}, rollout__lag=1, train__num_steps=6)
    unhurt = train(config, quiet)
    killed: list[str] = []
    original = ray_roles.RayRoles.publish_weights

    def publish_weights(self: Any, version: int) -> None:
        original(self, version)
        victims = {2: ("generator", self._generators), 5: ("learner", self._learners)}
        name, actors = victims.get(version, ("", []))
        if name and name not in killed:
            killed.append(name)
            told = self._actors.ray.get(actors[-1].facts.remote(None))
            timer = threading.Timer(0.02, os.kill, (told.process_id, signal.SIGKILL))  # in the middle of something
            timer.start()

    monkeypatch.setattr(ray_roles.RayRoles, "publish_weights", publish_weights)
    run = train(config, quiet)
    assert killed == ["generator", "learner"]
    mine, theirs = outcome(run), outcome(unhurt)
    assert (mine.parameters, mine.optimizer, mine.tokens) == (theirs.parameters, theirs.optimizer, theirs.tokens)
    events = [event["event"] for event in run.events()]
    assert "lost" in events and "healed" in events
    assert [event["message"] for event in run.events() if event["event"] == "noticed"] == [
        "generator 0 is gone: another one is started, and samples what it was asked"
    ]
    assert all(line["peak_memory_bytes"] > 10**8 for line in run.metrics())  # a learner's, who has torch


def test_weights_change_while_a_completion_is_sampled(on_ray: Any, make_config: Any, quiet: Any, monkeypatch) -> None:
    """And a generator is killed, and the run interrupted and resumed: every prompt is asked once, in its step."""
    changes = {"rollout__lag": 2, "rollout__max_tokens": 200, "rollout__update_weights": "during"}
    config = on_ray("grpo", {"generators": 2}, **changes)
    killed: list[int] = []
    original = ray_roles.RayRoles.publish_weights

    def publish_weights(self: Any, version: int) -> None:
        original(self, version)
        if version == 2 and not killed:
            (told,) = self._actors.ray.get([self._generators[1].facts.remote(None)])
            killed.append(told.process_id)
            os.kill(told.process_id, signal.SIGKILL)

    monkeypatch.setattr(ray_roles.RayRoles, "publish_weights", publish_weights)
    run = interrupted(config, quiet, monkeypatch, 3)
    resume(run, config, quiet)
    assert killed
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["loss"]) and 0 <= line["staleness_max"] <= 2 for line in lines)
    stored = [run.read_step("rollouts", step) for step in range(1, 7)]
    rollouts = [rollout for groups in stored for group in groups for rollout in group["rollouts"]]
    assert all(sum(count for _, count in each["versions"]) == len(each["token_ids"]) for each in rollouts)
    assert all(
        [version for version, _ in each["versions"]] == sorted(v for v, _ in each["versions"]) for each in rollouts
    )
    assert any(len(each["versions"]) > 1 for each in rollouts)
    local = train(make_config("grpo", rollout__lag=2), quiet)
    asked = [[group["task_id"] for group in groups] for groups in stored]
    assert asked == [[group["task_id"] for group in local.read_step("rollouts", step)] for step in range(1, 7)]


@pytest.mark.parametrize(
    ("cluster", "changes", "message"),
    [
        (
            {"learners": 3, "generators": 6, "start_seconds": 1},
            {},
            r"need 9 CPUs, and the cluster has 8 after 1 s: lower",
        ),
        (
            {"learners": 4, "tensor_parallel": 4},
            {},
            r"cluster\.tensor_parallel=4 does not divide the model's 2 key-value",
        ),
        ({"learners": 4}, {}, r"rollout\.num_prompts=3 is less than the 4 learners"),
        ({}, {"train__micro_batch_tokens": "auto"}, r"train\.micro_batch_tokens: auto"),
        ({"learners": 2}, {"optimizer__kind": "adafactor"}, r"optimizer\.kind=adafactor"),
        ({"learners": 2, "tensor_parallel": 2}, {"model__lora": {}}, r"cluster\.tensor_parallel=2 and model\.lora"),
        ({"learners": 2}, {"model__lora": {"base_bits": 8}}, r"model\.lora\.base_bits=8 is for one process"),
    ],
)
def test_refused_before_anything_starts(
    on_ray: Any, quiet: Any, cluster: dict[str, int], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(on_ray("grpo", cluster, **changes), quiet)


def test_a_wrong_address_is_one_line(on_ray: Any, quiet: Any) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.address=127\.0\.0\.1:1: "):
        train(on_ray("sft", {"address": "127.0.0.1:1"}), quiet)


def test_another_version_on_a_node_is_refused(on_ray: Any, quiet: Any, monkeypatch) -> None:
    real = ray_roles.facts
    monkeypatch.setattr(ray_roles, "facts", lambda *arguments: replace(real(*arguments), torch="1.0"))
    with pytest.raises(ConfigError, match=r"has another torch \(.*, and here 1\.0\): install the same on every node"):
        train(on_ray("sft", {}), quiet)
