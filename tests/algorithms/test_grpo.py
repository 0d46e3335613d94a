import importlib.metadata
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from burnish.algorithms.asking import with_signal
from burnish.algorithms.grpo import minibatches, scored
from burnish.algorithms.session import prepare, report, resume, train
from burnish.errors import ConfigError, DataError, UserError
from burnish.records import RolloutGroup
from burnish.rollout.collect import Collected
from burnish.training.checkpoint import TrainState
from burnish.training.coefficients import Coefficients

WITHOUT_SPREAD = {"loss__advantage": "dr_grpo", "optimizer__learning_rate": 1e-2}


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
    assert record["environment"]["packages"]["torch"] == importlib.metadata.version("torch")
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


def test_an_adapter_has_no_reference_to_hold_on_to(tiny_config, make_config, quiet) -> None:
    run = train(tiny_config(model__lora={"rank": 2}, train__num_steps=1), quiet)
    config = tiny_config(model__path=str(run.checkpoints / "step-000001"), loss__kl_coefficient=0.1)
    with pytest.raises(ConfigError, match=r"is an adapter, and this loss compares with the starting model"):
        train(config, quiet)
    with pytest.raises(ConfigError, match=r"is an adapter, and this loss compares with the starting model"):
        train(make_config("online_dpo", model__path=str(run.checkpoints / "step-000001")), quiet)


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


def test_weighted_parts_of_a_reward(tiny_config, quiet, tmp_path) -> None:
    (tmp_path / "own_parts.py").write_text("def short(completion, task):\n    return -len(completion.token_ids)\n")
    reward = {"low_tokens:share": 2.0, "own_parts:short": 0.1}
    run = train(tiny_config(train__num_steps=1, task__reward=reward), quiet)
    (line,) = run.metrics()
    assert line["reward_mean"] == pytest.approx(line["reward_mean.share"] + line["reward_mean.short"])
    assert line["reward_mean.short"] == pytest.approx(-0.1 * line["completion_tokens_mean"])
    assert set(run.record()["reward"]) == set(reward)
    with pytest.raises(ConfigError, match="two parts have the same name: share, share"):
        train(tiny_config(task__reward={"low_tokens:share": 1.0, "own_parts.x:share": 1.0}), quiet)


def test_refills_replace_prompts_without_signal(tiny_config, quiet, tmp_path) -> None:
    """Only odd questions can be told apart; even ones are replaced until three groups have a signal."""
    (tmp_path / "odd.py").write_text(
        "def only_odd(completion, task):\n    return float(completion.token_ids[0]) if int(task.answer) % 2 else 0.5\n"
    )
    config = tiny_config(task__reward="odd:only_odd", rollout__max_refills=6, train__num_steps=3)
    run = train(config, quiet)
    for step in (1, 2, 3):
        groups = run.read_step("rollouts", step)
        assert all(int(group["answer"]) % 2 for group in groups) and len(groups) == 3
    metrics = run.metrics()
    assert all(line["groups_without_signal"] == 0 for line in metrics)
    assert sum(line["prompts_asked"] for line in metrics) > 9
    plain = train(tiny_config(task__reward="odd:only_odd", train__num_steps=3), quiet)
    assert any(line["groups_without_signal"] > 0 for line in plain.metrics())


def test_overlong_completions_lose_reward(tiny_config, quiet) -> None:
    run = train(tiny_config(train__num_steps=1, rollout__overlong_buffer=4), quiet)
    for group in run.read_step("rollouts", 1):
        for rollout in group["rollouts"]:
            assert rollout["components"]["overlong"] == -max(0, len(rollout["token_ids"]) - 4) / 4
            assert rollout["reward"] == pytest.approx(sum(rollout["components"].values()))


def test_truncated_completions_can_be_silenced(tiny_config, quiet) -> None:
    """All are cut off at one token, so nothing moves."""
    config = tiny_config(train__num_steps=2, rollout__max_tokens=1, loss__mask_truncated=True)
    for line in train(config, quiet).metrics():
        assert line["truncated_share"] < 1 or line.get("grad_norm", 0.0) == 0.0


