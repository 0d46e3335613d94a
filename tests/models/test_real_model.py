"""What `burnish model get smollm2-135m` made: the real model, held to the same equalities as the tiny one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from burnish.cli.app import run
from burnish.config.schema import ModelConfig, OptimizerConfig
from burnish.data.packing import pack_groups, split_batch
from burnish.errors import ModelError
from burnish.losses.policy_gradient import PolicyLoss
from burnish.models.fetch import KNOWN_MODELS, cached_model, verify_conversion
from burnish.models.load import load_policy
from burnish.records import GenerationRequest, RolloutGroup, SamplingSettings
from burnish.reproducibility.run_folder import RunFolder
from burnish.rollout.generators.native import NativeGenerator
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer

NAME = "smollm2-135m"
QUESTIONS = ["What is 3 + 4?", "What is the capital of France?", "Name a colour.", "7 - 9 ="]


def fetched() -> bool:
    try:
        return cached_model(NAME).is_dir()
    except ModelError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fetched(), reason=f"the model is not on this machine: burnish model get {NAME}"),
]


@pytest.fixture(scope="module")
def policy():
    return load_policy(ModelConfig(path=NAME, compute_dtype="float32"), seed=0)


def render(tokenizer, question: str) -> tuple[int, ...]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def groups(policy, as_groups) -> list[RolloutGroup]:
    generator = NativeGenerator(policy, max_rows=8)
    sampling = SamplingSettings(max_tokens=12, stop_token_ids=policy.stop_token_ids)
    requests = [
        GenerationRequest(token_ids=render(policy.tokenizer, question), sampling=sampling, seeds=(1, 2, 3, 4))
        for question in QUESTIONS
    ]
    return as_groups(requests, generator.generate(requests))


def test_conversion_answers_and_round_trips() -> None:
    verify_conversion(cached_model(NAME), KNOWN_MODELS[NAME])


def test_tokenizer_splits_every_digit() -> None:
    tokenizer = AutoTokenizer.from_pretrained(cached_model(NAME))
    assert tokenizer.tokenize("1234 ²³") == ["1", "2", "3", "4", *tokenizer.tokenize(" ²³")]
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.eos_token_id) == ("<|im_end|>", "<|im_end|>", 2)
    assert AutoModelForCausalLM.from_pretrained(cached_model(NAME)).config.rms_norm_eps == 1e-5


def test_sampler_and_learner_agree_in_float32(policy, groups) -> None:
    batch = pack_groups(groups, [[0.0] * 4] * len(groups))
    learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=10_000)
    difference_S = (learner.score(batch).logprobs_S - batch.sampler_logprobs_S).abs()
    assert difference_S.mean() < 1e-5
    assert difference_S.max() < 1e-3


@torch.no_grad()
def test_learner_agrees_with_plain_transformers(policy, groups) -> None:
    naive = AutoModelForCausalLM.from_pretrained(cached_model(NAME), dtype=torch.float32, attn_implementation="eager")
    expected = []
    for group in groups:
        for rollout in group.rollouts:
            completion = torch.tensor(rollout.completion.token_ids)
            ids = torch.cat([torch.tensor(group.prompt.token_ids), completion])
            logprobs = naive(ids[None]).logits[0, len(group.prompt.token_ids) - 1 : -1].log_softmax(-1)
            expected.append(logprobs.gather(1, completion[:, None])[:, 0])
    batch = pack_groups(groups, [[0.0] * 4] * len(groups))
    learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=10_000)
    difference_S = (learner.score(batch).logprobs_S - torch.cat(expected)).abs()
    assert difference_S.mean() < 1e-5


def test_gradient_does_not_depend_on_how_the_step_is_cut(policy, groups) -> None:
    loss = PolicyLoss(
        clip_low=0.2,
        clip_high=0.2,
        aggregation="token",
        max_tokens=12,
        kl_coefficient=0.0,
        kl_estimator="k3",
    )
    batch = pack_groups(groups, [[1.5, -0.5, 0.25, -1.25]] * len(groups))
    optimizer = MasterOptimizer(policy.trainable(), OptimizerConfig())

    def gradient(micro_batch_tokens: int) -> torch.Tensor:
        policy.module.zero_grad()
        Learner(policy, optimizer, micro_batch_tokens=micro_batch_tokens).forward_backward(batch, loss)
        return torch.cat([parameter.grad.flatten() for parameter in policy.trainable().values()])

    assert len(list(split_batch(batch, 60))) > 4
    whole, cut = gradient(10_000), gradient(60)
    assert (whole - cut).norm() / whole.norm() < 1e-5


def test_greedy_tokens_are_those_of_transformers(policy) -> None:
    prompt = render(policy.tokenizer, QUESTIONS[1])
    sampling = SamplingSettings(max_tokens=12, temperature=0.0, stop_token_ids=policy.stop_token_ids)
    request = GenerationRequest(token_ids=prompt, sampling=sampling, seeds=(0,))
    fillers = [replace(request, token_ids=render(policy.tokenizer, question)) for question in QUESTIONS]
    completion = NativeGenerator(policy, max_rows=3).generate([*fillers, request])[-1][0]
    naive = AutoModelForCausalLM.from_pretrained(cached_model(NAME), dtype=torch.float32)
    output = naive.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    assert output[0, len(prompt) :].tolist() == list(completion.token_ids)
    assert completion.text == "The capital of France is Paris."


def test_two_steps_of_the_quickstart(capsys, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is in the extra `demo`")
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "quickstart", "--train.num_steps", "2", "--task.num_held_out", "8"]
    assert run(arguments) == 0
    assert "exact McNemar p" in capsys.readouterr().out.splitlines()[-1]
    (folder,) = RunFolder.all(tmp_path / "runs")
    assert all(line["mismatch_mean"] < 0.1 for line in folder.metrics())
