"""Where two runs part: the first step and the first value that is not the same, bit by bit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from burnish.reproducibility.files import sha256_of_file
from burnish.reproducibility.run_folder import RunFolder

_MEASURED = (
    "seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "idle_",
    "bytes_published",
    "restarts",
    "out_of_memory",
)
"""Beginnings of metrics that say how a step was computed, not what."""

_ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """The step (0 is before training), what differs there, its two values, and how many more of that file's lines."""

    step: int
    key: str
    first: Any
    second: Any

    def __str__(self) -> str:
        """One line."""
        return f"step {self.step}: {self.key} is {_shown(self.first)} and {_shown(self.second)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """What of two runs was compared, and where they part first; `checkpoint` is the step whose weights were."""

    num_steps: int
    checkpoint: int | None
    compared: tuple[str, ...]
    difference: FirstDifference | None

    @property
    def are_equal(self) -> bool:
        """Whether all that was compared is the same, bit by bit."""
        return self.difference is None


def compare_runs(first: RunFolder, second: RunFolder, *, num_steps: int | None = None) -> RunComparison:
    """Compare two runs in the order in which they happened: each step's rollouts, metrics and held-out items, then the
    weights and the optimizer of the last checkpoint that both have.

    All steps that either has are wanted, or those up to `num_steps`: one that a run lacks is a difference, and so are
    held-out items that one of them lacks. Rollouts are compared where both still have them. Floats are compared as
    float.hex says them. What a clock or the memory says is left out.
    """
    metrics = [{line["step"]: _exact_metrics(line) for line in run.metrics()} for run in (first, second)]
    wanted = sorted(metrics[0].keys() | metrics[1].keys()) if num_steps is None else list(range(1, num_steps + 1))
    common = [step for step in wanted if step in metrics[0] and step in metrics[1]]
    num_completions, difference = 0, _in_evaluations(first, second, 0)
    for step in wanted:
        if difference is not None:
            break
        if step not in common:
            shown = [f"{len(each)} steps" for each in metrics]
            difference = FirstDifference(step, "the number of steps", *shown)
            break
        difference = (
            _in_rollouts(first, second, step)
            or _where(step, "metrics", metrics[0][step], metrics[1][step])
            or _in_evaluations(first, second, step)
        )
        if step in first.steps("rollouts") and step in second.steps("rollouts"):
            num_completions += sum(len(line.get("rollouts", ())) for line in first.read_step("rollouts", step))
    compared = [f"metrics and held-out items of {len(common)} steps"]
    if num_completions:
        compared.append(f"{num_completions} completions token by token")
    weights = _last_common_checkpoint(first, second, common[-1] if common else 0)
    if weights is None:
        compared.append("no weights: the runs have no checkpoint of the same step")
    else:
        compared.append(f"weights and optimizer of step {weights}")
        difference = difference or _in_checkpoint(first, second, weights)
    return RunComparison(num_steps=len(common), checkpoint=weights, compared=tuple(compared), difference=difference)


def _in_rollouts(first: RunFolder, second: RunFolder, step: int) -> FirstDifference | None:
    """Where the rollouts of a step part, if both runs have them: old ones make room for later ones."""
    if step not in first.steps("rollouts") or step not in second.steps("rollouts"):
        return None
    return _where(step, "rollouts", first.read_step("rollouts", step), second.read_step("rollouts", step))


def _in_evaluations(first: RunFolder, second: RunFolder, step: int) -> FirstDifference | None:
    """Where the held-out items of a step part; None where neither run was evaluated then."""
    items = [
        run.read_step("evaluations", step) if step in run.steps("evaluations") else None for run in (first, second)
    ]
    if None in items and items[0] != items[1]:
        shown = [_ABSENT if each is None else f"{len(each)} items" for each in items]
        return FirstDifference(step, "evaluations", *shown)
    return _where(step, "evaluations", *items)


def _in_checkpoint(first: RunFolder, second: RunFolder, step: int) -> FirstDifference | None:
    folders = [run.checkpoints / f"step-{step:06d}" for run in (first, second)]
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")} | {"state.json"}
        for folder in folders
    ]
    for name in sorted(names[0] | names[1]):
        hashes = [
            sha256_of_file(folder / name) if name in each else _ABSENT
            for folder, each in zip(folders, names, strict=True)
        ]
        if hashes[0] != hashes[1]:
            return FirstDifference(step, f"sha256 of {name}", *hashes)
    return None


def _last_common_checkpoint(first: RunFolder, second: RunFolder, last: int) -> int | None:
    steps = [
        {int(path.parent.name[5:]) for path in run.checkpoints.glob("step-*/manifest.json")} for run in (first, second)
    ]
    return max((step for step in steps[0] & steps[1] if step <= last), default=None)


def _exact_metrics(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not key.startswith(_MEASURED)}


def _where(step: int, key: str, first: Any, second: Any) -> FirstDifference | None:
    """The first leaf in which two trees of JSON are not the same."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in dict.fromkeys([*first, *second]):
            found = _where(step, f"{key}.{name}", first.get(name, _ABSENT), second.get(name, _ABSENT))
            if found is not None:
                return found
        return None
    if isinstance(first, list) and isinstance(second, list):
        for index, (one, other) in enumerate(zip(first, second, strict=False)):
            if (found := _where(step, f"{key}[{index}]", one, other)) is not None:
                return found
        if len(first) != len(second):
            return FirstDifference(step, f"the length of {key}", len(first), len(second))
        return None
    return None if _exact(first) == _exact(second) else FirstDifference(step, key, first, second)


def _exact(value: Any) -> Any:
    return value.hex() if isinstance(value, float) else (type(value).__name__, value)


def _shown(value: Any) -> str:
    text = f"{value!r} ({value.hex()})" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
