"""The runs of a folder, and one of them. A run that cannot be read says why, and no other suffers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from burnish.errors import DataError
from burnish.reproducibility.differences import method_of
from burnish.reproducibility.run_folder import RunFolder
from burnish.ui.answers import Replicate, RunDetail, RunList, RunRow, Setting, as_text
from burnish.ui.curves import metric_names
from burnish.ui.reading import FAULTS, Kept, entry, names_in, reading, reason_of

T = TypeVar("T")

_SIGNS = ("run.json", "summary.json", "config.yaml", "metrics.jsonl")
"""A folder that has none of these is no run, not a broken one."""
_ALGORITHM = re.compile(r"^algorithm: *([\w.]+) *$", re.MULTILINE)
_NOT_ENDED = ("running", "died")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, for hundreds of configurations


class Runs:
    """What stands in a folder of runs now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._row = Kept(_row)
        self._config = Kept(_config)

    def find(self, name: str) -> RunFolder:
        """A run that is listed.

        Raises:
            NotFoundError: there is none of that name.
        """
        return RunFolder(entry(self.folder, name, "run"))

    def all(self) -> RunList:
        """Every run, newest first."""
        rows = [row for name in names_in(self.folder) if (row := self.row(RunFolder(self.folder / name))) is not None]
        rows.sort(key=lambda row: (row.created, row.name), reverse=True)
        return RunList(folder=str(self.folder), runs=rows)

    def row(self, run: RunFolder) -> RunRow | None:
        """The line of a run; None of a folder that is none."""
        row = self._row(run.path)
        if row is not None and row.status in _NOT_ENDED:  # a process may have ended without writing anything
            try:
                return row.model_copy(update={"status": run.status()})
            except FAULTS as error:
                return RunRow(name=run.path.name, reason=reason_of(error))
        return row

    def detail(self, run: RunFolder) -> RunDetail:
        """All of a run that can be read, and what cannot."""
        faults: list[str] = []

        def known(read: Callable[[], T], otherwise: T) -> T:
            try:
                return read()
            except FAULTS as error:
                faults.append(reason_of(error))
                return otherwise

        nothing: dict[str, Any] = {}
        no_steps: list[int] = []
        no_names: list[str] = []
        record: dict[str, Any] = known(run.record, nothing)
        config = known(lambda: self._config(run.path / "config.yaml"), nothing)
        row = self.row(run) or RunRow(name=run.path.name, reason="no run: it has none of " + ", ".join(_SIGNS))
        if row.reason is not None:
            faults.append(row.reason)
        model = record.get("model")
        settings = record.get("settings")
        num_steps = config.get("train", {}).get("num_steps") if isinstance(config.get("train"), dict) else None
        return RunDetail(
            row=row,
            path=str(run.path),
            seed=record.get("seed"),
            model=as_text(model.get("source")) if isinstance(model, dict) else None,
            measure=record.get("measure"),
            num_steps=num_steps if isinstance(num_steps, int) else None,
            failure=record.get("failure"),
            settings=[
                Setting(key=key, value=value)
                for key, value in (settings if isinstance(settings, dict) else nothing).items()
            ],
            metrics=known(lambda: metric_names(run), no_names),
            rollout_steps=known(lambda: run.steps("rollouts"), no_steps),
            evaluated_steps=known(lambda: run.steps("evaluations"), no_steps),
            faults=list(dict.fromkeys(faults)),
        )

    def replicates(self, run: RunFolder) -> list[RunFolder]:
        """This run and those that differ from it in their seed alone, by name. A seed counts once: of several runs that
        share one it is this run, or else the newest.

        Raises:
            DataError: its configuration cannot be read.
        """
        own = method_of(self._config(run.path / "config.yaml"))
        of_seed: dict[str, tuple[str, RunFolder]] = {}
        for name in names_in(self.folder):
            other = RunFolder(self.folder / name)
            try:
                config = self._config(other.path / "config.yaml")
                if method_of(config) != own:
                    continue
                row = self.row(other)
            except FAULTS:  # the list says what is wrong with it
                continue
            if row is not None and row.reason is None:
                seed, known = str(config.get("seed")), (row.created, other)
                of_seed[seed] = max(of_seed.get(seed, known), known, key=lambda each: (each[0], each[1].path.name))
        of_seed[str(self._config(run.path / "config.yaml").get("seed"))] = "", run
        return sorted((found for _, found in of_seed.values()), key=lambda each: each.path.name)

    def seeds(self, run: RunFolder) -> list[Replicate]:
        """The replicates by name with the seed of each; none of a run whose configuration `detail` calls damaged."""
        try:
            found = self.replicates(run)
        except DataError:
            return []
        return [
            Replicate(name=each.path.name, seed=self._config(each.path / "config.yaml").get("seed")) for each in found
        ]


def _row(folder: Path) -> RunRow | None:
    run = RunFolder(folder)
    try:
        found = run.current_summary()
        held_out = found["held_out"]
        return RunRow(
            name=folder.name,
            status=found["status"],
            algorithm=_algorithm(folder),
            step=found["step"],
            reward=found["reward_mean"],
            held_out_before=held_out[0] if held_out else None,
            held_out=held_out[-1] if held_out else None,
            created=found["created"],
        )
    except FAULTS as error:
        if not any((folder / sign).exists() for sign in _SIGNS):
            return None
        return RunRow(name=folder.name, reason=reason_of(error))


def _algorithm(folder: Path) -> str | None:
    """The algorithm as the configuration's own line says it: to parse all of it would take seconds for many runs."""
    try:
        found = _ALGORITHM.search((folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return None if found is None else found[1]


def _config(path: Path) -> dict[str, Any]:
    with reading(path):
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        except yaml.YAMLError as error:
            raise DataError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not the configuration of a run")
    return content
