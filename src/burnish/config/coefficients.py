"""A coefficient of a loss: a number, or how it changes over the run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from burnish.config.schema import Strict
from burnish.errors import ConfigError


class Ramp(Strict):
    """From `start` to `end` over the first `steps` steps, then `end`."""

    kind: Literal["linear", "cosine"]
    """The curve between the two."""
    start: float
    """Value at step 0."""
    end: float
    """Value from step `steps` on."""
    steps: int | None = Field(None, ge=1)
    """Length of the ramp; null is the whole run."""


class Piecewise(Strict):
    """Constant between the given steps."""

    kind: Literal["piecewise"]
    """Steps of a staircase."""
    points: tuple[tuple[Annotated[int, Field(ge=0)], float], ...] = Field(min_length=1)
    """[[step, value], ...]: each value holds from its step on; the first step must be 0."""

    @model_validator(mode="after")
    def _in_order(self) -> "Piecewise":
        steps = [step for step, _ in self.points]
        if steps[0] != 0 or steps != sorted(set(steps)):
            raise ConfigError(f"points={list(self.points)}: the steps must begin with 0 and rise")
        return self


class OwnSchedule(Strict):
    """A function of the user's."""

    kind: Literal["function"]
    """Own function."""
    path: str
    """package.module:name of a function (step, num_steps) -> value."""


class Controller(Strict):
    """A closed loop that moves the coefficient until a metric meets its target (Ziegler et al. 2019, section 2.2).

    After each step the coefficient is multiplied by 1 + rate x clip(metric / target - 1, -0.2, 0.2), or divided by it
    where a larger coefficient makes the metric larger.
    """

    kind: Literal["target"]
    """Closed loop."""
    metric: str
    """Name of the metric."""
    target: float = Field(gt=0)
    """What it should be."""
    start: float = Field(gt=0)
    """Value at step 0."""
    rate: float = Field(0.5, gt=0, lt=5)
    """How fast it moves."""
    raises_metric: bool = False
    """Whether a larger coefficient makes the metric larger; a weight on the KL makes the KL smaller."""
    low: float = Field(1e-4, gt=0)
    """Smallest value."""
    high: float = Field(10.0, gt=0)
    """Largest value."""

    @model_validator(mode="after")
    def _in_bounds(self) -> "Controller":
        if not self.low <= self.start <= self.high:
            raise ConfigError(f"start={self.start} must lie between low={self.low} and high={self.high}")
        return self


def check_lowest(value: "Coefficient", key: str, lowest: float, *, may_equal: bool = True) -> None:
    """Refuse a coefficient that is, or becomes, lower than it may be; a user's own function is not looked at.

    Raises:
        ConfigError: it is.
    """
    values: list[float] = []
    if isinstance(value, int | float):
        values = [value]
    elif isinstance(value, Ramp):
        values = [value.start, value.end]
    elif isinstance(value, Piecewise):
        values = [each for _, each in value.points]
    if any(each < lowest or (each == lowest and not may_equal) for each in values):
        bound = "at least" if may_equal else "above"
        raise ConfigError(f"{key} must be {bound} {lowest:g}, got {min(values):g}")


Coefficient = float | Annotated[Ramp | Piecewise | OwnSchedule | Controller, Field(discriminator="kind")]
