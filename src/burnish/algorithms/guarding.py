"""The guards of a run in action: after each step what began to be wrong is told, and what the settings say is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from burnish.config.extras import requires_extra
from burnish.config.schema import Action, RunConfig
from burnish.errors import BurnishError, NotFiniteError
from burnish.models.load import find_dtype
from burnish.monitoring.conditions import CONDITIONS, SILENT
from burnish.monitoring.guards import Alert, Guards, Watchdog
from burnish.monitoring.webhook import WEBHOOK_SECONDS, post, read_webhook
from burnish.reproducibility.files import remove_folder
from burnish.reproducibility.run_folder import RunFolder
from burnish.training.checkpoint import checkpoints, step_of

ConfigT = TypeVar("ConfigT", bound=RunConfig)

_GO_ON = "go-on"
_LOOK_SECONDS = 0.5
_STRENGTH: tuple[Action, ...] = ("note", "notify", "checkpoint", "pause", "stop", "roll_back")
# Mean mismatch, in nats a token, that rounding explains: measured 0.02 to 0.04 in bfloat16 on SmolLM2-135M.
_MISMATCH = {"float32": 0.01, "bfloat16": 0.15}


class RollBackError(BurnishError):
    """The run must go back to before an alert began."""

    def __init__(self, alert: Alert) -> None:
        super().__init__(alert.text)
        self.alert = alert


class Guarding:
    """Looks at a run and acts. `metrics` of a run that is resumed are looked at again, silently, so that what is known
    of its beginning does not depend on where it stopped.
    """

    def __init__(self, config: RunConfig, run: RunFolder, say: Callable[[str], None], *, lag: int) -> None:
        """`lag` is the largest staleness that the run asked for. Raises a ConfigError for what cannot be used."""
        self._config, self._run, self._say, self._lag = config, run, say, lag
        self._url = check_guards(config)
        self._posting: list[threading.Thread] = []
        self._step = 0
        self.watchdog = Watchdog(self._on_silent)
        self._metrics = _exporter(config, run)
        self.forget()

    def forget(self) -> None:
        """Know of the run what its folder says, and nothing else."""
        self._guards = guards_of(self._config, self._lag)
        lines = self._run.metrics()
        self._guards.replay(lines)
        self._step = int(lines[-1]["step"]) if lines else 0
        self.watchdog.begin_anew()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the clock and answer Prometheus while the context lasts."""
        metrics = self._config.metrics
        stop = None
        if self._metrics is not None and metrics.port is not None:
            stop = self._metrics.exporter.serve(metrics.port, metrics.host)
            self._say(f"metrics on http://{metrics.host}:{metrics.port}/metrics")
        if SILENT.name not in self._config.guards.off:
            self.watchdog.start()
        try:
            yield
        finally:
            self.watchdog.stop()
            for thread in self._posting:
                thread.join(WEBHOOK_SECONDS)
            if stop is not None:
                stop()

    def linger(self, should_stop: Callable[[], bool]) -> None:
        """Let Prometheus read the last numbers of a run that is over: else its last step would not be known there, and
        a run that ended well would look like one that is gone. One that was told to stop waits for nobody.
        """
        self.watchdog.stop()
        seconds = self._config.metrics.linger_seconds
        if self._metrics is None or not seconds or should_stop():
            return
        self._say(f"waiting up to {seconds:g} s until the last numbers have been read; Ctrl-C ends it")
        self._metrics.exporter.wait_for_scrape(seconds, should_stop)

    def after_step(self, metrics: Mapping[str, Any], *, around_seconds: float) -> Action | None:
        """Look at a step's line; what is to be done, of several things the strongest. `around_seconds` is the longest
        that something else than a step took.

        Raises:
            RollBackError: the run must go back.
        """
        alerts = self._guards.look(metrics)
        self._step = int(metrics["step"])
        if self.watchdog.step_ended(metrics["seconds"], around_seconds=around_seconds):
            self._tell(self._silence("resolved", self._step))
        if self._metrics is not None:
            self._metrics.step(metrics, self._guards.firing, self.watchdog.allowed_seconds)
        return self._act(alerts)

    def not_finite(self, error: NotFiniteError, step: int, should_stop: Callable[[], bool]) -> RollBackError:
        """Tell of a gradient that is no number, in the step after `step`; why the run must go back. One that must not
        ends once Prometheus knows, or is stopped.

        Raises:
            NotFiniteError: it must not, so it ends.
        """
        condition = next(each for each in CONDITIONS if each.name == "not_finite")
        action = self._config.guards.action_for(condition.name, condition.severity)
        alert = Alert(condition=condition, action=action, state="firing", step=step + 1, first_step=step + 1)
        self._tell(alert)
        if self._metrics is not None:
            self._metrics.show_condition(condition.name, holds=True)
        if action != "roll_back":
            self.linger(should_stop)
            raise error
        return RollBackError(alert)

    def pause(self, should_stop: Callable[[], bool]) -> bool:
        """Wait until somebody says that the run goes on; whether somebody did in time."""
        file, seconds = self._run.path / _GO_ON, self._config.guards.pause_seconds
        file.unlink(missing_ok=True)
        self._say(f"paused: `touch {file}` lets it go on; it stops after {seconds:.0f} s")
        until = time.monotonic() + seconds
        with self.watchdog.resting(), self._allowing(seconds):
            while time.monotonic() < until and not should_stop():
                if file.exists():
                    file.unlink()
                    self._run.add_event("went_on")
                    return True
                time.sleep(_LOOK_SECONDS)
        return False

    def keep_last(self) -> int:
        """How many checkpoints a save must leave: besides those that were asked for, one from before what is in doubt,
        to go back to.
        """
        asked, doubtful = self._config.checkpoint.keep_last, self._guards.doubtful_from()
        if doubtful is None:
            return asked
        in_doubt = sum(step_of(path) >= doubtful for path in checkpoints(self._run.checkpoints))
        return max(asked, in_doubt + 2)  # with the one that is being saved

    @contextmanager
    def _allowing(self, seconds: float) -> Iterator[None]:
        """Let Prometheus wait so much longer for a step."""
        if self._metrics is not None:
            self._metrics.allow(self.watchdog.allowed_seconds + seconds)
        try:
            yield
        finally:
            if self._metrics is not None:
                self._metrics.allow(self.watchdog.allowed_seconds)

    def roll_back(self, alert: Alert) -> None:
        """Remove the checkpoints that an alert puts in doubt, and note that the learning rate is lower from here on.

        Raises:
            BurnishError: there is no earlier checkpoint, or it was done often enough.
        """
        guards, done = self._config.guards, self._run.record().get("rollbacks", [])
        good = [path for path in checkpoints(self._run.checkpoints) if step_of(path) < alert.first_step]
        if len(done) >= guards.max_rollbacks:
            raise BurnishError(f"{alert.text}; rolled back {len(done)} times already (guards.max_rollbacks)")
        if not good:
            raise BurnishError(
                f"{alert.text}; no checkpoint from before step {alert.first_step} is there to go back to"
            )
        for path in checkpoints(self._run.checkpoints):
            if path not in good:
                remove_folder(path)
        back = {"condition": alert.condition.name, "at_step": alert.step, "to_step": step_of(good[-1])}
        self._run.update_record(rollbacks=[*done, back])
        rate = self.lowered(self._config).optimizer.learning_rate
        self._run.add_event("rolled_back", **back, learning_rate=rate)
        self._say(f"back to step {back['to_step']}, with optimizer.learning_rate {rate:g}")

    def lowered(self, config: ConfigT) -> ConfigT:
        """The configuration with the learning rate that is left after the run's rollbacks."""
        factor = config.guards.rollback_factor ** len(self._run.record().get("rollbacks", []))
        optimizer = config.optimizer.model_copy(update={"learning_rate": config.optimizer.learning_rate * factor})
        changed: dict[str, Any] = {"optimizer": optimizer}
        critic = getattr(config, "critic", None)  # PPO's, with a rate of its own
        if (rate := getattr(critic, "learning_rate", None)) is not None and critic is not None:
            changed["critic"] = critic.model_copy(update={"learning_rate": rate * factor})
        return config.model_copy(update=changed)

    def _act(self, alerts: list[Alert]) -> Action | None:
        strongest: Action | None = None
        for alert in alerts:
            self._tell(alert)
            if alert.state == "resolved":
                continue
            if alert.action == "roll_back":
                raise RollBackError(alert)
            if strongest is None or _STRENGTH.index(alert.action) > _STRENGTH.index(strongest):
                strongest = alert.action
        return strongest

    def _tell(self, alert: Alert) -> None:
        self._say(f"step {alert.step}: {alert.text}")
        self._run.add_event("alert", **alert.line())
        if self._url is not None and alert.action != "note":
            self._posting = [each for each in self._posting if each.is_alive()]
            self._posting.append(post(self._url, {"run": self._run.path.name, **alert.line()}, self._say))

    def _on_silent(self, seconds: float) -> None:
        self._tell(self._silence("firing", self._step + 1))

    def _silence(self, state: Literal["firing", "resolved"], step: int) -> Alert:
        """Nothing can be done while no step ends, but to tell."""
        asked = self._config.guards.action_for(SILENT.name, SILENT.severity)
        action: Action = "note" if asked == "note" else "notify"
        return Alert(condition=SILENT, action=action, state=state, step=step, first_step=step)


def check_guards(config: RunConfig) -> str | None:
    """Refuse guards that cannot be; the webhook, where there is one.

    Raises:
        ConfigError: a setting cannot be used.
    """
    guards_of(config, 0)
    if config.metrics.port is not None:
        with requires_extra("metrics", f"metrics.port={config.metrics.port} needs prometheus-client"):
            import prometheus_client  # noqa: F401  # before the model loads
    return None if config.guards.webhook_file is None else read_webhook(config.guards.webhook_file)


def guards_of(config: RunConfig, lag: int) -> Guards:
    """The guards that a configuration describes."""
    return Guards(config.guards, staleness=lag, mismatch=_MISMATCH[str(find_dtype(config.model))])


def _exporter(config: RunConfig, run: RunFolder) -> Any:
    if config.metrics.port is None:
        return None
    from burnish.monitoring.training_metrics import TrainingMetrics  # an extra

    algorithm = str(getattr(config, "algorithm", ""))
    return TrainingMetrics(
        run.path.name, algorithm=algorithm, model=Path(config.model.path).name, num_steps=config.train.num_steps
    )
