"""What happens around the steps of every algorithm: log, evaluate, save, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.algorithms.guarding import Guarding
from burnish.algorithms.profile import Profile
from burnish.config.schema import CheckpointConfig
from burnish.memory.measure import peak_memory_bytes
from burnish.monitoring.console import Progress
from burnish.monitoring.metrics import reduce_metrics
from burnish.records import Metric
from burnish.reproducibility.run_folder import RunFolder
from burnish.training.checkpoint import TrainState

_ENDING_SECONDS = 10.0  # what comes after the last save


@dataclass(kw_only=True)
class Hooks:
    """`evaluate(step)` returns the held-out figure; `save(state)` writes a checkpoint. Before either, `settle` waits
    for what is sampled beside the loop, and notes it in the state.
    """

    run: RunFolder
    progress: Progress
    num_steps: int
    checkpoint: CheckpointConfig
    evaluate_every: int
    evaluate: Callable[[int], float]
    save: Callable[[TrainState], None]
    should_stop: bool = False
    profile: Profile | None = None
    observe_roles: Callable[[], Mapping[str, float]] = dict
    settle: Callable[[], None] = lambda: None
    deadline: float | None = None
    """By time.monotonic(): when the run must have stopped."""
    stop_after: int | None = None
    """The step to stop after, as a signal would."""
    first_save_seconds: float = 0.0
    """What a save may take while none was timed."""
    lag: int = 0
    """How many steps' samples `settle` may have to wait for."""
    guarding: Guarding | None = None
    """Looks at each step, where somebody is to."""
    around: float = 0.0
    """The longest that was needed after a step so far, to settle, evaluate and save, in seconds."""
    _out_of_memory: float = 0.0
    _longest: float = 0.0

    def before_steps(self) -> None:
        """Start the clock of the first step."""
        if self.profile is not None:
            self.profile.begin(1)
        self._step_began = self._sampled = time.monotonic()

    def after_sampling(self) -> None:
        """Note the time at which a step begins to learn."""
        self._sampled = time.monotonic()

    def after_step(
        self,
        state: TrainState,
        parts: Iterable[Mapping[str, Metric]],
        *,
        observed: Mapping[str, Any],
        rollouts: Sequence[Mapping[str, Any]] = (),
        adjust: Callable[[Mapping[str, Any]], Sequence[str]] | None = None,
    ) -> None:
        """Log step `state.step` (counted from 1), then evaluate and save where it is time, or where the run ends.

        `parts` are the metrics of micro-batches and optimizer steps, `observed` what the algorithm saw itself (with
        `tokens`, the number it learnt from or sampled), `rollouts` what is stored. `adjust` sees the metrics before
        anything is saved, moves what depends on them, and returns what a person should know.
        """
        learned = time.monotonic()
        if self.profile is not None and (table := self.profile.end(self.run.path / "profile")):
            self.progress.say(table)
        seen = {**observed, "peak_memory_bytes": peak_memory_bytes(), **self.observe_roles()}
        metrics: dict[str, Any] = {"step": state.step, **state.controllers, **seen, **reduce_metrics(parts)}
        for message in adjust(metrics) if adjust is not None else ():
            self.progress.say(f"step {state.step}: {message}")
            self.run.add_event("noticed", step=state.step, message=message)
        if metrics.get("out_of_memory", 0) > self._out_of_memory:
            self._out_of_memory = metrics["out_of_memory"]
            message = "out of memory: smaller micro-batches from now on; the numbers are the same"
            self.progress.say(f"step {state.step}: {message}")
            self.run.add_event("noticed", step=state.step, message=message)
        metrics["seconds_sample"] = self._sampled - self._step_began
        metrics["seconds_learn"] = learned - self._sampled
        metrics["seconds"] = learned - self._step_began
        metrics["tokens_per_second"] = metrics["tokens"] / metrics["seconds"]
        if rollouts:
            self.run.write_step("rollouts", state.step, rollouts)
            self.run.trim_rollouts(self.checkpoint.max_rollout_megabytes * 1e6)
        self._stop_in_time(metrics["seconds"])
        self._finish_step(state, metrics)
        if self.profile is not None:
            self.profile.begin(state.step + 1)
        self._step_began = self._sampled = time.monotonic()

    def _finish_step(self, state: TrainState, metrics: dict[str, Any]) -> None:
        """Evaluate where it is time, log, let the guards look, and save."""
        self.should_stop = self.should_stop or state.step == self.stop_after
        is_last = state.step == self.num_steps
        evaluates = is_last or state.step % self.evaluate_every == 0
        saves = is_last or self.should_stop or state.step % self.checkpoint.every_steps == 0
        began = time.monotonic()
        if evaluates or saves:
            self.settle()
        if evaluates:
            asked = time.monotonic()
            metrics["held_out"] = self.evaluate(state.step)
            metrics["seconds_evaluate"] = time.monotonic() - asked
        self.run.add_metrics(metrics)
        self.progress.update(state.step, metrics)
        action = None if self.guarding is None else self.guarding.after_step(metrics, around_seconds=self.around)
        if action in ("checkpoint", "pause", "stop") and not saves:
            self.settle()
            saves = True
        if saves:
            self.save(state)
            self.first_save_seconds = 0.0
        self.around = max(self.around, time.monotonic() - began)
        if action == "pause" and self.guarding is not None:
            went_on = self.guarding.pause(lambda: self.should_stop)
            self.should_stop = self.should_stop or not went_on
        self.should_stop = self.should_stop or action == "stop"

    def _stop_in_time(self, seconds: float) -> None:
        """Stop if a step like the longest so far, the samples ahead, its evaluation and its save might not end before
        the deadline.
        """
        self._longest = max(self._longest, seconds)
        if self.deadline is None or self.should_stop:
            return
        left = self.deadline - time.monotonic()
        longest = (1 + self.lag) * self._longest + self.around
        if left < 1.5 * longest + self.first_save_seconds + _ENDING_SECONDS:
            self.should_stop = True
            self.progress.say(f"{left:.0f} s are left until train.save_before_deadline: saving, and stopping here")