def test_a_multiplier_rises_until_the_bound_is_kept(tiny_config, quiet) -> None:
    constraint = {"on": "length", "below": 4.0, "rate": 0.5}
    config = tiny_config(train__num_steps=12, loss__constraints=[constraint], **WITHOUT_SPREAD)
    metrics = train(config, quiet).metrics()
    multipliers = [line["multiplier.length"] for line in metrics]
    assert multipliers[0] == 0.0
    for before, line, after in zip(multipliers, metrics, multipliers[1:], strict=False):
        assert after == pytest.approx(max(0.0, before + 0.5 * (line["cost.length"] / 4.0 - 1)))
    assert max(multipliers) > 0.3


def test_a_constraint_on_a_part_takes_it_out_of_the_reward(tiny_config, quiet, tmp_path) -> None:
    (tmp_path / "two_parts.py").write_text(
        "def score(completion, task):\n    return {'good': 1.0, 'bad': float(completion.token_ids[0] % 7)}\n"
    )
    constraint = {"on": "bad", "below": 0.0, "rate": 0.1}
    config = tiny_config(
        train__num_steps=2, task__reward="two_parts:score", loss__constraints=[constraint], **WITHOUT_SPREAD
    )
    run = train(config, quiet)
    first = run.read_step("rollouts", 1)
    assert all(rollout["advantage"] == 0.0 for group in first for rollout in group["rollouts"])
    second = run.read_step("rollouts", 2)
    pairs = [(rollout["components"]["bad"], rollout["advantage"]) for group in second for rollout in group["rollouts"]]
    assert any(advantage < 0 for _, advantage in pairs)
    unknown = tiny_config(loss__constraints=[{"on": "nothing", "below": 1.0}], **WITHOUT_SPREAD)
    with pytest.raises(DataError, match="the reward has no component 'nothing'; it has none"):
        train(unknown, quiet)


def test_a_baseline_of_a_family(tiny_config, quiet, tmp_path) -> None:
    rows = "".join(f'{{"prompt": "q{i}", "answer": "{i}", "family": "{"ab"[i % 2]}"}}\n' for i in range(14))
    config = tiny_config(loss__baseline_scope="family", loss__advantage="dr_grpo", train__num_steps=1)
    (tmp_path / "_tasks.jsonl").write_text(rows)
    run = train(config, quiet)
    by_family: dict[int, list[float]] = {0: [], 1: []}
    for group in run.read_step("rollouts", 1):
        by_family[int(group["answer"]) % 2] += [rollout["advantage"] for rollout in group["rollouts"]]
    for advantages in by_family.values():
        assert sum(advantages) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match=r"loss\.baseline_scope: a task has no field 'colour'; it has family"):
        train(tiny_config(loss__baseline_scope="colour"), quiet)


def test_kl_in_the_reward(tiny_config, quiet) -> None:
    run = train(
        tiny_config(train__num_steps=3, loss__kl_coefficient=0.5, loss__kl_in="reward", **WITHOUT_SPREAD), quiet
    )
    first, *_, last = run.metrics()
    assert abs(first["kl_per_completion"]) < 1e-4 < abs(last["kl_per_completion"])
    assert "kl" not in first


@pytest.mark.parametrize(
    "loss",
    [
        {"surrogate": "cispo"},
        {"surrogate": "sapo"},
        {"surrogate": "gmpo", "aggregation": "sequence"},
        {"surrogate": {"kind": "dppo", "trust_region": 0.1}},
        {"surrogate": {"kind": "clip", "dual": 3.0}, "entropy_coefficient": 0.01},
        {"ratio": "sequence", "advantage": "rloo"},
        {"ratio": "sequence_token", "advantage": "maxrl"},
        {"ratio": "none", "advantage": "reinforce_pp"},
        {"importance": {"mode": "mask", "level": "geometric"}, "advantage": "reinforce_pp_baseline"},
    ],
    ids=str,
)
def test_every_relative_learns(tiny_config, quiet, loss) -> None:
    run = train(tiny_config(train={"num_steps": 14, "minibatches_per_step": 3}, loss=loss), quiet)
    rewards = [line["reward_mean"] for line in run.metrics()]
    assert sum(rewards[-4:]) > sum(rewards[:4])


