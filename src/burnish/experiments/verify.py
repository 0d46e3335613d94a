"""Does a run repeat itself, and does it resume, bit by bit, on this machine?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from burnish.data.rows import Told, tell_nobody
from burnish.errors import MachineError, UserError
from burnish.experiments.process import burnish_process, follow
from burnish.reproducibility.differences import configuration_of
from burnish.reproducibility.first_difference import RunComparison, compare_runs
from burnish.reproducibility.run_folder import RunFolder
from burnish.reproducibility.work_tree import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was done beside an unbroken run, and how the two compare."""

    what: str
    comparison: RunComparison

    def __str__(self) -> str:
        """One line."""
        if self.comparison.difference is None:
            return f"{self.what}: bit-equal ({', '.join(self.comparison.compared)})"
        return f"{self.what}: different, first at {self.comparison.difference}"


def verify(
    run: RunFolder, *, steps: int, repeats: int, say: Callable[[str], None], told: Told = tell_nobody
) -> list[Check]:
    """Train with a run's settings for 2 * steps without a break, `repeats` times; then stop after `steps`, resume, kill
    the process within the second half, and resume again. All must be the same. It happens in a temporary folder.

    Raises:
        UserError: the run is too short.
        MachineError: a training failed.
    """
    run.whole_record()
    total = configuration_of(run)["train.num_steps"]
    if not 1 <= steps <= total // 2:
        raise UserError(f"--steps {steps}: the run has {total} steps, and twice as many as --steps are trained")
    if repeats < 1:
        raise UserError(f"--repeats {repeats}: at least one unbroken run is needed to compare with")
    with tempfile.TemporaryDirectory(prefix="burnish-verify-") as name:
        trials = _Trials(run=run, folder=Path(name).resolve(), steps=steps, say=say, told=told)
        unbroken = [trials.unbroken(f"unbroken-{number}") for number in range(1, repeats + 1)]
        checks = [
            Check(what=f"trained again, {number} of {repeats}", comparison=trials.compare(unbroken[0], other))
            for number, other in enumerate(unbroken[1:], start=2)
        ]
        broken, what = trials.broken("broken")
        return [*checks, Check(what=what, comparison=trials.compare(unbroken[0], broken))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trials:
    run: RunFolder
    folder: Path
    steps: int
    say: Callable[[str], None]
    told: Told

    def compare(self, first: RunFolder, second: RunFolder) -> RunComparison:
        found = compare_runs(first, second, num_steps=2 * self.steps)
        if found.are_equal and found.checkpoint != 2 * self.steps:
            raise MachineError(f"the trainings did not both save step {2 * self.steps}: their weights are not compared")
        return found

    def unbroken(self, name: str) -> RunFolder:
        self.say(f"{2 * self.steps} steps without a break")
        return self._train(name, 2 * self.steps)

    def broken(self, name: str) -> tuple[RunFolder, str]:
        """A run that is stopped and resumed, and killed and resumed, and what was done in words."""
        self.say(f"{self.steps} steps, then a stop")
        run = self._train(name, self.steps)
        self.say("going on, then a kill")
        killed_after = self._killed(name, run)
        what = f"stopped after step {self.steps} and resumed"
        if killed_after is not None:
            what += f", killed after step {killed_after} and resumed"
            self.say("going on to the end")
            self._burnish(name, "resume", str(run.path), "--stop-after", str(2 * self.steps))
        return run, what

    def _train(self, name: str, stop_after: int) -> RunFolder:
        config = str((self.run.path / "config.yaml").resolve())
        runs_folder = ["--runs_folder", str(self.folder / name)]
        return self._burnish(name, "train", config, *runs_folder, "--stop-after", str(stop_after))

    def _tell(self, name: str, step: int) -> None:
        self.told(f"training {name}", step, 2 * self.steps)

    def _killed(self, name: str, run: RunFolder) -> int | None:
        """Resume and kill within a later step; None if it was done before the kill came."""

        def seen(run: RunFolder, step: int) -> bool:
            self._tell(name, step)
            if not self.steps < step < 2 * self.steps:
                return False
            process.kill()
            process.wait()
            return True

        log = self._log(name)
        arguments = ["resume", str(run.path), "--stop-after", str(2 * self.steps)]
        with burnish_process(arguments, Place(folder=Path.cwd()), log=log) as process:
            follow(process, self.folder / name, log=log, step_seconds=self._longest(), seen=seen)
        recorded = len(run.metrics())
        return recorded if recorded < 2 * self.steps else None

    def _burnish(self, name: str, *arguments: str) -> RunFolder:
        def seen(run: RunFolder, step: int) -> bool:
            self._tell(name, step)
            return False

        log = self._log(name)
        with burnish_process(arguments, Place(folder=Path.cwd()), log=log) as process:
            run = follow(process, self.folder / name, log=log, step_seconds=self._longest(), seen=seen)
        if not run.metrics():
            raise MachineError("the training made no step")
        return run

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _longest(self) -> float:
        return max((line["seconds"] for line in self.run.metrics()), default=0.0)
