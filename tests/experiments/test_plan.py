"""Plans: what is checked, the order of runs, freezing, amendments."""

import json

import pytest

from burnish.errors import ConfigError, UserError
from burnish.experiments.folder import ExperimentFolder
from burnish.experiments.plan import make_plan, ordered_runs, plan_sha256


def test_every_arm_has_its_whole_configuration(plan_of) -> None:
    plan = plan_of(settings={"train.num_steps": 7})
    rates = {arm.name: arm.config["optimizer"]["learning_rate"] for arm in plan.arms}
    assert rates == {"base": 3e-5, "fast": 1e-4}
    assert all(arm.config["train"]["num_steps"] == 7 for arm in plan.arms)
    assert not {"seed", "name", "runs_folder"} & set(plan.arms[0].config)


def test_the_environment_counts_when_it_is_planned(load) -> None:
    plan = make_plan(load(), environment={"BURNISH_TRAIN__NUM_STEPS": "3"}, check=lambda config: None)
    assert plan.arms[0].config["train"]["num_steps"] == 3


def test_an_arm_may_have_another_recipe(plan_of) -> None:
    plan = plan_of(arms={"base": {}, "other": {"recipe": "grpo", "task.source": "mine.jsonl"}})
    assert [arm.config["rollout"]["max_tokens"] for arm in plan.arms] == [24, 256]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arms": {"base": {}, "fast": {"optimizer.learning_rte": 1}}},
            "arm fast: unknown setting 'optimizer.learning_rte'",
        ),
        ({"arms": {"base": {}, "fast": {"optimizer.learning_rate": -1}}}, "arm fast: optimizer.learning_rate='-1'"),
        ({"arms": {"base": {}, "fast": {"seed": 3}}}, "arm fast: seed is given by the experiment"),
        ({"settings": {"runs_folder": "x"}}, "arm base: runs_folder is given by the experiment"),
        (
            {"arms": {"base": {}, "same": {"optimizer.learning_rate": 3e-5}}},
            "arms base and same have the same settings",
        ),
        ({"recipe": "quikstart"}, "arm base: recipe 'quikstart' is not known: did you mean 'quickstart'?"),
        ({"budget": {"runs": 5}}, "budget.runs=5, but the plan has 6 runs"),
    ],
)
def test_what_cannot_be_planned(plan_of, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_of(**changes)
    assert message in str(error.value)


def test_what_an_arm_reads_is_checked(load) -> None:
    def check(config) -> None:
        if config.optimizer.learning_rate == 1e-4:
            raise ConfigError("task.source: no such file")

    with pytest.raises(ConfigError, match=r"arm fast: task.source: no such file"):
        make_plan(load(), environment={}, check=check)


def test_the_order_is_drawn_in_each_block_and_repeats() -> None:
    arms = list("abcde")
    runs = list(ordered_runs("one", arms, range(40)))
    assert runs == list(ordered_runs("one", arms, range(40))) != list(ordered_runs("two", arms, range(40)))
    blocks = [runs[start : start + 5] for start in range(0, 200, 5)]
    assert all({run.seed for run in block} == {seed} for seed, block in enumerate(blocks))
    assert all(sorted(run.arm for run in block) == arms for block in blocks)
    assert {block[0].arm for block in blocks} == set(arms)  # each arm is sometimes the first


def test_more_seeds_leave_the_order_of_the_others(plan_of) -> None:
    assert plan_of(seeds=5).runs[:6] == plan_of(seeds=3).runs


def test_the_hash_is_of_the_content(plan_of) -> None:
    plan = plan_of().model_dump(mode="json")
    assert plan_sha256(plan) == plan_sha256(dict(reversed(plan.items())))
    assert plan_sha256(plan) != plan_sha256({**plan, "alpha": 0.01})


def test_a_plan_that_is_not_frozen_is_replaced(plan_of, folder: ExperimentFolder) -> None:
    folder.write_plan(plan_of())
    folder.write_plan(plan_of(alpha=0.01))
    (version,) = folder.versions()
    assert version.plan.alpha == 0.01 and version.reason is None and not folder.is_frozen
    with pytest.raises(UserError, match="not frozen yet"):
        folder.write_plan(plan_of(alpha=0.02), reason="why not")


def test_a_frozen_plan_is_kept(plan_of, folder: ExperimentFolder) -> None:
    folder.write_plan(plan_of())
    folder.freeze()
    folder.write_plan(plan_of())
    with pytest.raises(UserError, match=r'its plan would change: alpha: 0.05 -> 0.01; .*--amend "reason"'):
        folder.write_plan(plan_of(alpha=0.01))
    with pytest.raises(UserError, match="the plan is as it was"):
        folder.write_plan(plan_of(), reason="no change")
    assert folder.plan() == plan_of()


def test_an_amendment_stands_beside_what_was_frozen(plan_of, folder: ExperimentFolder) -> None:
    folder.write_plan(plan_of())
    folder.freeze()
    folder.write_plan(plan_of(seeds=5), reason="too much spread")
    first, second = folder.versions()
    assert (first.plan.seeds, second.plan.seeds, second.reason) == ((0, 1, 2), (0, 1, 2, 3, 4), "too much spread")
    assert folder.is_frozen


def test_an_arm_keeps_its_settings(plan_of, folder: ExperimentFolder) -> None:
    folder.write_plan(plan_of())
    folder.freeze()
    changed = plan_of(arms={"base": {}, "fast": {"optimizer.learning_rate": 2e-4}})
    with pytest.raises(UserError, match=r"arm fast would change \(optimizer.learning_rate: 0.0001 -> 0.0002\)"):
        folder.write_plan(changed, reason="faster still")
    folder.write_plan(plan_of(arms={"base": {}, "slow": {"optimizer.learning_rate": 1e-6}}), reason="drop it")
    with pytest.raises(UserError, match="arm fast would change"):  # nor may it come back as another
        folder.write_plan(changed, reason="take it back")


def test_a_plan_changed_by_hand_is_seen(plan_of, folder: ExperimentFolder) -> None:
    folder.write_plan(plan_of())
    path = folder.path / "plan.json"
    path.write_text(path.read_text().replace('"alpha": 0.05', '"alpha": 0.2'))
    with pytest.raises(UserError, match="its hash differs"):
        folder.versions()


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), ('{"format": 99, "versions": []}', "format 99 is not the 1")]
)
def test_a_plan_that_cannot_be_read(folder: ExperimentFolder, text: str, message: str) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=message):
        folder.versions()


def test_a_plan_of_other_fields(plan_of, folder: ExperimentFolder) -> None:
    folder.write_plan(plan_of())
    content = json.loads((folder.path / "plan.json").read_text())
    plan = content["versions"][0]["plan"]
    plan["later_field"] = 1
    content["versions"][0]["sha256"] = plan_sha256(plan)
    (folder.path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not a plan of this burnish"):
        folder.versions()


def test_an_experiment_is_found_by_file_folder_and_name(load, plan_of, folder: ExperimentFolder, tmp_path) -> None:
    folder.write_plan(plan_of())
    for what in (str(tmp_path / "experiment.yaml"), str(folder.path), "tried"):
        assert ExperimentFolder.find(what, folder.path.parent).path == folder.path
    with pytest.raises(UserError, match=r"no plan of an experiment 'other' .*; planned are tried"):
        ExperimentFolder.find("other", folder.path.parent)
