from pathlib import Path

import pytest

from burnish.errors import ConfigError
from burnish.experiments.schema import load_experiment

FACTORS = {"rate": {"key": "optimizer.learning_rate", "levels": [1e-5, 1e-4]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"primry": "loss"}, "unknown key 'primry': did you mean 'primary'?"),
        ({"primary": {"name": "loss", "bettr": "lower"}}, "unknown key 'primary.bettr': did you mean 'better'?"),
        ({"budget": {"hour": 1}}, "unknown key 'budget.hour': did you mean 'hours'?"),
        ({"question": None}, "question: is not set"),
        ({"alpha": 0.0}, "alpha=0.0: input should be greater than 0"),
        ({"alpha": 1.2}, "alpha=1.2: input should be less than 0.5"),
        ({"baseline": "bas"}, "baseline='bas' must name an arm: did you mean 'base'?"),
        ({"baseline": None}, "baseline=None must name an arm: known are base, fast"),
        ({"arms": {"base": {}}}, "compares two or more"),
        ({"arms": {"a b": {}, "base": {}}}, "string should match pattern"),
        ({"arms": None}, "give one of arms, factors and sweep, got none"),
        ({"factors": FACTORS}, "give one of arms, factors and sweep, got arms and factors"),
        ({"arms": None, "factors": FACTORS}, "baseline='base' would be ignored"),
        ({"design": "ablation"}, "design and generators would be ignored"),
        ({"seeds": [1, 1]}, "needs one or more, all different"),
        ({"seeds": []}, "needs one or more"),
        ({"seeds": 0}, "needs one or more"),
        ({"seeds": True}, "valid integer"),
        ({"secondary": ["held_out"]}, "metric 'held_out' stands twice"),
        ({"margin": -0.1}, "margin=-0.1: input should be greater than 0"),
        ({"stopping": "sequential", "margin": 0.1}, "margin would be ignored"),
        ({"stopping": "sequential", "seeds": 1}, "seeds=1 leaves nothing to stop"),
        (
            {"arms": None, "baseline": None, "factors": {"rate": {"key": "r", "levels": [1]}}},
            "two or more different levels",
        ),
        ({"arms": None, "baseline": None, "factors": {"rate": {"levels": [1, 2]}}}, "give `key` and a list"),
        (
            {"arms": None, "baseline": None, "factors": {"rate": {"kye": "r", "levels": [1, 2]}}},
            "unknown key 'factors.rate.kye': did you mean 'key'?",
        ),
        (
            {"arms": None, "baseline": None, "factors": FACTORS, "stopping": "sequential"},
            "stopping=sequential compares arms with a baseline",
        ),
    ],
)
def test_a_mistake_is_one_line(load, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(ConfigError, match="'name' stands twice"):
        load_experiment(path)


def test_seeds_as_a_number_or_a_list(load) -> None:
    assert load(seeds=3).all_seeds == (0, 1, 2) and load(seeds=[7, 5]).all_seeds == (7, 5)


def test_a_metric_by_its_name_alone(load) -> None:
    file = load(primary="reward_mean", secondary=[{"name": "kl", "better": "lower"}])
    assert (file.primary.name, file.primary.better) == ("reward_mean", "higher")
    assert (file.secondary[0].name, file.secondary[0].better) == ("kl", "lower")


def test_a_file_of_another_kind() -> None:
    with pytest.raises(ConfigError, match=r"ends in .yaml"):
        load_experiment(Path("experiment.json"))
