"""The folder of one run. Everything a tool shows is computed from its files.

run.json        what ran: code, environment, configuration hash, model, data, seeds, status; at its end also the hash of
                every other file
summary.json    a line for a list of runs, of a run that has ended
code.diff       what differed from the commit; code/ holds small untracked files
config.yaml     the resolved configuration
metrics.jsonl   one line per step
events.jsonl    what happened: started, resumed, saved, a failed reward
rollouts/       step-NNNNNN.jsonl, one line per group
evaluations/    step-NNNNNN.jsonl, one line per held-out item
checkpoints/    step-NNNNNN/
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from burnish.errors import DataError, UserError
from burnish.reproducibility.files import (
    append_lines,
    full_disk_is_a_machine_error,
    locked,
    remove_folder,
    remove_oldest,
    sha256_of_file,
    write_text,
)

Line = Mapping[str, Any]

RECORD_FORMAT = 1
"""Of run.json. It changes when a reader of the old one would misread the new one."""

_SEALED = ("config.yaml", "metrics.jsonl", "*.diff", "code/**/*", "package/**/*", "rollouts/*", "evaluations/*")
_MANIFESTS = "checkpoints/*/manifest.json"  # which hold the hashes of the other files


class RunFolder:
    """A run folder that exists."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, runs_folder: Path, name: str) -> "RunFolder":
        """Make `runs_folder`/<name>-<six hex digits>."""
        path = runs_folder / f"{name}-{secrets.token_hex(3)}"
        with full_disk_is_a_machine_error(path):
            for part in ("rollouts", "evaluations", "checkpoints"):
                (path / part).mkdir(parents=True)
        return cls(path)

    @classmethod
    def find(cls, run: str, runs_folder: Path) -> "RunFolder":
        """A run by its path, its name, an unambiguous beginning of it, or `last`.

        Raises:
            UserError: there is none, or several.
        """
        if (Path(run) / "run.json").is_file():
            return cls(Path(run))
        runs = cls.all(runs_folder)
        found = runs[-1:] if run == "last" else [each for each in runs if each.path.name.startswith(run)]
        if run == "last" and not runs:
            raise UserError(f"there is no run in {runs_folder} yet; `burnish train quickstart` makes one")
        if len(found) != 1:
            what = "several runs begin" if found else "no run begins"
            names = ", ".join(each.path.name for each in (found or runs)[-5:]) or "none yet"
            raise UserError(f"{what} with {run!r} in {runs_folder}: {names}")
        return found[0]

    @classmethod
    def all(cls, runs_folder: Path) -> list["RunFolder"]:
        """Every run of a folder, oldest first."""
        return [run for run, _ in cls.summaries(runs_folder)]

    @classmethod
    def summaries(cls, runs_folder: Path) -> list[tuple["RunFolder", dict[str, Any]]]:
        """Every run of a folder with its summary where it has ended, with its record otherwise, oldest first."""
        found: list[tuple[RunFolder, dict[str, Any]]] = []
        for folder in _folders(runs_folder):
            run = cls(folder)
            with suppress(ValueError, KeyError, TypeError, OSError):  # not a run, or one whose creation was cut off
                content = run.kept_summary() or _read_json(folder / "run.json")
                content["created"] = str(content["created"])
                found.append((run, content))
        return sorted(found, key=lambda each: (each[1]["created"], str(each[0].path)))

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            UserError: another process trains it.
        """
        with locked(self.path, f"run {self.path.name} is being trained by another process"):
            yield

    def status(self) -> str:
        """The recorded status; `died` for a run that says it is running while no process trains it."""
        recorded = str(self.record()["status"])
        if recorded != "running":
            return recorded
        try:
            with (self.path / "lock").open() as lock:  # read-only: looking at a run must not need to write
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "running"
        except FileNotFoundError:
            return "died"
        return "died"

    def record(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            UserError: another version of burnish wrote it, in another format.
            DataError: it is damaged.
        """
        try:
            record = _read_json(self.path / "run.json")
        except ValueError as error:
            raise DataError(f"{self.path / 'run.json'}: not the record of a run ({error})") from error
        if record.get("format", RECORD_FORMAT) != RECORD_FORMAT:
            raise UserError(self._of_another_format(record["format"]))
        return record

    def config(self) -> dict[str, Any]:
        """The settings that the run was started with, as config.yaml has them."""
        import yaml  # a list of runs does without

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, for hundreds of runs
        content = yaml.load((self.path / "config.yaml").read_text(encoding="utf-8"), Loader=loader)
        return content if isinstance(content, dict) else {}

    def whole_record(self) -> dict[str, Any]:
        """The same, for whoever needs all of it: the code, the environment, every fingerprint.

        Raises:
            UserError: another version of burnish wrote it.
        """
        record = self.record()
        if "format" not in record:
            raise UserError(self._of_another_format("before 1"))
        return record

    def write_record(self, record: Line) -> None:
        """Replace run.json."""
        (self.path / "summary.json").unlink(missing_ok=True)
        write_text(self.path / "run.json", json.dumps(record, indent=1))

    def seal(self, **changes: Any) -> None:
        """Change fields of run.json at the end of a run, and keep there the hash of every other file."""
        outputs = {name: sha256_of_file(self.path / name) for name in self._files(*_SEALED, _MANIFESTS)}
        metrics = self.metrics()
        cost = {key: sum(line.get(key, 0) for line in metrics) for key in ("seconds", "tokens")}
        cost["peak_memory_bytes"] = max((line.get("peak_memory_bytes", 0) for line in metrics), default=0)
        self.update_record(**changes, cost=cost, outputs=outputs)
        write_text(self.path / "summary.json", json.dumps(self.summary()))

    def require_unchanged(self, only: tuple[str, ...] = ("",)) -> None:
        """Compare every file, or those whose names begin with one of `only`, with the hash it had when the run ended.

        A run that has not ended, or was resumed and has not ended again, has no such hashes.

        Raises:
            DataError: one was changed, added or removed.
        """
        record = self.record()
        if record["status"] == "running" or "outputs" not in record:
            return
        for name in self._files("rollouts/*", "evaluations/*"):
            if name.startswith(only) and name not in record["outputs"]:
                raise DataError(f"{self.path / name} was added since the run ended: what it says is no evidence")
        for name, expected in record["outputs"].items():
            path = self.path / name
            if not name.startswith(only):
                continue
            if name.startswith("rollouts/") and not path.exists():  # may be removed to make room
                continue
            if not path.is_file() or sha256_of_file(path) != expected:
                what = "was changed" if path.is_file() else "was removed"
                raise DataError(f"{path} {what} since the run ended: what it says is no evidence any more")

    def summary(self) -> dict[str, Any]:
        """What a list of runs shows: status, step, the last reward, the first and the last held-out figure."""
        record, metrics = self.record(), self.metrics()
        steps = self.steps("evaluations")
        items = [self.read_step("evaluations", step) for step in dict.fromkeys((*steps[:1], *steps[-1:]))]
        last = metrics[-1] if metrics else {}
        return {
            "created": record["created"],
            "status": record["status"],
            "step": last.get("step", 0),
            "reward_mean": last.get("reward_mean"),
            "held_out": [sum(float(item["score"]) for item in each) / len(each) for each in items if each],
        }

    def kept_summary(self) -> dict[str, Any] | None:
        """The summary of a run that has ended; None where there is none."""
        try:
            with open(f"{self.path}/summary.json", "rb", buffering=0) as file:  # as fast as thousands of them need
                summary: dict[str, Any] = json.loads(file.read())
        except FileNotFoundError:
            return None
        return summary

    def current_summary(self) -> dict[str, Any]:
        """The summary that was kept when the run ended; of one that has not ended, what it is now.

        Raises:
            UserError: another version of burnish wrote it, or a file of it is damaged.
        """
        return self.kept_summary() or self.summary() | {"status": self.status()}

    def update_record(self, **changes: Any) -> None:
        """Change fields of run.json."""
        self.write_record(self.record() | changes)

    def add_metrics(self, metrics: Line) -> None:
        """Append a step's line to metrics.jsonl."""
        self._append("metrics.jsonl", metrics)

    def add_event(self, kind: str, **details: Any) -> None:
        """Append to events.jsonl."""
        self._append("events.jsonl", {"time": utc_now(), "event": kind, **details})

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        return read_jsonl(self.path / "metrics.jsonl")

    def events(self) -> list[dict[str, Any]]:
        """All lines of events.jsonl."""
        return read_jsonl(self.path / "events.jsonl")

    def write_step(self, folder: str, step: int, lines: Iterable[Line]) -> None:
        """Write `folder`/step-NNNNNN.jsonl; `folder` is rollouts or evaluations."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(self._step_file(folder, step), text)

    def read_step(self, folder: str, step: int) -> list[dict[str, Any]]:
        """The lines that `write_step` wrote."""
        return read_jsonl(self._step_file(folder, step))

    def steps(self, folder: str) -> list[int]:
        """The steps that `folder` has a file for."""
        return sorted(int(path.stem.removeprefix("step-")) for path in (self.path / folder).glob("step-*.jsonl"))

    def trim_rollouts(self, max_bytes: float) -> None:
        """Remove the oldest rollout files until the rest fit; the newest always stays."""
        remove_oldest(sorted((self.path / "rollouts").glob("step-*.jsonl")), max_bytes)

    def rewind(self, step: int) -> None:
        """Forget what was recorded after `step`, and what a killed process left half-written."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        write_text(self.path / "events.jsonl", "".join(json.dumps(line) + "\n" for line in self.events()))
        for folder in ("rollouts", "evaluations"):
            for later in [found for found in self.steps(folder) if found > step]:
                self._step_file(folder, later).unlink()
        for left_over in self.path.rglob(".*.tmp"):
            remove_folder(left_over) if left_over.is_dir() else left_over.unlink()

    def _files(self, *patterns: str) -> list[str]:
        found = {path for pattern in patterns for path in self.path.glob(pattern) if path.is_file()}
        return sorted(path.relative_to(self.path).as_posix() for path in found)

    def _of_another_format(self, found: Any) -> str:
        return (
            f"run {self.path.name} was recorded by another version of burnish: run.json has format {found}, and this "
            f"version reads {RECORD_FORMAT}; its other files are text and can be read as they are"
        )

    def _step_file(self, folder: str, step: int) -> Path:
        return self.path / folder / f"step-{step:06d}.jsonl"

    def _append(self, name: str, line: Line) -> None:
        append_lines(self.path / name, line)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a last line that a crash cut off is left out.

    Raises:
        DataError: another line is damaged.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json_object(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def json_object(text: bytes, where: str) -> dict[str, Any]:
    """The object that a text says; `where` it stands is for the message.

    Raises:
        DataError: it is none.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{where}: not a JSON object")
    return content


def _folders(runs_folder: Path) -> list[Path]:
    try:
        with os.scandir(runs_folder) as entries:
            return [runs_folder / entry.name for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def utc_now() -> str:
    """The time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content
