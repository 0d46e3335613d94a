"""The experiments that are shipped as files can be planned as they stand."""

from pathlib import Path

import pytest

from burnish.algorithms.session import schema_for
from burnish.config.loading import resolve, to_yaml
from burnish.experiments.folder import ExperimentFolder
from burnish.experiments.plan import make_plan
from burnish.experiments.schema import load_experiment
from burnish.reproducibility.differences import changed_from
from burnish.reproducibility.run_folder import RunFolder

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_can_be_planned(path: Path) -> None:
    plan = make_plan(load_experiment(path), environment={}, check=lambda config: None)
    assert plan.runs and plan.budget.runs is not None


def test_the_three_arms_differ_in_one_setting_each() -> None:
    (path,) = [path for path in EXAMPLES if path.stem == "three_arms"]
    plan = make_plan(load_experiment(path), environment={}, check=lambda config: None)
    assert len(plan.runs) == 15 and plan.others == ("low-rate", "leave-one-out")
    base = plan.arm("base").config
    for name in plan.others:
        config = plan.arm(name).config
        assert [key for key in base if config[key] != base[key]] in (["optimizer"], ["loss"])


def test_an_arm_is_trained_with_the_settings_that_are_planned(tmp_path: Path) -> None:
    """What stands in a run's config.yaml is compared with the plan."""
    (path,) = [path for path in EXAMPLES if path.stem == "three_arms"]
    folder = ExperimentFolder(tmp_path)
    for arm in make_plan(load_experiment(path), environment={}, check=lambda config: None).arms:
        recipe = str(folder.write_arm(arm.name, arm.config))
        flags = [f"--name={arm.name}-seed3", "--seed=3", f"--runs_folder={tmp_path}"]
        run = RunFolder(tmp_path)
        (tmp_path / "config.yaml").write_text(to_yaml(resolve(schema_for(recipe), recipe, flags=flags).config))
        assert changed_from(arm.config | {"seed": 3}, run) == {}
