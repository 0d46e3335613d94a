"""The values of a loss's coefficients at a step, and the closed loops that move them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from burnish.config.coefficients import Controller, OwnSchedule, Piecewise, Ramp
from burnish.config.imports import import_by_path
from burnish.errors import DataError

_AT_BOUND_STEPS = 20


class Coefficients:
    """The fields of a section that are numbers or schedules, by name.

    `controllers` is the part of a run's state that closed loops need: a value for each, as `coefficient.<name>`.
    """

    def __init__(self, section: BaseModel, *, num_steps: int, controllers: dict[str, float]) -> None:
        self.num_steps = num_steps
        self.controllers = controllers
        self._numbers: dict[str, float] = {}
        self._fields: dict[str, Any] = {}
        self._own: dict[str, Any] = {}
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._numbers[name] = value
            if isinstance(value, Ramp | Piecewise | OwnSchedule | Controller):
                self._fields[name] = value
            if isinstance(value, OwnSchedule):
                self._own[name] = import_by_path(value.path, f"loss.{name}.path", arguments=("step", "num_steps"))
            if isinstance(value, Controller):
                controllers.setdefault(f"coefficient.{name}", value.start)

    def at(self, step: int) -> dict[str, float]:
        """The section's numbers at a step, counted from 0: those that are fixed, and those that are scheduled.

        Raises:
            DataError: a user's function returned no finite number.
        """
        return self._numbers | {name: self._value(name, schedule, step) for name, schedule in self._fields.items()}

    def logged(self, step: int) -> dict[str, float]:
        """The scheduled ones as metrics."""
        return {f"coefficient.{name}": self._value(name, each, step) for name, each in self._fields.items()}

    def after_step(self, metrics: Mapping[str, Any]) -> list[str]:
        """Move the closed loops. Returns what a person should know: a loop that sits at its bound.

        Raises:
            DataError: the step has no such metric.
        """
        messages = []
        for name, schedule in self._fields.items():
            if not isinstance(schedule, Controller):
                continue
            if schedule.metric not in metrics:
                known = ", ".join(sorted(key for key, value in metrics.items() if isinstance(value, float)))
                raise DataError(f"loss.{name}.metric: there is no metric {schedule.metric!r}; a step has {known}")
            error = min(max(float(metrics[schedule.metric]) / schedule.target - 1, -0.2), 0.2)
            factor = 1 + schedule.rate * error
            key = f"coefficient.{name}"
            moved = self.controllers[key] * (1 / factor if schedule.raises_metric else factor)
            self.controllers[key] = min(max(moved, schedule.low), schedule.high)
            steps_at_bound = f"{key}.steps_at_bound"
            self.controllers[steps_at_bound] = (
                self.controllers.get(steps_at_bound, 0) + 1 if self.controllers[key] != moved else 0
            )
            if self.controllers[steps_at_bound] == _AT_BOUND_STEPS:
                messages.append(
                    f"loss.{name} has been at its bound {self.controllers[key]:g} for {_AT_BOUND_STEPS} steps: the "
                    f"target {schedule.target:g} of {schedule.metric} cannot be met"
                )
        return messages

    def _value(self, name: str, schedule: Any, step: int) -> float:
        if isinstance(schedule, Controller):
            return self.controllers[f"coefficient.{name}"]
        if isinstance(schedule, Piecewise):
            return [value for begin, value in schedule.points if begin <= step][-1]
        if isinstance(schedule, OwnSchedule):
            value = self._own[name](step, self.num_steps)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise DataError(f"loss.{name}: {schedule.path} must return a finite number, got {value!r}")
            return float(value)
        done = min(1.0, step / (schedule.steps or self.num_steps))
        if schedule.kind == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return float(schedule.start + (schedule.end - schedule.start) * done)
