"""The plan of the memory against what a real step holds, counted tensor by tensor."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn

from burnish.algorithms import memory_advice, memory_plan
from burnish.algorithms.memory_advice import automatic_settings, budget_of, changes_that_fit, on_gpu
from burnish.algorithms.memory_plan import PROCESS_BYTES, LargestStep, MemoryPlan, plan_memory, probe
from burnish.algorithms.session import algorithm_of, fitted, load_roles, prepare, train
from burnish.cli.memory import print_memory
from burnish.cli.train import train_recipe
from burnish.config.loading import to_yaml
from burnish.config.schema import OptimizerConfig, RunConfig
from burnish.data.packing import pack, split_batch
from burnish.distributed.local import build_local_roles
from burnish.errors import ConfigError, UserError
from burnish.losses.loss import FunctionLoss
from burnish.memory.trace import LiveBytes
from burnish.models.load import find_dtype
from burnish.records import Branch, Example
from burnish.training.optimizer import MasterOptimizer, state_bytes, step_bytes

MakeConfig = Callable[..., RunConfig]


def plan(config: RunConfig, step: LargestStep | None = None) -> MemoryPlan:
    return plan_memory(config, algorithm_of(config).needs(config), step or prepare(config).largest_step())


@pytest.fixture(autouse=True)
def beside_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)


def step_of(num_branches: int, num_tokens: int = 20) -> LargestStep:
    branches = tuple(Branch(token_ids=(7,) * (num_tokens + n)) for n in range(num_branches))
    return LargestStep([Example(id=str(n), prompt_ids=tuple(range(9)), branches=branches) for n in range(3)])


@pytest.mark.parametrize("num_branches", [1, 2, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__compute_dtype": "bfloat16"},
        {"model__lora": {"rank": 4}},
        {"model__lora": {"base_bits": 4}},
        {"train__recompute": 1},
        {"train__micro_batch_tokens": 60},
    ],
    ids=str,
)
def test_learning_holds_what_was_planned(
    make_config: MakeConfig, num_branches: int, changes: dict[str, object]
) -> None:
    config, step = make_config("sft", **changes), step_of(num_branches)
    planned = next(phase for phase in plan(config, step).phases if phase.name == "learn")
    pairs = num_branches == 2
    with LiveBytes() as live:
        roles = build_local_roles(config, algorithm_of(config).needs(config), device=torch.device("cpu"))
        micros = list(split_batch(pack(step.examples), roles.learner.micro_batch_tokens, keep_groups=pairs))
        largest = max(micros, key=lambda micro: len(micro.token_ids_T))
        loss = FunctionLoss(lambda scored, batch: scored.logprobs_S.sum(), needs_whole_groups=pairs)
        live.reset_peak()
        for _ in micros[:2]:
            roles.learner.forward_backward(largest, loss)
        counted = live.peak_bytes
    beside = planned.parts["moments"] + planned.parts["pieces"]
    # what the batch itself is, and the tokenizer's and plan's small tensors, come and go in other places
    assert planned.num_bytes - PROCESS_BYTES - beside == pytest.approx(counted, rel=0.02)


def test_each_phase_names_what_it_holds(make_config: MakeConfig) -> None:
    config = make_config("grpo", model__compute_dtype="bfloat16", loss={"kl_coefficient": 0.1})
    phases = {phase.name: phase for phase in plan(config).phases}
    assert list(phases) == ["load", "sample 3 x 4", "sample 4 x 1", "score", "learn", "step"]
    parts = phases["load"].parts
    weights = parts["weights"]
    assert parts["master weights"] == pytest.approx(2 * weights, rel=0.01)  # float32 of bfloat16
    assert parts["other models"] == pytest.approx(weights, rel=0.01)  # the reference
    assert phases["learn"].parts["moments"] == pytest.approx(4 * weights, rel=0.01)
    assert phases["step"].parts["gradients"] == pytest.approx(2 * weights, rel=0.01)
    layers, kv_heads, head_dim, lanes, width = 2, 2, 8, 3, 4
    inputs = prepare(config)
    prompt = max(len(prompt.token_ids) for prompt in (*inputs.train, *inputs.held_out))
    keys = lanes * (prompt + width * config.rollout.max_tokens)
    assert phases["sample 3 x 4"].parts["key-value cache"] == layers * kv_heads * head_dim * keys * 2 * 2


@pytest.mark.parametrize("algorithm", ["ppo", "distillation", "reward_model", "dpo", "kto", "online_dpo"])
def test_every_algorithm_can_be_planned(make_config: MakeConfig, algorithm: str) -> None:
    phases = [phase.name for phase in plan(make_config(algorithm)).phases]
    assert phases[0] == "load"
    assert phases[-2].endswith("learn") and phases[-1].endswith("step")
    assert ("critic learn" in phases) == (algorithm == "ppo")


def test_longer_steps_and_heavier_optimizers_need_more(make_config: MakeConfig) -> None:
    config, step = make_config("sft"), step_of(5, 100)
    assert plan(config, step).peak_bytes > plan(config, step_of(1, 100)).peak_bytes
    halved = make_config("sft", train__recompute=2)
    whole = make_config("sft", train__recompute=1)
    assert plan(config, step).peak_bytes > plan(halved, step).peak_bytes > plan(whole, step).peak_bytes
    lean = make_config("sft", optimizer={"kind": "adafactor"})
    in_backward = make_config(
        "sft", optimizer={"kind": "adafactor", "max_grad_norm": None}, train__save_memory=("step_in_backward",)
    )
    assert plan(config, step).peak_bytes > plan(lean, step).peak_bytes
    assert plan(lean, step).phases[-1].parts["gradients"] > 0
    assert plan(in_backward, step).phases[-1].parts["gradients"] == 0  # never of all weights at once
    returned = make_config("sft", train__save_memory=("return_memory",))
    assert plan(config, step).peak_bytes > plan(returned, step).peak_bytes


def budget(config: RunConfig, share: float) -> int:
    """A budget that leaves a share of what the plan has beside the process."""
    return PROCESS_BYTES + int((plan(config).peak_bytes - PROCESS_BYTES) * share)


def test_what_does_not_fit_is_refused_with_a_plan_that_then_runs(make_config: MakeConfig, quiet: Console) -> None:
    config = make_config("sft", train__recompute=0, data__batch_size=6)
    inputs = prepare(config)
    limit = budget(config, 0.8)
    with pytest.raises(UserError, match=r"needs about .* GB and .* are there; it fits with (--\S+ \S+ ?)+$") as refused:
        fitted(config, inputs, limit)
    words = str(refused.value).partition("it fits with ")[2].split()
    changes = {
        key.removeprefix("--").replace(".", "__"): value for key, value in zip(words[::2], words[1::2], strict=True)
    }
    sections: dict[str, object] = {key: int(value) if value.isdigit() else value for key, value in changes.items()}
    smaller = make_config("sft", **({"train__recompute": 0, "data__batch_size": 6} | sections))
    assert fitted(smaller, prepare(smaller), limit) == smaller
    assert train(smaller, quiet).record()["status"] == "finished"


def test_no_budget_is_too_small_to_be_told(make_config: MakeConfig) -> None:
    config = make_config("sft")
    with pytest.raises(UserError, match="no setting makes it fit"):
        fitted(config, prepare(config), PROCESS_BYTES)


def test_auto_takes_the_largest_micro_batch_then_the_fewest_layers(make_config: MakeConfig) -> None:
    config = make_config("sft", data__batch_size=8)
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"micro_batch_tokens": "auto", "recompute": "auto"})}
    )
    step = replace(step_of(1), examples=step_of(1).examples * 40)  # 3,480 tokens

    class Inputs:
        model = prepare(config).model

        @staticmethod
        def largest_step() -> LargestStep:
            return step

    def found(share: float) -> tuple[int, int]:
        roomy = make_config("sft", data__batch_size=8, train__micro_batch_tokens=4096)
        limit = PROCESS_BYTES + int((plan(roomy, step).peak_bytes - PROCESS_BYTES) * share)
        settled = fitted(config, Inputs(), limit).train
        return settled.micro_batch_tokens, settled.recompute

    assert found(1.1) == (4096, 0)
    tokens, every = found(0.6)
    assert tokens < 4096
    assert every == 0
    least = make_config("sft", data__batch_size=8, train={"micro_batch_tokens": 256, "recompute": 2})
    none = make_config("sft", data__batch_size=8, train={"micro_batch_tokens": 256})
    between = (plan(least, step).peak_bytes + plan(none, step).peak_bytes) // 2
    settled = fitted(config, Inputs(), between).train
    assert (settled.micro_batch_tokens, settled.recompute) == (256, 4)  # of two layers the first, as every second


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("h100", 81559 * 2**20),
        ("T4", 15 * 2**30),
        ("2000000", 2_000_000),
    ],
)
def test_sizes_of_devices(text: str, expected: int, make_config: MakeConfig) -> None:
    assert budget_of(text, make_config("sft")) == expected


@pytest.mark.parametrize("text", ["tpu", "1.2.3GiB", "GiB", "24XB", "24", "4090"])
def test_an_unknown_device_is_one_line(text: str, make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=f"--device {text}: give this, a size such as 24GiB, or one of b200"):
        budget_of(text, make_config("sft"))


def test_a_plan_for_a_gpu_is_not_one_for_this_processor(make_config: MakeConfig) -> None:
    config = make_config("grpo", model__compute_dtype="auto")
    assert on_gpu(config, "24GiB") == config
    there = on_gpu(config, "h100")
    assert there.model.compute_dtype == "bfloat16"
    parts = plan(there, prepare(config).largest_step()).phases[1].parts
    assert "process" not in parts and parts["packed weights"] == 0


def test_what_was_auto_is_settled(make_config: MakeConfig) -> None:
    config = make_config("sft", model__compute_dtype="auto")
    assert fitted(config, prepare(config), 10**12).model.compute_dtype == find_dtype(config.model)


def test_a_probe_leaves_the_size_that_fits_and_nothing_else(make_config: MakeConfig) -> None:
    config = make_config("sft", data__batch_size=8, train__micro_batch_tokens=1024)
    needs = algorithm_of(config).needs(config)
    step = replace(step_of(1), examples=step_of(1).examples * 20)
    roles = load_roles(config)
    assert probe(roles, needs, step, 10**13) == 1024
    assert all(master.grad is None for master in roles.learner.optimizer.masters.values())
    assert float(roles.optim_step(0.0)["loss"].value) == 0.0
    assert probe(roles, needs, step, 0) == 256 == roles.learner.micro_batch_tokens


def test_a_run_with_auto_says_what_the_probe_found(make_config: MakeConfig, quiet: Console) -> None:
    config = make_config("sft", train__num_steps=1, train__micro_batch_tokens="auto")
    run = train(config, quiet)
    found = yaml.safe_load((run.path / "config.yaml").read_text())["train"]["micro_batch_tokens"]
    assert isinstance(found, int) and found >= 256
    settled = make_config("sft", train__num_steps=1, train__micro_batch_tokens=found)
    assert train(settled, quiet).metrics()[0]["loss"] == run.metrics()[0]["loss"]


def test_the_whole_model_is_there_before_it_is_quantised(make_config: MakeConfig) -> None:
    whole = plan(make_config("sft", model__compute_dtype="float32", model__lora={"rank": 4})).phases[0]
    quantised = plan(
        make_config("sft", model__compute_dtype="float32", model__lora={"rank": 4, "base_bits": 4})
    ).phases[0]
    assert quantised.parts["weights"] < 0.6 * whole.parts["weights"]
    assert quantised.parts["weights"] + quantised.parts["while loading"] > 0.8 * whole.parts["weights"]


def test_a_step_in_8_bits_holds_what_was_planned(make_config: MakeConfig) -> None:
    pytest.importorskip("torchao")
    config = make_config("sft", optimizer={"kind": "adamw_8bit"})
    phase = next(phase for phase in plan(config).phases if phase.name == "step")
    assert phase.parts["while stepping"] >= 10 * 32 * 64 * 4
    settings = OptimizerConfig(kind="adamw_8bit")
    largest = nn.Parameter(torch.zeros(256, 32))
    with LiveBytes() as live:
        optimizer = MasterOptimizer({"weight": largest}, settings)
        largest.grad = torch.ones_like(largest)
        before = live.live_bytes
        live.reset_peak()
        optimizer.step(1e-3)
        counted = live.peak_bytes - before - state_bytes(settings, "weight", largest.shape)
    assert step_bytes(settings, "weight", largest.shape) == pytest.approx(counted, rel=0.02)
    assert counted > 10 * largest.nbytes  # what is inside of the 8-bit tensors is seen


def advised(config: RunConfig, peaks: dict[str, int], budget_bytes: int, step: LargestStep) -> list[str]:
    """The flags that are proposed where each setting takes so much off a peak of 100."""

    def peak_of(tried: RunConfig) -> int:
        text = tried.model_dump_json()
        return 100 - sum(less for part, less in peaks.items() if part in text)

    found = changes_that_fit(config, budget_bytes, peak_of, step)
    return [] if found is None else [change.flags for change in found[0]]


def test_a_later_change_makes_earlier_ones_needless(make_config: MakeConfig) -> None:
    config = make_config("sft", train={"micro_batch_tokens": 1024})
    peaks = {'"recompute":2': 5, '"recompute":1,': 6, '"micro_batch_tokens":256': 30, '"rank":16': 40}
    flags = advised(config, peaks, 100 - 70, step_of(1))
    assert flags[0] == "--train.micro_batch_tokens 256"
    assert flags[-1].startswith("--model.lora")
    assert len(flags) == 2  # recomputing was taken on the way
    assert advised(config, peaks, 100 - 40, step_of(1)) == ["--model.lora '{}'"]


def test_memory_can_be_saved_before_the_method_is_changed(make_config: MakeConfig) -> None:
    config = make_config("sft")
    assert advised(config, {"return_memory": 10}, 90, step_of(1)) == ["--train.save_memory '[\"return_memory\"]'"]
    assert advised(config, {"step_in_backward": 10}, 90, step_of(1)) == []  # it clips
    free = make_config("sft", optimizer={"max_grad_norm": None})
    both = {"return_memory": 10, "step_in_backward": 10}
    assert advised(free, both, 90, step_of(1)) == ["--train.save_memory '[\"step_in_backward\"]'"]
    assert advised(free, both, 80, step_of(1)) == ['--train.save_memory \'["step_in_backward", "return_memory"]\'']
    there = on_gpu(config, "h100")
    assert advised(there, {"offload_optimizer": 10}, 90, step_of(1)) == [
        "--train.save_memory '[\"offload_optimizer\"]'"
    ]


def test_what_the_machine_or_a_setting_does_not_allow_is_not_proposed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "peft", None)
    config = make_config("sft", optimizer={"betas": [0.9, 0.99]})  # which adafactor has no use for
    with pytest.raises(UserError, match="no setting makes it fit"):
        fitted(config, prepare(config), PROCESS_BYTES)


def test_a_step_in_the_backward_pass_needs_its_batch_at_once(make_config: MakeConfig) -> None:
    lean: dict[str, Any] = {"optimizer": {"max_grad_norm": None}}
    saving = {"save_memory": ("step_in_backward",), "num_steps": 1}
    small = make_config("sft", **lean, train={**saving, "micro_batch_tokens": 64})
    tokens = prepare(small).largest_step().batch_tokens(small)
    assert tokens > 64
    with pytest.raises(ConfigError, match=rf"raise train.micro_batch_tokens=64 to the {tokens} tokens"):
        fitted(small, prepare(small), 10**12)
    auto = make_config("sft", **lean, train={**saving, "micro_batch_tokens": "auto"})
    assert fitted(auto, prepare(auto), 10**12).train.micro_batch_tokens >= tokens
    step = replace(step_of(1), examples=step_of(1).examples * 40)
    least = step.batch_tokens(auto)
    assert [each["train.micro_batch_tokens"] >= least for each in automatic_settings(auto, step)] == [True]


def test_a_batch_is_one_of_several_of_a_step(make_config: MakeConfig) -> None:
    config, step = make_config("grpo", train={"minibatches_per_step": 2}), step_of(1)
    assert step.batch_tokens(config) == 2 * 29  # of three examples
    assert step.batch_tokens(make_config("sft")) == 3 * 29


def test_what_the_process_holds_already_is_not_counted_twice(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_advice, "available_bytes", lambda device: 1000)
    monkeypatch.setattr(memory_advice, "held_bytes", lambda device: 300)
    assert budget_of("this", make_config("sft")) == 1300


def test_a_probe_leaves_room_for_the_moments(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("sft", data__batch_size=8, train__micro_batch_tokens=1024)
    step = replace(step_of(1), examples=step_of(1).examples * 20)
    roles = load_roles(config)
    gradients = sum(4 * master.numel() for master in roles.learner.optimizer.masters.values())
    monkeypatch.setattr(memory_plan, "held_bytes", lambda device: 0)
    monkeypatch.setattr(memory_plan, "peak_memory_bytes", lambda: gradients + 1000)
    needs = algorithm_of(config).needs(config)
    assert probe(roles, needs, step, 4 * gradients) == 1024
    assert probe(roles, needs, step, 2 * gradients) == 256  # moments are twice as much as the gradients


@pytest.mark.parametrize(
    ("flags", "device", "expected"),
    [
        (
            ["--train.micro_batch_tokens", "auto", "--train.recompute", "auto"],
            "24GiB",
            "train.recompute: auto is 0 here",
        ),
        (
            ["--train.save_memory", '["offload_optimizer"]', "--optimizer.max_grad_norm", "1"],
            "h100",
            "fits into 85.52 GB",
        ),
        (["--model.device", "cuda"], "24GiB", "fits into 25.77 GB"),
    ],
)
def test_burnish_memory_says_what_would_run(
    make_config: MakeConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    device: str,
    expected: str,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(make_config("sft")))
    assert print_memory(str(recipe), flags, file=None, device=device, as_json=False) == 0
    assert expected in capsys.readouterr().out


def test_burnish_memory_says_that_its_numbers_are_of_one_process(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(make_config("sft")))
    flags = ["--cluster.kind", "ray", "--cluster.learners", "2"]
    assert print_memory(str(recipe), flags, file=None, device="24GiB", as_json=False) == 0
    assert "one process with all weights, before 2 learners share them" in capsys.readouterr().out


def test_a_dry_run_is_refused_where_the_memory_does_not_suffice(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(make_config("sft")))
    assert train_recipe(str(recipe), [], file=None, is_dry_run=True) == 0
    assert capsys.readouterr().out.startswith("ok: ")
    monkeypatch.setattr(memory_advice, "available_bytes", lambda device: 0)
    monkeypatch.setattr(memory_advice, "held_bytes", lambda device: PROCESS_BYTES)
    with pytest.raises(UserError, match="no setting makes it fit"):
        train_recipe(str(recipe), [], file=None, is_dry_run=True)
