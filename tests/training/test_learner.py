"""One step, computed in many ways, against a naive model that sees one sequence at a time."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from burnish.config.schema import ModelConfig, OptimizerConfig
from burnish.data.packing import pack_groups
from burnish.losses.advantages import grpo
from burnish.losses.policy_gradient import ImportanceCorrection, PolicyLoss
from burnish.models.load import load_policy
from burnish.monitoring.metrics import reduce_metrics
from burnish.records import Rollout, RolloutGroup, TokenBatch
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer

NUM_SEQUENCES = 12
NUM_TOKENS = 50


def loss_of(aggregation: str) -> PolicyLoss:
    return PolicyLoss(
        clip_low=0.2,
        clip_high=0.28,
        aggregation=aggregation,
        max_tokens=8,
        kl_coefficient=0.5,
        kl_estimator="k3",
        importance=ImportanceCorrection(high=1.1),
    )


def advantages_of(group: RolloutGroup) -> list[float]:
    return grpo([rollout.reward for rollout in group.rollouts], [0] * len(group.rollouts)).tolist()


def pack(groups: list[RolloutGroup]) -> TokenBatch:
    advantages = [
        grpo([rollout.reward for rollout in group.rollouts], [0] * len(group.rollouts)).tolist() for group in groups
    ]
    return with_other_logprobs(pack_groups(groups, advantages))


def with_other_logprobs(batch: TokenBatch) -> TokenBatch:
    """Old and reference log-probabilities near the sampler's, as functions of the token: equal in any packing."""
    old_S = batch.sampler_logprobs_S + 0.2 * torch.sin(batch.target_ids_S.float())
    return replace(batch, old_logprobs_S=old_S, reference_logprobs_S=old_S - 1.0)


def naive_logprobs(model, group: RolloutGroup, rollout: Rollout) -> torch.Tensor:
    """Plain transformers with its own attention, one sequence."""
    completion = torch.tensor(rollout.completion.token_ids)
    sequence = torch.cat([torch.tensor(group.prompt.token_ids), completion])
    logits = model(input_ids=sequence[None]).logits[0]
    predicted = logits[len(group.prompt.token_ids) - 1 : -1].log_softmax(-1)
    return predicted[torch.arange(len(completion)), completion]


@pytest.fixture(scope="module")
def naive_model(tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager")
    model.get_input_embeddings().padding_idx = None  # the end token is the padding token; it is learnt all the same
    return model


@pytest.fixture(scope="module")
def groups(make_groups, naive_model) -> list[RolloutGroup]:
    """Random tokens whose sampler was a little off the model, as after a few optimizer steps."""
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def sampled(group: RolloutGroup, rollout: Rollout) -> Rollout:
        logprobs = naive_logprobs(naive_model, group, rollout)
        logprobs = logprobs + 0.2 * torch.randn(len(logprobs), generator=generator)
        return replace(rollout, completion=replace(rollout.completion, sampling_logprobs=tuple(logprobs.tolist())))

    return [
        replace(group, rollouts=tuple(sampled(group, rollout) for rollout in group.rollouts))
        for group in make_groups([[5, 4, 7, 1], [4, 4, 2, 6], [8, 1, 5, 3]], prompt_lengths=[4, 6, 3])
    ]


@pytest.fixture
def gradient_of(tiny_folder):
    """(loss, gradient of every weight) of batches that together are one step."""

    def compute(batches: list[TokenBatch], *, micro_batch_tokens: int, aggregation: str):
        policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32"), seed=0)
        optimizer = MasterOptimizer(policy.trainable(), OptimizerConfig())
        learner = Learner(policy, optimizer, micro_batch_tokens=micro_batch_tokens)
        metrics = []
        for batch in batches:
            metrics += learner.forward_backward(batch, loss_of(aggregation))
        gradient = torch.cat([parameter.grad.flatten() for parameter in policy.trainable().values()])
        return reduce_metrics([learner.optim_step(0.0)])["loss"], gradient, len(metrics)

    return compute


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_the_step_does_not_depend_on_how_it_is_cut(groups, gradient_of, aggregation: str) -> None:
    whole = pack(groups)
    loss, gradient, count = gradient_of([whole], micro_batch_tokens=10_000, aggregation=aggregation)
    assert count == 1

    # not shared: every completion brings its own copy of the prompt, with the same advantage
    single = [replace(group, rollouts=(rollout,)) for group in groups for rollout in group.rollouts]
    advantages = [
        [value] for g in groups for value in grpo([r.reward for r in g.rollouts], [0] * len(g.rollouts)).tolist()
    ]
    unshared = replace(with_other_logprobs(pack_groups(single, advantages)), counts=whole.counts)
    one_by_one = [
        replace(with_other_logprobs(pack_groups([group], [advantage])), counts=whole.counts)
        for group, advantage in zip(single, advantages, strict=True)
    ]
    backwards = pack([replace(group, rollouts=group.rollouts[::-1]) for group in reversed(groups)])
    variants = {
        "unshared": ([unshared], 10_000, 1),
        "one by one": (one_by_one, 10_000, 12),
        "eight micro-batches": ([whole], 12, 8),
        "another order": ([backwards], 10_000, 1),
    }
    for name, (batches, micro_batch_tokens, micro_batches) in variants.items():
        other_loss, other_gradient, count = gradient_of(
            batches, micro_batch_tokens=micro_batch_tokens, aggregation=aggregation
        )
        assert count == micro_batches, name
        assert other_loss == pytest.approx(loss, rel=1e-6), name
        assert relative(other_gradient, gradient) < 1e-6, name


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_against_a_naive_implementation(groups, gradient_of, naive_model, tiny_folder, aggregation: str) -> None:
    """One sequence at a time, the formulas written out."""
    model = copy.deepcopy(naive_model)
    total = torch.zeros(())
    expected_logprobs = []
    for group in groups:
        rewards = torch.tensor([rollout.reward for rollout in group.rollouts], dtype=torch.float64)
        for rollout, advantage in zip(group.rollouts, (rewards - rewards.mean()) / rewards.std(), strict=True):
            logprob = naive_logprobs(model, group, rollout)
            expected_logprobs.append(logprob.detach())
            sampler = torch.tensor(rollout.completion.sampling_logprobs)
            old = sampler + 0.2 * torch.sin(torch.tensor(rollout.completion.token_ids).float())
            ratio = torch.exp(logprob - old)
            surrogate = torch.minimum(ratio * advantage, torch.clamp(ratio, 0.8, 1.28) * advantage)
            correction = torch.clamp(torch.exp(old - sampler), max=1.1)
            log_r = (old - 1.0) - logprob
            token_loss = -surrogate * correction + 0.5 * (torch.exp(log_r) - 1 - log_r)
            match aggregation:
                case "token":
                    total = total + token_loss.sum() / NUM_TOKENS
                case "sequence":
                    total = total + token_loss.mean() / NUM_SEQUENCES
                case "constant":
                    total = total + token_loss.sum() / 8 / NUM_SEQUENCES
    total.backward()
    naive_gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    loss, gradient, _ = gradient_of([pack(groups)], micro_batch_tokens=10_000, aggregation=aggregation)
    assert loss == pytest.approx(total.item(), rel=1e-5)
    assert relative(gradient, naive_gradient) < 1e-5

    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32"), seed=0)
    learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=20)
    assert (learner.score(pack(groups)).logprobs_S - torch.cat(expected_logprobs)).abs().max() < 1e-5


