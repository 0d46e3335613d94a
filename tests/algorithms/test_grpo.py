from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from burnish.algorithms.grpo import minibatches, scored
from burnish.algorithms.session import report, resume, train
from burnish.errors import ConfigError, UserError
from burnish.records import RolloutGroup
from burnish.training.checkpoint import TrainState
from burnish.training.coefficients import Coefficients


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_two_fresh_runs_are_equal_and_another_seed_differs(tiny_config, quiet) -> None:
    hashes = [
        [line["rollouts_sha256"] for line in train(tiny_config(seed=seed, train__num_steps=3), quiet).metrics()]
        for seed in (0, 0, 1)
    ]
    assert hashes[0] == hashes[1]
    assert not set(hashes[0]) & set(hashes[2])


@pytest.mark.parametrize(
    "changes",
    [
        {"train__minibatches_per_step": 3},
        {"loss__kl_coefficient": 0.1, "loss__kl_estimator": "k2"},
        {"loss__aggregation": "sequence", "loss__advantage": "dr_grpo"},
        {"rollout__temperature": 0.7},
        {"model__compute_dtype": "bfloat16"},
        {"model__lora": {"rank": 4}, "optimizer__learning_rate": 0.02},
        {"model__lora": {"rank": 4}, "optimizer__learning_rate": 0.02, "loss__kl_coefficient": 0.1},
    ],
    ids=str,
)
def test_every_choice_trains(tiny_config, quiet, changes) -> None:
    run = train(tiny_config(train__num_steps=16, checkpoint__every_steps=16, **changes), quiet)
    metrics = run.metrics()
    first, last = (sum(line["reward_mean"] for line in part) / 4 for part in (metrics[:4], metrics[-4:]))
    assert last > first
    assert run.record()["status"] == "finished"
    if "loss__kl_coefficient" in changes:
        assert abs(metrics[0]["kl"]) < 1e-6 < metrics[-1]["kl"]
    if "train__minibatches_per_step" in changes:
        assert metrics[0]["ratio_max"] > 1
    elif "model__compute_dtype" not in changes:
        assert metrics[0]["ratio_max"] == 1
        assert metrics[-1]["mismatch_mean"] < 1e-5


def test_leaving_out_groups_without_signal_changes_no_number(tiny_config, make_groups) -> None:
    groups = make_groups([[2, 3], [4, 1], [2, 2]])

    def with_rewards(group: RolloutGroup, rewards: list[float]) -> RolloutGroup:
        rollouts = zip(group.rollouts, rewards, strict=True)
        return replace(group, rollouts=tuple(replace(rollout, reward=reward) for rollout, reward in rollouts))

    rewards = ([1.0, 0.0], [0.5, 0.5], [0.0, 1.0])
    groups = [with_rewards(group, each) for group, each in zip(groups, rewards, strict=True)]

    def packed(config):
        values = Coefficients(config.loss, num_steps=1, controllers={}).at(0)
        roles = SimpleNamespace(reference_logprobs=lambda batch: batch.sampler_logprobs_S)
        batch, *_ = scored(groups, roles, config, values, TrainState())
        return list(minibatches(batch, groups, config))

    (batch,) = packed(tiny_config())
    assert len(batch.segments) == 2
    assert (batch.counts.scored_tokens, batch.counts.sequences, batch.counts.groups) == (14, 6, 3)
    (with_kl,) = packed(tiny_config(loss__kl_coefficient=0.1))
    assert len(with_kl.segments) == 3
    assert torch.equal(with_kl.advantages_S[5:10], torch.zeros(5))
    groups = [groups[1]]
    assert packed(tiny_config()) == []


def test_a_run_folder_tells_the_whole_story(tiny_config, quiet) -> None:
    run = train(tiny_config(), quiet)
    record = run.record()
    assert record["status"] == "finished"
    assert record["tasks"]["train"]["count"] == 10 and record["tasks"]["held_out"]["count"] == 4
    assert any(name.endswith("model.safetensors") for name in record["model"]["sha256"])
    assert record["environment"]["packages"]["torch"] == torch.__version__
    assert run.steps("evaluations") == [0, 3, 6]
    assert run.steps("rollouts") == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000006"]
    group = run.read_step("rollouts", 6)[0]
    assert len(group["rollouts"]) == 4
    assert sum(rollout["advantage"] for rollout in group["rollouts"]) == pytest.approx(0, abs=1e-9)
    printed = quiet.file.getvalue()
    assert report(run) in printed
    assert printed.count("\nstep ") == 6
    assert "exact McNemar p" in printed.splitlines()[-1]
    with pytest.raises(UserError, match="is finished"):
        resume(run, tiny_config(), quiet)


def test_a_checkpoint_is_a_model(tiny_config, quiet) -> None:
    run = train(tiny_config(), quiet)
    checkpoint = run.checkpoints / "step-000006"
    again = train(tiny_config(model__path=str(checkpoint), name="again"), quiet)
    before = again.read_step("evaluations", 0)
    after = run.read_step("evaluations", 6)
    assert [item["token_ids"] for item in before] == [item["token_ids"] for item in after]


def test_an_adapter_checkpoint_is_a_model(tiny_config, quiet) -> None:
    lora = {"model__lora": {"rank": 2}, "optimizer__learning_rate": 0.02}
    run = train(tiny_config(**lora), quiet)
    checkpoint = run.checkpoints / "step-000006"
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 50_000
    again = train(tiny_config(model__path=str(checkpoint), optimizer__learning_rate=1e-3), quiet)
    before = again.read_step("evaluations", 0)
    after = run.read_step("evaluations", 6)
    assert [item["token_ids"] for item in before] == [item["token_ids"] for item in after]
    assert before != run.read_step("evaluations", 0)


def test_an_adapter_has_no_reference_to_hold_on_to(tiny_config, quiet) -> None:
    run = train(tiny_config(model__lora={"rank": 2}, train__num_steps=1), quiet)
    config = tiny_config(model__path=str(run.checkpoints / "step-000001"), loss__kl_coefficient=0.1)
    with pytest.raises(ConfigError, match=r"loss\.kl_coefficient cannot be used when model\.path is an adapter"):
        train(config, quiet)


def test_a_special_token_can_be_a_stop_string(tiny_config, quiet, tiny_policy) -> None:
    run = train(tiny_config(rollout__stop=["<|endoftext|>", "zzz"], rollout__max_tokens=200, train__num_steps=1), quiet)
    rollouts = [each for group in run.read_step("rollouts", 1) for each in group["rollouts"]]
    token = tiny_policy.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert any(each["token_ids"][-1] == token for each in rollouts)
    assert all(token not in each["token_ids"][:-1] for each in rollouts)


def test_the_first_step_is_not_charged_with_the_evaluation_before_it(tiny_config, quiet, monkeypatch) -> None:
    from burnish.algorithms import hooks
    from burnish.evaluation.held_out import HeldOut

    slow = 0.0
    original, clock = HeldOut.evaluate, hooks.time.monotonic

    def evaluate(self, sample):
        nonlocal slow
        slow += 10_000
        return original(self, sample)

    monkeypatch.setattr(HeldOut, "evaluate", evaluate)
    monkeypatch.setattr(hooks.time, "monotonic", lambda: clock() + slow)
    run = train(tiny_config(train__num_steps=2, evaluation__every_steps=1), quiet)
    assert all(line["seconds"] < 5_000 for line in run.metrics())
