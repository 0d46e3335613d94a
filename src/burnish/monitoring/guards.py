"""Guards: the conditions of a training run, looked at after each step, and what is done when one begins to hold."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from burnish.config.schema import Action, GuardsConfig
from burnish.errors import ConfigError
from burnish.monitoring.conditions import CONDITIONS, SILENT, Condition, History, Limits

_LOOK_SECONDS = 1.0
_SILENT_TIMES = 5.0
_SHORTEST_SILENCE_SECONDS = 60.0
_STEPS_TIMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A condition begins to hold, or is over. `first_step` is the first of the steps in a row at which it held."""

    condition: Condition
    action: Action
    state: Literal["firing", "resolved"]
    step: int
    first_step: int

    @property
    def text(self) -> str:
        """A line for people."""
        if self.state == "resolved":
            return f"over: {self.condition.name}"
        since = "" if self.first_step == self.step else f" since step {self.first_step}"
        return f"{self.condition.severity}: {self.condition.name}{since}: {self.condition.summary}"

    def line(self) -> dict[str, Any]:
        """The alert as an event of the run."""
        return {
            "name": self.condition.name,
            "severity": self.condition.severity,
            "state": self.state,
            "step": self.step,
            "first_step": self.first_step,
            "action": self.action,
            "message": self.text,
        }


@dataclass(slots=True)
class _Episode:
    """For how many steps in a row the test held or failed, and whether that was told."""

    held: int = 0
    failed: int = 0
    first_step: int = 0
    is_firing: bool = False


class Guards:
    """Takes the metrics of each step and says what begins to hold and what is over, each once."""

    def __init__(self, config: GuardsConfig, *, staleness: float, mismatch: float) -> None:
        """Raises a ConfigError where a setting names no condition. `staleness` and `mismatch` are the most that is
        well.
        """
        self._config = config
        known = condition_names()
        for name in (*config.off, *config.actions):
            if name not in known:
                raise ConfigError(f"guards: there is no condition {name!r}; there is {', '.join(known)}")
        limits = Limits(warmup_steps=config.warmup_steps, staleness=staleness, mismatch=mismatch)
        self._history = History(limits)
        self._episodes = {each.name: _Episode() for each in CONDITIONS if each.name not in config.off}

    @property
    def firing(self) -> dict[str, bool]:
        """Every condition that is looked at, and whether it holds."""
        return {name: episode.is_firing for name, episode in self._episodes.items()}

    def look(self, metrics: Mapping[str, Any]) -> list[Alert]:
        """What a step changes."""
        self._history.add(metrics)
        return [alert for each in CONDITIONS if (alert := self._judge(each, int(metrics["step"]))) is not None]

    def doubtful_from(self) -> int | None:
        """The first step of what holds, told or not yet, and is more than to be told."""
        firsts = []
        for condition in CONDITIONS:
            episode = self._episodes.get(condition.name)
            action = self._config.action_for(condition.name, condition.severity)
            if episode is not None and (episode.held or episode.is_firing) and action not in ("note", "notify"):
                firsts.append(episode.first_step)
        return min(firsts, default=None)

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> list[Alert]:
        """Take steps that were looked at before, as those of a run that is resumed."""
        return [alert for line in lines for alert in self.look(line)]

    def _judge(self, condition: Condition, step: int) -> Alert | None:
        episode = self._episodes.get(condition.name)
        if episode is None:
            return None
        if condition.test(self._history):
            episode.first_step = episode.first_step if episode.held else step
            episode.held, episode.failed = episode.held + 1, 0
        else:
            episode.held, episode.failed = 0, episode.failed + 1
        begins = not episode.is_firing and episode.held >= condition.steps
        ends = episode.is_firing and episode.failed >= condition.steps
        if not (begins or ends):
            return None
        episode.is_firing = begins
        return Alert(
            condition=condition,
            action=self._config.action_for(condition.name, condition.severity),
            state="firing" if begins else "resolved",
            step=step,
            first_step=episode.first_step,
        )


class Watchdog:
    """Notices, by the clock, that no step ends any more: it calls `on_silent` with the seconds, once until the next one
    does.
    """

    def __init__(
        self,
        on_silent: Callable[[float], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        shortest_seconds: float = _SHORTEST_SILENCE_SECONDS,
    ) -> None:
        self._on_silent, self._clock, self._shortest = on_silent, clock, shortest_seconds
        self._seconds: list[float] = []
        self._last = clock()
        self._around = 0.0
        self._was_told = self._rests = False
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="burnish-watchdog", daemon=True)

    @property
    def median_seconds(self) -> float:
        """Of the newest steps; 0 before the first."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    def start(self) -> None:
        """Begin to watch."""
        self._last = self._clock()
        self._thread.start()

    def begin_anew(self) -> None:
        """What comes next takes its time, as after a start."""
        self._last, self._was_told = self._clock(), False

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Do not watch while the context lasts."""
        self._rests = True
        try:
            yield
        finally:
            self.begin_anew()
            self._rests = False

    def step_ended(self, seconds: float, *, around_seconds: float) -> bool:
        """A step of so many seconds is over; an evaluation or a save may take `around_seconds` on top. Whether it had
        been missed.
        """
        was_told = self._was_told
        self._around = around_seconds
        self._seconds = [*self._seconds[1 - _STEPS_TIMED :], seconds]
        self.begin_anew()
        return was_told

    def stop(self) -> None:
        """End the thread."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def look(self) -> None:
        """Tell if it has been too long; there must have been a step to compare with."""
        silence = self._clock() - self._last
        if self._seconds and not self._rests and not self._was_told and silence > self.allowed_seconds:
            self._was_told = True
            self._on_silent(silence)

    @property
    def allowed_seconds(self) -> float:
        """How long a step may take."""
        return max(_SILENT_TIMES * self.median_seconds, self._shortest) + 2 * self._around

    def _run(self) -> None:
        while not self._ends.wait(_LOOK_SECONDS):
            self.look()


def condition_names() -> Sequence[str]:
    """Every condition's name, for settings and pages."""
    return [each.name for each in (*CONDITIONS, SILENT)]
