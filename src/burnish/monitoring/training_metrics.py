"""What a run tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from burnish.monitoring.catalogue import STEP_METRICS, TRAINING
from burnish.monitoring.exporter import Exporter


class TrainingMetrics:
    """The training part of the catalogue for one run."""

    def __init__(self, run: str, *, algorithm: str, model: str, num_steps: int) -> None:
        self._run = run
        self.exporter = Exporter(TRAINING)
        self.exporter.set("burnish_train_info", 1, run, algorithm, model)
        self.exporter.set("burnish_train_steps_planned", num_steps, run)

    def allow(self, seconds: float) -> None:
        """Say how long the next step may take."""
        self.exporter.set("burnish_train_step_allowed_seconds", seconds, self._run)

    def step(self, metrics: Mapping[str, Any], conditions: Mapping[str, bool], allowed_seconds: float) -> None:
        """Show a step's line, what holds after it, and how long the next may take."""
        put, run = self.exporter.set, self._run
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if name in STEP_METRICS:
                put(f"burnish_train_{name}", value, run)
            else:
                put("burnish_train_own", value, run, name)
        put("burnish_train_step_timestamp_seconds", time.time(), run)
        self.allow(allowed_seconds)
        for name, holds in conditions.items():
            self.show_condition(name, holds=holds)

    def show_condition(self, name: str, *, holds: bool) -> None:
        """Show whether a condition holds."""
        self.exporter.set("burnish_train_condition", float(holds), self._run, name)
