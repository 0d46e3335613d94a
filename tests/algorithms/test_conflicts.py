from dataclasses import replace

import pytest
import torch

from burnish.algorithms.conflicts import part_gradients
from burnish.algorithms.session import train
from burnish.cli.app import run as burnish
from burnish.config.schema import RunConfig
from burnish.data.packing import pack_groups
from burnish.losses.loss import WeightedLosses, loss
from burnish.losses.parts import parts_of
from burnish.losses.policy_gradient import PolicyLoss
from burnish.losses.preference import PreferenceLoss
from burnish.records import Scored

REWARDS = """
def low(completion, task):
    return sum(token < 100 for token in completion.token_ids) / len(completion.token_ids)

def high(completion, task):
    return 1 - low(completion, task)

def twice(completion, task):
    return {"small": low(completion, task), "more": 2 * low(completion, task)}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "both_ways.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)


def finished(config: RunConfig, quiet):
    return train(config.model_copy(update={"train": config.train.model_copy(update={"num_steps": 2})}), quiet), config


def test_rewards_of_opposite_sense_have_opposite_gradients(make_config, quiet) -> None:
    run, config = finished(
        make_config("grpo", task__reward={"both_ways:low": 1.0, "both_ways:high": 0.5}, evaluation__right_at=0.8), quiet
    )
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    step, found = part_gradients(run, config, num_batches=2)
    assert step == 2 and list(found.norms) == ["surrogate", "reward.low", "reward.high"]
    assert found.cosines["reward.low", "reward.high"] == pytest.approx([-1.0, -1.0], abs=1e-4)
    assert found.cosines["surrogate", "reward.low"] == pytest.approx([1.0, 1.0], abs=1e-4)  # 1.0 outweighs 0.5
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_named_parts_of_one_reward_are_told_apart(make_config, quiet) -> None:
    run, config = finished(make_config("grpo", task__reward="both_ways:twice", evaluation__right_at=0.8), quiet)
    _, found = part_gradients(run, config, num_batches=1)
    assert found.cosines["reward.small", "reward.more"] == pytest.approx([1.0], abs=1e-4)


def test_gradients_can_be_seen_of_a_run_that_frees_them_in_the_backward_pass(make_config, quiet) -> None:
    lean = {"optimizer__max_grad_norm": None, "train__save_memory": ["step_in_backward"]}
    run, config = finished(make_config("dpo", **lean), quiet)
    _, found = part_gradients(run, config, num_batches=1)
    assert all(norm > 0 for norms in found.norms.values() for norm in norms)


def test_terms_of_the_policy_loss(make_config, quiet) -> None:
    run, config = finished(make_config("grpo", loss__kl_coefficient=0.3, loss__entropy_coefficient=0.01), quiet)
    _, found = part_gradients(run, config, num_batches=1)
    assert list(found.norms) == ["surrogate", "kl", "entropy"]
    assert all(norm > 0 for norms in found.norms.values() for norm in norms)


def test_losses_of_preferences(make_config, quiet) -> None:
    run, config = finished(
        make_config("dpo", loss__weights={"sigmoid": 1.0, "hinge": 0.5, "nll": 0.1}, optimizer__learning_rate=1e-4),
        quiet,
    )
    _, found = part_gradients(run, config, num_batches=2)
    assert list(found.norms) == ["sigmoid", "hinge", "nll"]
    assert all(each > 0.9 for each in found.cosines["sigmoid", "hinge"])  # the same pairs, pulled the same way


def test_gradients_of_parts_add_up(make_groups) -> None:
    random = torch.Generator().manual_seed(0)
    batch = pack_groups(make_groups([[5, 3, 9], [2, 4, 7]]), [[1.0, -0.5, -0.5], [0.7, -1.4, 0.7]])
    logprobs_S = -torch.rand(len(batch.target_ids_S), generator=random)
    batch = replace(batch, reference_logprobs_S=logprobs_S + 0.1 * torch.rand(len(logprobs_S), generator=random))
    scored = Scored(logprobs_S=logprobs_S.requires_grad_(), entropy_S=(1 + logprobs_S.detach()).requires_grad_())

    @loss()
    def own(scored: Scored, batch):
        return scored.logprobs_S.square().sum()

    whole = WeightedLosses(
        {"policy": PolicyLoss(kl_coefficient=0.2, entropy_coefficient=0.1), "own": own}, {"policy": 2.0, "own": 0.3}
    )
    parts = parts_of(whole)
    assert list(parts) == ["surrogate", "kl", "entropy", "own"]

    def gradient(each):
        total = each(scored, batch).total / getattr(batch.counts, each.normalizer)
        sides = [scored.logprobs_S, scored.entropy_S]
        return torch.cat(torch.autograd.grad(total, sides, allow_unused=True, materialize_grads=True))

    torch.testing.assert_close(sum(gradient(part) for part in parts.values()), gradient(whole))
    names = {"sigmoid": 1.0, "nll": 0.5}
    assert {name: part.weights for name, part in parts_of(PreferenceLoss(weights=names)).items()} == {
        "sigmoid": {"sigmoid": 1.0},
        "nll": {"nll": 0.5},
    }


def test_the_command(make_config, quiet, capsys) -> None:
    run, _ = finished(
        make_config("grpo", task__reward={"both_ways:low": 1.0, "both_ways:high": 0.5}, evaluation__right_at=0.8), quiet
    )
    assert burnish(["check", "gradients", str(run.path), "--batches", "1"]) == 0
    assert "-1.00" in (out := capsys.readouterr().out) and "conflict" in out
    assert burnish(["check", "gradients", str(run.path), "--batches", "0"]) == 2
    run, _ = finished(make_config("sft"), quiet)
    assert burnish(["check", "gradients", str(run.path)]) == 0
    assert "one part only" in capsys.readouterr().out
