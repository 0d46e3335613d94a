"""Where two runs part: the first step and the first value that is not the same, bit by bit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from burnish.reproducibility.files import sha256_of_file
from burnish.reproducibility.run_folder import RunFolder

_MEASURED = ("seconds", "tokens_per_second", "peak_memory_bytes", "idle_", "bytes_published", "out_of_memory")
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
    """What of two runs was compared, and where they part first."""

    num_steps: int
    compared: tuple[str, ...]
    difference: FirstDifference | None

    @property
    def are_equal(self) -> bool:
        """Whether all that was compared is the same, bit by bit."""
        return self.difference is None


def compare_runs(first: RunFolder, second: RunFolder, *, num_steps: int | None = None) -> RunComparison:
    """Compare two runs in the order in which they happened: each step's rollouts, metrics and held-out items, then the
    weights and the optimizer of the last checkpoint that both have.

    Floats are compared as float.hex says them. What a clock or the memory says is left out. Without `num_steps` a run
    that has more steps than the other is another run.
    """
    metrics = [{line["step"]: _exact_metrics(line) for line in run.metrics()} for run in (first, second)]
    common = sorted(metrics[0].keys() & metrics[1].keys())
    steps = [step for step in common if num_steps is None or step <= num_steps]
    last = steps[-1] if steps else 0
    num_completions, difference = 0, _in_step(first, second, "evaluations", 0)
    for step in steps:
        if difference is not None:
            break
        difference = (
            _in_step(first, second, "rollouts", step)
            or _where(step, "metrics", metrics[0][step], metrics[1][step])
            or _in_step(first, second, "evaluations", step)
        )
        if step in first.steps("rollouts") and step in second.steps("rollouts"):
            num_completions += sum(len(line.get("rollouts", ())) for line in first.read_step("rollouts", step))
    if difference is None and num_steps is None and len(metrics[0]) != len(metrics[1]):
        longer = max(metrics, key=len)
        step = min(longer.keys() - set(common))
        shown = [f"{len(each)} steps" for each in metrics]
        difference = FirstDifference(step, "the number of steps", *shown)
    compared = [f"metrics and held-out items of {len(steps)} steps"]
    if num_completions:
        compared.append(f"{num_completions} completions token by token")
    weights = _last_common_checkpoint(first, second, last)
    if weights is None:
        compared.append("no weights: the runs have no checkpoint of the same step")
    else:
        compared.append(f"weights and optimizer of step {weights}")
        difference = difference or _in_checkpoint(first, second, weights)
    return RunComparison(num_steps=len(steps), compared=tuple(compared), difference=difference)


def _in_step(first: RunFolder, second: RunFolder, folder: str, step: int) -> FirstDifference | None:
    """Where the files of a step part, if both runs have one."""
    if step not in first.steps(folder) or step not in second.steps(folder):
        return None
    return _where(step, folder, first.read_step(folder, step), second.read_step(folder, step))


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