def test_bfloat16_is_near_float32_and_sums_in_float32(groups, tiny_folder) -> None:
    gradients = {}
    for dtype in ("float32", "bfloat16"):
        policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype=dtype), seed=0)
        optimizer = MasterOptimizer(policy.trainable(), OptimizerConfig())
        Learner(policy, optimizer, micro_batch_tokens=13).forward_backward(pack(groups), loss_of("token"))
        assert all(master.grad.dtype == torch.float32 for master in optimizer.masters.values())
        gradients[dtype] = torch.cat([master.grad.flatten() for master in optimizer.masters.values()])
    assert 1e-4 < relative(gradients["bfloat16"], gradients["float32"]) < 0.1


def test_temperature_divides_the_logits(groups, tiny_policy) -> None:
    batch = pack(groups)
    optimizer = MasterOptimizer(tiny_policy.trainable(), OptimizerConfig())
    hot = Learner(tiny_policy, optimizer, micro_batch_tokens=10_000, temperature=50.0).score(batch).logprobs_S
    assert hot.mean().item() == pytest.approx(-torch.tensor(259.0).log().item(), abs=0.05)


def test_the_end_token_learns_although_it_pads(make_groups, tiny_policy) -> None:
    end = tiny_policy.tokenizer.eos_token_id
    assert end == tiny_policy.tokenizer.pad_token_id
    (group,) = make_groups([[3, 2]], prompt_lengths=[4])
    asked = replace(group, prompt=replace(group.prompt, token_ids=(7, end, 8, 9)))
    optimizer = MasterOptimizer(tiny_policy.trainable(), OptimizerConfig())
    embedding = tiny_policy.model.get_input_embeddings()
    tiny_policy.model.lm_head.weight = torch.nn.Parameter(embedding.weight.detach().clone())  # untie
    Learner(tiny_policy, optimizer, micro_batch_tokens=100).forward_backward(pack([asked]), loss_of("token"))
    assert embedding.weight.grad[end].norm() > 0


def test_metrics_of_several_optimizer_steps(groups, tiny_folder) -> None:
    """The loss is the mean over optimizer steps; the mismatch compares equal weights, however far the policy moved."""
    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32"), seed=0)
    learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=20)
    batch = pack(groups)
    old_S = learner.score(batch).logprobs_S
    batch = replace(batch, old_logprobs_S=old_S, sampler_logprobs_S=old_S)
    losses, metrics = [], []
    for _ in range(2):
        metrics += learner.forward_backward(batch, loss_of("token"))
        step = learner.optim_step(0.05)
        losses.append(float(step["loss"].value))
        metrics.append(step)
    reduced = reduce_metrics(metrics)
    assert losses[0] != pytest.approx(losses[1], rel=0.01)
    assert reduced["loss"] == pytest.approx(sum(losses) / 2)
    assert reduced["ratio_max"] > 1.1
    assert reduced["mismatch_max"] == 0
