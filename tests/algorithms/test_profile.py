"""`--profile`: operations are those of the weights that a token meets, in whatever form they are kept."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from transformers import MixtralConfig, MixtralForCausalLM

from burnish.algorithms.profile import TIMED_STEP, weights_per_token
from burnish.algorithms.session import train
from burnish.config.schema import LoRAConfig, ModelConfig
from burnish.models.load import load_policy
from burnish.models.tiny import make_byte_tokenizer

LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64  # queries and output, keys and values, MLP
HEAD = 259 * 32
TEACHERS_LAYERS, TEACHERS_HEAD = 2 * (2 * 48 * 48 + 2 * 24 * 48 + 3 * 48 * 96), 259 * 48


def test_dense(tiny_policy) -> None:
    assert weights_per_token(tiny_policy) == (2 * LAYER, HEAD)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_quantised_base_is_as_much_work(tiny_folder, bits: int) -> None:
    lora = LoRAConfig(rank=2, target_modules=("q_proj",), base_bits=bits)
    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32", lora=lora), seed=0)
    assert weights_per_token(policy) == (2 * (LAYER + 2 * 2 * 32), HEAD)


def test_a_token_meets_some_of_the_experts(tmp_path) -> None:
    tokenizer = make_byte_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2}
    MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer), **shape, **heads, **experts)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(ModelConfig(path=str(tmp_path), compute_dtype="float32"), seed=0)
    attention, router, expert = 2 * 32 * 32 + 2 * 16 * 32, 8 * 32, 3 * 32 * 48
    assert weights_per_token(policy) == (attention + router + 2 * expert, HEAD)


@pytest.fixture
def profiled(make_config, quiet, tmp_path, monkeypatch) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """The profile of a run, and its metrics in the step that is timed."""
    monkeypatch.chdir(tmp_path)

    def of(algorithm: str, **changes: object) -> tuple[dict[str, Any], dict[str, Any]]:
        run = train(make_config(algorithm, train__num_steps=3, **changes), quiet, with_profile=True)
        return json.loads((run.path / "profile/profile.json").read_text()), run.metrics()[TIMED_STEP - 1]

    return of


@pytest.mark.slow
def test_the_critic_is_a_part_of_its_own(profiled) -> None:
    found, _ = profiled("ppo", train__minibatches_per_step=1)
    critic = found["critic.forward_backward"]
    value_head = 32
    assert critic["flops"] == 6 * (2 * LAYER + value_head) * critic["tokens"]
    assert {"critic.score", "critic.optim_step"} <= set(found)


@pytest.mark.slow
def test_a_teacher_has_its_own_size(profiled) -> None:
    found, metrics = profiled("distillation")
    teacher, student = found["teacher_logprobs"], found["forward_backward"]
    num_scored = (student["flops"] / 6 - 2 * LAYER * student["tokens"]) / HEAD
    assert num_scored == pytest.approx(12 * metrics["completion_tokens_mean"])
    assert teacher["flops"] == 2 * (TEACHERS_LAYERS * teacher["tokens"] + TEACHERS_HEAD * num_scored)


@pytest.mark.slow
def test_a_divergence_takes_a_pass_of_the_teacher(profiled) -> None:
    found, metrics = profiled("off_policy_distillation")
    num_tokens, num_scored = metrics["tokens"], metrics["scored_tokens"]
    student = 6 * (2 * LAYER * num_tokens + HEAD * num_scored)
    teacher = 2 * (TEACHERS_LAYERS * num_tokens + TEACHERS_HEAD * num_scored)
    assert found["forward_backward"]["flops"] == student + teacher
