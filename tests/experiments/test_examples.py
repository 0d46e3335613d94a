"""The experiment that is shipped as a file can be planned as it stands."""

from pathlib import Path

from burnish.experiments.plan import make_plan
from burnish.experiments.schema import load_experiment

THREE_ARMS = Path(__file__).parents[2] / "examples" / "three_arms.yaml"


def test_the_three_arms_differ_in_one_setting_each() -> None:
    plan = make_plan(load_experiment(THREE_ARMS), environment={}, check=lambda config: None)
    assert plan.budget.runs == len(plan.runs) == 15 and plan.others == ("low-rate", "leave-one-out")
    base = plan.arm("base").config
    for name in plan.others:
        config = plan.arm(name).config
        assert [key for key in base if config[key] != base[key]] in (["optimizer"], ["loss"])
