"""A run once more: the same code, settings, data and seeds, and what came of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from burnish.algorithms.run_record import changed_fingerprints
from burnish.data.rows import Told, tell_nobody
from burnish.errors import DataError, UserError
from burnish.evaluation.held_out import mean_score
from burnish.experiments.process import burnish_process, follow
from burnish.reproducibility.differences import changed_configuration
from burnish.reproducibility.environment import environment_differences
from burnish.reproducibility.first_difference import RunComparison, compare_runs
from burnish.reproducibility.run_folder import RunFolder
from burnish.reproducibility.work_tree import Place, code_as_recorded

Verdict = Literal["bit-equal", "within seed noise", "different"]

_CODE = ("reward", "loss")
_READ = ("model", "tokenizer", "tasks", "prompts", "examples", "teachers", "critic", *_CODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedNoise:
    """How far apart the held-out figures of two runs fall that differ in their seed alone.

    `half_width` is Student's t quantile for 95% with n - 1 degrees of freedom, times the standard deviation of the n
    runs, times sqrt(2): a difference of two such runs is within it 95 times of 100.
    """

    num_runs: int
    half_width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """The new run, how it compares with the recorded one, and what was not the same before it began."""

    run: RunFolder
    verdict: Verdict
    comparison: RunComparison
    held_out: tuple[float, float] | None
    """At the last step after 0 that both evaluated: recorded, repeated."""
    noise: SeedNoise | None
    remarks: tuple[str, ...]

    def text(self) -> str:
        """The verdict with its reason."""
        compared = ", ".join(self.comparison.compared)
        if self.comparison.difference is None:
            return f"bit-equal: {compared}"
        lines = [f"{self.verdict}: first at {self.comparison.difference}"]
        if self.held_out is not None:
            before, now = self.held_out
            lines.append(f"held-out figure {before:.4f} recorded, {now:.4f} repeated: {now - before:+.4f}")
        if self.noise is not None:
            lines[-1] += f"; runs of {self.noise.num_runs} seeds differ by up to {self.noise.half_width:.4f} (95%)"
        else:
            lines.append("whether that is the noise of seeds is not known: give --replicates RUN,RUN of other seeds")
        return "\n".join(lines)


def rerun(
    run: RunFolder,
    *,
    into: Path,
    say: Callable[[str], None],
    told: Told = tell_nobody,
    steps: int | None = None,
    here: bool = False,
    allow_changed: bool = False,
    replicates: Sequence[RunFolder] = (),
) -> Rerun:
    """Repeat a run, or its first steps, in a work tree of its recorded code, or here with the code as it is.

    Raises:
        UserError: the run cannot be repeated, or what it reads has changed.
        DataError: the recorded run was changed since it ended.
        MachineError: the training failed.
    """
    record = run.whole_record()
    run.require_unchanged()
    recorded = run.metrics()
    if not recorded:
        raise UserError(f"run {run.path.name} has no step to compare with")
    steps = _steps_to_repeat(run, record, steps, len(recorded))
    _require_replicates(run, replicates)
    remarks: list[str] = []

    def seen(new: RunFolder, step: int) -> bool:
        if step == 0 and not remarks:
            found = _differences(run, record, new, here=here, allow_changed=allow_changed)
            for remark in found:
                say(remark)
            remarks.extend(found or [""])
        elif step:
            told(f"repeating {run.path.name}", step, steps or len(recorded))
        return False

    with _place(run, record, here=here) as place:
        say(f"repeating {run.path.name} in {place.folder}")
        new = _trained(run, place, into, steps, seen)
    result = _judged(run, new, steps, replicates, tuple(filter(None, remarks)))
    difference = result.comparison.difference
    new.seal(
        rerun={
            "of": run.path.name,
            "verdict": result.verdict,
            "first_difference": None if difference is None else str(difference),
            "remarks": list(result.remarks),
        }
    )
    return result


def _trained(
    run: RunFolder, place: Place, into: Path, steps: int | None, seen: Callable[[RunFolder, int], bool]
) -> RunFolder:
    """Train a run's settings in a process of its own; the new run appears in `into` when it has ended."""
    into.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".rerun-", dir=into)).resolve()
    try:
        log = aside / "log"
        arguments = ["train", str((run.path / "config.yaml").resolve()), "--runs_folder", str(aside)]
        arguments += [] if steps is None else ["--stop-after", str(steps)]
        longest = max(line["seconds"] for line in run.metrics())
        with burnish_process(arguments, place, log=log) as process:
            new = follow(process, aside, log=log, step_seconds=longest, seen=seen)
        final = into / new.path.name
        new.path.rename(final)
    finally:
        shutil.rmtree(aside)
    return RunFolder(final)


