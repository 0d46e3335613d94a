import math

import pytest
from pydantic import ValidationError

from burnish.config.coefficients import Coefficient
from burnish.config.schema import Section
from burnish.errors import ConfigError, DataError
from burnish.training.coefficients import Coefficients


class Loss(Section):
    beta: Coefficient = 0.1
    other: float = 2.0


def coefficients(beta, num_steps: int = 10, controllers=None) -> Coefficients:
    section = Loss.model_validate({"beta": beta})
    return Coefficients(section, num_steps=num_steps, controllers={} if controllers is None else controllers)


def test_a_number_is_not_scheduled() -> None:
    assert coefficients(0.3).at(5) == {"beta": 0.3, "other": 2.0}


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        ({"kind": "linear", "start": 1.0, "end": 0.0}, [1.0, 0.9, 0.5, 0.1]),
        ({"kind": "linear", "start": 0.0, "end": 1.0, "steps": 5}, [0.0, 0.2, 1.0, 1.0]),
        ({"kind": "cosine", "start": 0.0, "end": 1.0}, [0.0, (1 - math.cos(math.pi / 10)) / 2, 0.5, 0.97552826]),
        ({"kind": "piecewise", "points": [[0, 0.1], [5, 0.2], [9, 0.3]]}, [0.1, 0.1, 0.2, 0.3]),
    ],
)
def test_schedules_by_hand(beta, expected) -> None:
    values = [coefficients(beta).at(step)["beta"] for step in (0, 1, 5, 9)]
    assert values == pytest.approx(expected)


def test_an_own_function(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_schedule.py").write_text(
        "def rising(step, num_steps):\n    return step / num_steps\n"
        "def broken(step, num_steps):\n    return float('nan')\n"
    )
    assert coefficients({"kind": "function", "path": "own_schedule:rising"}).at(5)["beta"] == 0.5
    with pytest.raises(DataError, match=r"loss\.beta: own_schedule:broken must return a finite number, got nan"):
        coefficients({"kind": "function", "path": "own_schedule:broken"}).at(5)
    with pytest.raises(ConfigError, match=r"loss\.beta\.path: cannot import"):
        coefficients({"kind": "function", "path": "own_schedule:absent"})


CONTROL = {"kind": "target", "metric": "kl", "target": 0.1, "start": 1.0, "rate": 0.5}


def test_a_controller_by_hand() -> None:
    """KL twice its target: the error 1 is clipped to 0.2, so the weight on the KL rises by a tenth."""
    state: dict[str, float] = {}
    loop = coefficients(CONTROL, controllers=state)
    assert loop.at(0)["beta"] == 1.0
    assert loop.after_step({"kl": 0.2}) == []
    assert state == {"coefficient.beta": pytest.approx(1.1), "coefficient.beta.steps_at_bound": 0}
    loop.after_step({"kl": 0.09})
    assert state["coefficient.beta"] == pytest.approx(1.1 * (1 - 0.5 * 0.1))
    opposite = coefficients({**CONTROL, "raises_metric": True}, controllers={})
    opposite.after_step({"kl": 0.2})
    assert opposite.at(1)["beta"] == pytest.approx(1 / 1.1)


def test_a_controller_reaches_its_target() -> None:
    """A metric that is one over the coefficient settles where it should."""
    state: dict[str, float] = {}
    loop = coefficients(CONTROL, controllers=state)
    for _ in range(200):
        loop.after_step({"kl": 1 / state["coefficient.beta"]})
    assert 1 / state["coefficient.beta"] == pytest.approx(0.1, rel=0.01)


def test_a_controller_goes_on_from_its_state() -> None:
    assert coefficients(CONTROL, controllers={"coefficient.beta": 0.7}).at(3)["beta"] == 0.7


def test_a_target_that_cannot_be_met_is_said_once() -> None:
    loop = coefficients({**CONTROL, "high": 1.5})
    said = [message for _ in range(60) for message in loop.after_step({"kl": 5.0})]
    assert len(said) == 1
    assert "loss.beta has been at its bound 1.5 for 20 steps: the target 0.1 of kl cannot be met" in said[0]


def test_a_metric_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"loss\.beta\.metric: there is no metric 'kl'; a step has loss"):
        coefficients(CONTROL).after_step({"loss": 1.0, "step": 3})


@pytest.mark.parametrize(
    "beta",
    [
        {"kind": "linear", "start": 1.0},
        {"kind": "staircase"},
        {**CONTROL, "target": 0},
        {"kind": "piecewise", "points": []},
    ],
)
def test_impossible_schedules(beta) -> None:
    with pytest.raises(ValidationError):
        Loss.model_validate({"beta": beta})


@pytest.mark.parametrize(
    ("beta", "message"),
    [
        ({**CONTROL, "start": 20.0}, "start=20.0 must lie between"),
        ({"kind": "piecewise", "points": [[1, 0.1]]}, "must begin with 0 and rise"),
        ({"kind": "piecewise", "points": [[0, 0.1], [0, 0.2]]}, "must begin with 0 and rise"),
    ],
)
def test_contradictions(beta, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Loss.model_validate({"beta": beta})
