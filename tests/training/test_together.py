"""Prompt sharing, packing, the chunked head, adapters, a quantised base and pairs, all at once."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from burnish.config.schema import LoRAConfig, ModelConfig, OptimizerConfig
from burnish.data.packing import pack
from burnish.distributed.local import LocalRoles
from burnish.losses.preference import PreferenceLoss
from burnish.memory.recompute import recompute
from burnish.models import logprobs
from burnish.models.load import load_policy
from burnish.models.policy import Policy
from burnish.models.quantized import QuantizedLinear
from burnish.records import Branch, Example
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer

BETA = 0.3


def pair(index: int, prompt: int, chosen: int, rejected: int) -> Example:
    def ids(length: int, start: int) -> tuple[int, ...]:
        return tuple((start + 7 * n) % 250 for n in range(length))

    sides = (Branch(token_ids=ids(chosen, 3 + index), label=1.0), Branch(token_ids=ids(rejected, 90), label=-1.0))
    return Example(id=str(index), prompt_ids=ids(prompt, index), branches=sides)


PAIRS = [pair(0, 9, 12, 5), pair(1, 3, 7, 7), pair(2, 20, 1, 15), pair(3, 6, 30, 2)]


@pytest.fixture
def policy(tiny_folder: Path) -> Policy:
    """Adapters on 4 bits that have already learnt something."""
    lora = LoRAConfig(rank=4, base_bits=4)
    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32", lora=lora), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.trainable().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def naive(folder: Path, policy: Policy) -> nn.Module:
    """Plain transformers with the rounded weights written out, and peft's own adapters on it."""
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    plain.get_input_embeddings().padding_idx = None
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and name != "lm_head":
                child.weight.data = QuantizedLinear(child, 4).weight.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about peft
        adapted = peft.get_peft_model(plain, policy.module.peft_config["default"])  # type: ignore[union-attr,index]
    weights = {name: parameter.detach() for name, parameter in policy.trainable().items()}
    missing = adapted.load_state_dict(weights, strict=False).unexpected_keys
    assert not missing
    return adapted.eval()


def naive_loss(model: Any) -> Tensor:
    """-log sigmoid(beta (difference of log-ratios)), the mean over pairs, one sequence at a time (Rafailov et al.)."""

    def logprob(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Tensor:
        ids = torch.tensor([*prompt, *answer])
        logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()

    losses = []
    for each in PAIRS:
        chosen, rejected = (logprob(each.prompt_ids, branch.token_ids) for branch in each.branches)
        with torch.no_grad(), model.disable_adapter():
            reference = [logprob(each.prompt_ids, branch.token_ids) for branch in each.branches]
        losses.append(-nn.functional.logsigmoid(BETA * ((chosen - reference[0]) - (rejected - reference[1]))))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("recomputed", [0, 1])
def test_they_work_together(
    policy: Policy, tiny_folder: Path, recomputed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ROWS", 5)
    expected = naive_loss(model := naive(tiny_folder, policy))
    expected.backward()
    if recomputed:
        recompute(policy.model, every=recomputed)

    learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=45)
    roles = LocalRoles(learner, None, reference=policy)
    batch = pack(PAIRS)
    assert len(batch.token_ids_T) == 117  # each prompt stands once
    batch = replace(batch, reference_logprobs_S=roles.reference_logprobs(batch))
    assert len(roles.forward_backward(batch, PreferenceLoss(beta=BETA))) == 3  # micro-batches
    gradient = {name: parameter.grad for name, parameter in policy.trainable().items()}
    wanted = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert gradient.keys() == wanted.keys()
    for name, found in gradient.items():
        assert float((found - wanted[name]).norm() / wanted[name].norm()) < 1e-5, name
    assert float(roles.optim_step(0.0)["loss"].value) == pytest.approx(float(expected.detach()), rel=1e-6)