def noise_of_seeds(figures: Sequence[float]) -> SeedNoise:
    """The noise of held-out figures of runs that differ in their seed alone; at least three of them."""
    from scipy.stats import t  # slow to import

    n = len(figures)
    if n < 3:
        raise ValueError(f"{n} runs say too little of their noise")
    mean = sum(figures) / n
    deviation = (sum((figure - mean) ** 2 for figure in figures) / (n - 1)) ** 0.5
    return SeedNoise(num_runs=n, half_width=float(t.ppf(0.975, n - 1)) * deviation * 2**0.5)


@contextmanager
def _place(run: RunFolder, record: Mapping[str, Any], *, here: bool) -> Iterator[Place]:
    if here:
        yield Place(folder=Path.cwd())
    else:
        with code_as_recorded(run.path, record["code"]) as place:
            yield place


def _steps_to_repeat(run: RunFolder, record: Mapping[str, Any], steps: int | None, recorded: int) -> int | None:
    """Where to stop; None for the whole of a run that finished."""
    if record.get("changes"):
        what = " and ".join(record["changes"][0]["changed"])
        raise UserError(f"run {run.path.name} cannot be repeated: its {what} changed while it was interrupted")
    if steps is not None and not 1 <= steps <= recorded:
        raise UserError(f"--steps {steps}: run {run.path.name} has {recorded} steps")
    if steps is None and record["status"] != "finished":
        return recorded
    return steps


def _require_replicates(run: RunFolder, replicates: Sequence[RunFolder]) -> None:
    if not replicates:
        return
    seeds = {run.record()["seed"], *(each.record()["seed"] for each in replicates)}
    if len(replicates) < 2 or len(seeds) != len(replicates) + 1:
        raise UserError("--replicates: give at least two runs, and each run needs a seed of its own")
    for each in replicates:
        if keys := changed_configuration(run, each).keys() - {"seed"}:
            raise UserError(
                f"--replicates: {each.path.name} differs from {run.path.name} in {', '.join(sorted(keys))}, "
                "and not in its seed alone"
            )


def _differences(
    run: RunFolder, record: Mapping[str, Any], new: RunFolder, *, here: bool, allow_changed: bool
) -> list[str]:
    """What is not as it was when the run began.

    Raises:
        DataError: that is what it reads.
    """
    now = new.whole_record()
    changed = changed_fingerprints(record, {key: now[key] for key in _READ if key in now})
    read = [each for each in changed if not (here and each.partition(" ")[0] in _CODE)]
    if read and not allow_changed:
        raise DataError(
            f"run {run.path.name} cannot be repeated: its {' and '.join(read)} changed since; "
            "restore what changed, or repeat it with --allow-changed, which the record will say"
        )
    found = [f"changed: {each}" for each in changed]
    if configuration := changed_configuration(run, new):
        found.append(f"changed: configuration ({', '.join(configuration)})")
    differences = environment_differences(record["environment"], now["environment"])
    if record["code"]["package"]["sha256"] != now["code"]["package"]["sha256"]:
        found.append("exactness is not promised: burnish itself is not what the run began with")
    found += [f"exactness is not promised: {each}" for each in differences if each.breaks_exactness]
    if others := [each.key for each in differences if not each.breaks_exactness]:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        found.append(f"note: {shown} differ, which changes no number")
    return found


def _judged(
    run: RunFolder, new: RunFolder, steps: int | None, replicates: Sequence[RunFolder], remarks: tuple[str, ...]
) -> Rerun:
    comparison = compare_runs(run, new, num_steps=steps)
    common = [step for step in run.steps("evaluations") if step and step in new.steps("evaluations")]
    held_out, noise = None, None
    if common:
        before, now = (mean_score(each.read_step("evaluations", common[-1])) for each in (run, new))
        held_out = (before, now)
        if replicates:
            figures = [_figure_at(each, common[-1]) for each in replicates]
            noise = noise_of_seeds([before, *figures])
    verdict: Verdict = "different"
    if comparison.are_equal:
        verdict = "bit-equal"
    elif held_out is not None and noise is not None and abs(held_out[1] - held_out[0]) <= noise.half_width:
        verdict = "within seed noise"
    return Rerun(run=new, verdict=verdict, comparison=comparison, held_out=held_out, noise=noise, remarks=remarks)


def _figure_at(run: RunFolder, step: int) -> float:
    if step not in run.steps("evaluations"):
        raise UserError(f"--replicates: {run.path.name} was not evaluated at step {step}")
    return mean_score(run.read_step("evaluations", step))