@pytest.mark.parametrize("critic", [{"kind": "own"}, {"kind": "shared"}], ids=str)
def test_ppo_learns_values_and_resumes_its_critic(make_config, quiet, critic) -> None:
    config = make_config("ppo", train={"num_steps": 14, "minibatches_per_step": 2}, critic=critic)
    run = train(config, quiet)
    metrics = run.metrics()
    first, last = (sum(line["value_error"] for line in part) / 4 for part in (metrics[:4], metrics[-4:]))
    assert last < first
    checkpoint = run.checkpoints / "step-000014"
    where = "critic/model.safetensors" if critic["kind"] == "own" else "value_head.safetensors"
    assert (checkpoint / where).is_file()


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        (
            "grpo",
            {"loss__advantage": "reinforce_pp", "loss__baseline_scope": "family"},
            r"baseline_scope would be ignored",
        ),
        ("grpo", {"loss__constraints": [{"on": "length", "below": 4.0}]}, r"constraints cannot be used with .*=grpo"),
        ("grpo", {"loss__kl_coefficient": 0.1, "loss__kl_in": "reward"}, r"loss.kl_in cannot be used with .*=grpo"),
        (
            "grpo",
            {"loss__advantage": "maxrl", "rollout__overlong_buffer": 4},
            r"overlong_buffer makes rewards negative",
        ),
        ("grpo", {"loss__kl_coefficient": -1.0}, r"loss.kl_coefficient must be at least 0, got -1"),
        ("dpo", {"loss__beta": 0.0}, r"loss.beta must be above 0, got 0"),
        ("kto", {"loss__beta": {"kind": "linear", "start": 0.1, "end": -0.1}}, r"loss.beta must be above 0, got -0.1"),
        ("ppo", {"loss__surrogate": "gmpo"}, r"loss.surrogate=gmpo has one ratio a sequence"),
        ("ppo", {"critic__path": "no/such/folder"}, r"no/such/folder"),
        ("reward_model", {"loss__own": "x:y", "loss__centering": 0.1}, r"leave margin_scale and centering out"),
        ("distillation", {"loss__kind": "jsd", "loss__top_k": 10_000}, r"loss.top_k=10000 is no less than the"),
        ("sft", {"loss__own": "no_such_module:loss"}, r"cannot import 'no_such_module:loss'"),
        ("dpo", {"loss__beta": {"kind": "function", "path": "no_such:f"}}, r"cannot import 'no_such:f'"),
    ],
    ids=str,
)
def test_refused_before_weights_are_loaded(make_config, algorithm: str, changes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(make_config(algorithm, **changes))


def test_teachers_that_teach_nothing_are_refused(make_config, tiny_teacher_folder) -> None:
    teachers = [{"path": str(tiny_teacher_folder), "where": {"answer": "nobody"}}]
    with pytest.raises(ConfigError, match=r"teaches no task: none has {'answer': 'nobody'}"):
        prepare(make_config("distillation", teachers=teachers))
    with pytest.raises(ConfigError, match=r"teachers\.where would be ignored"):
        prepare(make_config("off_policy_distillation", teachers=teachers))


def test_ppo_goes_on_when_groups_are_lost(make_config, quiet, tmp_path) -> None:
    """A share of a step that no group is left for is no optimizer step."""
    (tmp_path / "lost.py").write_text(
        "def score(completion, task):\n    return completion.token_ids[0] % 3 / (int(task.answer) % 5 and 1)\n"
    )
    config = make_config("ppo", task__reward="lost:score", train__num_steps=4, train__minibatches_per_step=3)
    run = train(config, quiet)
    groups = [len(run.read_step("rollouts", step)) for step in range(1, 5)]
    assert min(groups) < 3  # some step lost one
    versions = [run.read_step("rollouts", step)[0]["weight_version"] for step in range(1, 5)]
    assert versions == [0, groups[0], sum(groups[:2]), sum(groups[:3])]


def test_the_length_of_an_answer_is_no_signal(make_groups) -> None:
    """Two wrong answers, one of them penalised for its length: dynamic sampling replaces them."""
    (group,) = make_groups([[2, 3]])
    rollouts = [
        replace(each, reward=reward, components=parts)
        for each, reward, parts in zip(
            group.rollouts,
            (0.0, -0.5),
            ({"reward": 0.0, "overlong": 0.0}, {"reward": 0.0, "overlong": -0.5}),
            strict=True,
        )
    ]
    unlike = replace(group, rollouts=(rollouts[0], replace(rollouts[1], reward=0.5, components={})))
    found = Collected(groups=(replace(group, rollouts=tuple(rollouts)), unlike), failures=())
    assert with_signal(found) == [unlike]
