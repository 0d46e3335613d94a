"""The experiments that are shipped as files can be planned as they stand."""

from pathlib import Path

import pytest

from burnish.experiments.plan import make_plan
from burnish.experiments.schema import load_experiment

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
