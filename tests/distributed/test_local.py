"""What is refused before weights load, although each section by itself is fine."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burnish.algorithms.grpo import GRPOConfig
from burnish.algorithms.session import prepare
from burnish.config.schema import RunConfig
from burnish.data.packing import pack
from burnish.distributed import local
from burnish.distributed.local import build_local_roles, check_roles
from burnish.distributed.roles import CriticNeeds, RoleNeeds
from burnish.errors import ConfigError
from burnish.models.divergence import Divergence
from burnish.models.load import load_policy
from burnish.models.policy import Policy
from burnish.records import Branch, Example

LANGUAGE = RoleNeeds()


def config(**sections: dict) -> RunConfig:
    model = {"path": "some/model", **sections.pop("model", {})}
    return GRPOConfig.model_validate({"model": model, "task": {"source": "data.jsonl"}, **sections})


@pytest.mark.parametrize("name", ["offload_optimizer", "offload_reference"])
def test_nothing_is_moved_from_the_cpu_to_the_cpu(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^train\.save_memory: {name} would do nothing: the model is on the CPU"):
        check_roles(config(train={"save_memory": [name]}), LANGUAGE)


def test_adapters_leave_muon_no_use_for_betas() -> None:
    optimizer = {"kind": "muon", "betas": [0.9, 0.99]}
    adapted = config(optimizer=optimizer, model={"lora": {"rank": 2}})
    with pytest.raises(ConfigError, match=r"optimizer\.betas would be ignored"):
        check_roles(adapted, LANGUAGE)
    check_roles(adapted, RoleNeeds(kind="value"))  # whose head is AdamW's
    check_roles(config(optimizer=optimizer), LANGUAGE)


def test_a_step_in_the_backward_pass_has_one_teacher() -> None:
    lean = config(optimizer={"max_grad_norm": None}, train={"save_memory": ["step_in_backward"]})
    teachers, divergence = ("one", "other"), Divergence(kind="jsd", top_k=None)
    with pytest.raises(ConfigError, match="step_in_backward needs one backward pass a step"):
        check_roles(lean, RoleNeeds(teachers=teachers, divergence=divergence))
    check_roles(lean, RoleNeeds(teachers=teachers))
    check_roles(lean, RoleNeeds(teachers=teachers[:1], divergence=divergence))
    check_roles(config(), RoleNeeds(teachers=teachers, divergence=divergence))


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match="needs torchao"):
        prepare(config(optimizer={"kind": "adamw_8bit"}))


def test_the_reference_is_the_policy_before_it_learns(tiny_folder: Path) -> None:
    """In bfloat16 too, where rotary frequencies stay float32: rounded, they would turn far tokens otherwise."""
    run = config(model={"path": str(tiny_folder), "compute_dtype": "bfloat16"})
    roles = build_local_roles(run, RoleNeeds(reference=True))
    ids = tuple(range(3, 203))
    batch = pack([Example(id="0", prompt_ids=ids, branches=(Branch(token_ids=ids[:40]),))])
    assert torch.equal(roles.reference_logprobs(batch), roles.score(batch).logprobs_S)


def test_what_is_to_be_spread_loads_in_main_memory(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole it need not fit on the device that it is spread over: the policy, its reference, teachers and a critic."""
    loaded: list[torch.device] = []
    spread: list[torch.device] = []

    def load(*arguments: Any, device: torch.device | None = None, **named: Any) -> Policy:
        loaded.append(local.find_device("auto") if device is None else device)
        return load_policy(*arguments, device=torch.device("cpu"), **named)

    def keep(policy: Policy, dtype: torch.dtype) -> Policy:
        spread.append(policy.device)
        return policy

    monkeypatch.setattr(local, "find_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(local, "load_policy", load)
    sharding = SimpleNamespace(spread=keep, complete_gradients=None)
    critic = CriticNeeds(path=str(tiny_folder), learning_rate=1e-3)
    needs = RoleNeeds(reference=True, teachers=(str(tiny_folder),), critic=critic)
    run = config(model={"path": str(tiny_folder), "compute_dtype": "float32"})
    build_local_roles(run, needs, sharding=sharding)
    assert [device.type for device in loaded] == ["cpu"] * 3
    assert [device.type for device in spread] == ["cpu"] * 4


def test_what_a_setting_would_do_is_asked_of_the_device_that_is_meant() -> None:
    gpu = torch.device("cuda")
    check_roles(config(train={"save_memory": ["offload_optimizer"]}), LANGUAGE, device=gpu)
    with pytest.raises(
        ConfigError, match=r"^train\.save_memory: return_memory would do nothing: the model is on the GPU"
    ):
        check_roles(config(train={"save_memory": ["return_memory"]}), LANGUAGE, device=gpu)
