"""Runs trainings as processes of their own: in order, several at once, each with a deadline, resumable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from burnish.config.loading import ENVIRONMENT_PREFIX, RESERVED_ENVIRONMENT
from burnish.errors import UserError
from burnish.experiments.analysis import decided_arms
from burnish.experiments.folder import ExperimentFolder
from burnish.experiments.outcomes import Outcome, read_outcome
from burnish.experiments.plan import Plan, PlannedRun
from burnish.experiments.sweep import search

PROGRAM = (sys.executable, "-m", "burnish")
GRACE_SECONDS = 300.0  # for a step to end and a checkpoint to be saved
_POLL_SECONDS = 0.05
_INTERRUPTED = (130, 143)  # exit statuses after Ctrl-C and SIGTERM


@dataclass(kw_only=True)
class _Child:
    """A training that is under way."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    seconds_before: float
    why_ended: str = ""
    kill_at: float | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def end(self, why: str, grace_seconds: float) -> None:
        """Ask it once to save and stop; called again when the grace is over, kill it."""
        if self.kill_at is None:
            self.why_ended, self.kill_at = why, time.monotonic() + grace_seconds
            self.process.terminate()
        elif time.monotonic() >= self.kill_at:
            self.kill()

    def kill(self) -> None:
        """End it and what it started; it leads a process group of its own."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass(kw_only=True)
class Runner:
    """Runs what is missing of an experiment. `program` is called with `train ...` or `resume ...`, as burnish is."""

    folder: ExperimentFolder
    plan: Plan
    say: Callable[[str], None]
    max_parallel: int = 1
    retry_failed: bool = False
    program: Sequence[str] = PROGRAM
    grace_seconds: float = GRACE_SECONDS
    _children: list[_Child] = field(default_factory=list)
    _num_signals: int = 0
    _stop_reason: str = ""

    def run(self, planned: Sequence[PlannedRun], skip: Callable[[PlannedRun], bool] = lambda run: False) -> bool:
        """Run what is not settled yet, in this order; False if it was stopped before the end.

        `skip` is asked before a run starts: whether it is not needed any more.

        Raises:
            UserError: the budget's time is spent.
        """
        waiting = [run for run in planned if self._is_wanted(self.outcome(run))]
        total, spent = len(waiting), self._spent()
        limit = None if self.plan.budget.hours is None else self.plan.budget.hours * 3600
        if waiting and limit is not None and spent >= limit:
            raise UserError(
                f"budget.hours={self.plan.budget.hours:g}: {spent / 3600:.3g} h are spent, {total} runs are missing; "
                "raise it with --amend, or report what there is"
            )
        times: list[float] = []
        with self._signals():
            try:
                while waiting or self._children:
                    for child in self._ended():
                        times.append(child.seconds)
                        self._tell(child, total - len(waiting) - len(self._children), total, times)
                    if limit is not None and spent + sum(times) + sum(each.seconds for each in self._children) > limit:
                        self._stop_reason = self._stop_reason or f"budget.hours={self.plan.budget.hours:g} is spent"
                    if self._stop_reason:
                        waiting = []
                    self._end_what_must()
                    while waiting and len(self._children) < self.max_parallel:
                        run = waiting.pop(0)
                        if skip(run):
                            self.folder.add_event("stopped early", run=run.name)
                        else:
                            self._start(run)
                    time.sleep(_POLL_SECONDS)
            finally:
                self._end_all()
        if self._stop_reason:
            self.say(f"stopped: {self._stop_reason}; `burnish experiment run` goes on")
        return not self._stop_reason

    def outcome(self, run: PlannedRun) -> Outcome:
        """What became of a run so far."""
        metrics = (self.plan.primary.name, *(metric.name for metric in self.plan.secondary))
        return read_outcome(run, self.folder.run_folders().get(run.name), self.folder.events(), metrics, self.plan)

    def _is_wanted(self, outcome: Outcome) -> bool:
        if outcome.state == "running":
            self.say(f"{outcome.run.name} is being trained by another process: left alone")
            return False
        return not outcome.is_settled or (outcome.state == "failed" and self.retry_failed)

    def _start(self, run: PlannedRun) -> None:
        earlier = self.outcome(run)
        if earlier.folder is not None:
            arguments = ["resume", str(earlier.folder.path)]
        else:
            recipe = self.folder.path / "arms" / f"{run.arm}.yaml"
            own = {"name": run.name, "seed": run.seed, "runs_folder": self.folder.runs}
            arguments = ["train", str(recipe), *(f"--{key}={value}" for key, value in own.items())]
        log = self.folder.path / "logs" / f"{run.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*self.program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=child_environment(os.environ),
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends each child once
            )
        began = time.monotonic()
        self._children.append(_Child(run=run, process=process, log=log, began=began, seconds_before=earlier.seconds))
        version = self.folder.versions()[-1].sha256
        self.folder.add_event("started", run=run.name, command=arguments[0], pid=process.pid, plan=version)

    def _ended(self) -> list[_Child]:
        """The children that are gone; what is to be known of each is written down."""
        gone = [child for child in self._children if child.process.poll() is not None]
        for child in gone:
            self._children.remove(child)
            status = int(child.process.returncode)
            reason = child.why_ended or ("" if status == 0 else _last_line(child.log) or f"exit status {status}")
            is_signal = status < 0 or status in _INTERRUPTED
            ended = {"status": -1 if is_signal else status, "seconds": round(child.seconds, 3), "reason": reason}
            self.folder.add_event("ended", run=child.run.name, **ended)
        return gone

    def _end_what_must(self) -> None:
        limit = self.plan.budget.hours_per_run
        for child in self._children:
            if self._num_signals > 1:
                child.kill()
            elif self._stop_reason:
                child.end(self._stop_reason, self.grace_seconds)
            elif limit is not None and child.seconds_before + child.seconds > limit * 3600:
                child.end(f"budget.hours_per_run={limit:g} is over", self.grace_seconds)

    def _end_all(self) -> None:
        """No child outlives the runner."""
        while self._children:
            for child in self._children:
                child.end(self._stop_reason or "the runner ended", self.grace_seconds)
            time.sleep(_POLL_SECONDS)
            self._ended()

    def _spent(self) -> float:
        return sum(float(event["seconds"]) for event in self.folder.events() if event["event"] == "ended")

    def _tell(self, child: _Child, done: int, total: int, times: Sequence[float]) -> None:
        outcome = self.outcome(child.run)
        name = self.plan.primary.name
        value = f"{name} {outcome.values[name]:.4g}" if name in outcome.values else outcome.reason or child.why_ended
        left = (total - done) * sum(times) / len(times) / self.max_parallel
        took = f"{_clock(child.seconds)}, left about {_clock(left)}"
        self.say(f"{done}/{total} {child.run.name} {outcome.state}: {value}; {took}")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM lets every run save and stop; a second one kills them."""

        def stop(signum: int, frame: FrameType | None) -> None:
            self._num_signals += 1
            self._stop_reason = "interrupted"
            if self._num_signals == 1:
                self.say("letting the runs save and stop; once more kills them")

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def run_experiment(runner: Runner) -> bool:
    """Freeze the plan, search if it is a sweep, and run what is missing; False if it was stopped before the end.

    Raises:
        UserError: another process runs it, or the budget's time is spent.
    """
    folder, plan = runner.folder, runner.plan
    with folder.locked():
        folder.freeze()
        for arm in plan.arms:
            if arm.config:  # the winner of a sweep has none yet
                folder.write_arm(arm.name, arm.config)
        if plan.sweep is not None and not search(
            folder,
            plan,
            runner.run,
            at_once=runner.max_parallel,
            retry_failed=runner.retry_failed,
            say=runner.say,
        ):
            return False

        def is_decided(run: PlannedRun) -> bool:
            outcomes = [runner.outcome(each) for each in plan.runs]
            decided = decided_arms(plan, outcomes)
            return run.arm in decided or (run.arm == plan.baseline and set(plan.others) <= decided)

        return runner.run(plan.runs, is_decided) if plan.stopping == "sequential" else runner.run(plan.runs)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the settings of burnish: those that held when the experiment was planned are in the arms' files."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(ENVIRONMENT_PREFIX) or name in RESERVED_ENVIRONMENT
    }


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("burnish: ")[:300] if lines else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
