"""The folder of one experiment. Everything that is said of it is computed from its files.

plan.json       the plan in all its versions, each with its hash; the first is what was frozen
events.jsonl    what the runner did: started a run, saw it end, and why
arms/           the whole configuration of each arm, as it is trained
runs/           the run folders
logs/           what each run printed
report.md, report.html, report.json, figures/
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from burnish.config.schema import Strict
from burnish.errors import UserError
from burnish.experiments.plan import Plan, differences, plan_sha256
from burnish.experiments.schema import read_file
from burnish.reproducibility.files import append_lines, locked, write_text
from burnish.reproducibility.run_folder import RunFolder, read_jsonl, utc_now

FORMAT = 1


class Version(Strict):
    """The plan at one time; `reason` says why it was amended, None for the first."""

    sha256: str
    time: str
    reason: str | None
    plan: Plan


class ExperimentFolder:
    """The folder of an experiment, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def find(cls, what: str, experiments_folder: Path) -> ExperimentFolder:
        """An experiment by its own file, by its folder, or by its name.

        Raises:
            UserError: nothing was planned under that name.
        """
        is_file = what.endswith((".yaml", ".yml"))
        name = str(read_file(Path(what)).get("name")) if is_file else what
        for path in (experiments_folder / name, Path(what)):
            if (path / "plan.json").is_file():
                return cls(path)
        known = ", ".join(sorted(path.parent.name for path in experiments_folder.glob("*/plan.json")))
        there = f"planned are {known}" if known else "none is planned there yet"
        raise UserError(f"no plan of an experiment {name!r} in {experiments_folder}; {there}")

    @property
    def runs(self) -> Path:
        """The folder of its run folders."""
        return self.path / "runs"

    @property
    def is_frozen(self) -> bool:
        """Whether a run was started, also if the plan does not say so any more."""
        return self._content().get("frozen") is not None or any(self._begun_under())

    def versions(self) -> list[Version]:
        """The plan in all its versions, oldest first; none where nothing is planned yet.

        Raises:
            UserError: the file was changed by hand, is of another version of burnish, or is not the plan that runs were
                begun under.
        """
        content = self._content()
        if content and content.get("format") != FORMAT:
            raise UserError(f"{self._file}: format {content.get('format')!r} is not the {FORMAT} of this burnish")
        for version in content.get("versions", ()):
            if plan_sha256(version["plan"]) != version["sha256"]:
                raise UserError(
                    f"{self._file}: the plan of {version['time']} is not the one that was frozen (its hash differs); "
                    "restore the file"
                )
        known = {version["sha256"] for version in content.get("versions", ())}
        if other := next((sha256 for sha256 in self._begun_under() if sha256 not in known), None):
            raise UserError(
                f"{self.path}: runs were begun under another plan ({other[:12]}) than plan.json has; restore it, "
                "or begin an experiment of another name"
            )
        try:
            return [Version.model_validate(version) for version in content.get("versions", ())]
        except ValidationError as error:
            raise UserError(f"{self._file}: is not a plan of this burnish: {error.errors()[0]['msg']}") from error

    def plan(self) -> Plan:
        """The plan as it stands."""
        return self.versions()[-1].plan

    def write_plan(self, plan: Plan, *, reason: str | None = None) -> None:
        """Keep a plan: in the place of one that is not frozen, or as an amendment of one that is, with its reason.

        Raises:
            UserError: the frozen plan is another and no reason is given, or the amendment changes an arm.
        """
        if not self.is_frozen:
            if reason is not None:
                raise UserError(f"--amend {reason!r}: the plan is not frozen yet; plan it anew without --amend")
            self._write([_version(plan, None)], None)
            return
        versions = self.versions()
        now, then = (each.model_dump(mode="json") for each in (plan, versions[-1].plan))
        changes = list(differences(then, now))
        if not changes:
            if reason is not None:
                raise UserError(f"--amend {reason!r}: the plan is as it was")
            return
        if reason is None:
            more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
            raise UserError(
                f"experiment {plan.name} is frozen since {self._since()}, and its plan would change: "
                f'{changes[0]}{more}; undo the change, or say why: --amend "reason"'
            )
        self._check_arms(plan, [version.plan for version in versions])
        self._write([*(each.model_dump(mode="json") for each in versions), _version(plan, reason)], None)

    def freeze(self) -> None:
        """From now on the plan changes by amendments only."""
        if not self.is_frozen:
            self._write(self._content()["versions"], utc_now())

    def run_folders(self) -> dict[str, RunFolder]:
        """The runs by the name that the plan gives them.

        Raises:
            UserError: there are several of one name, or a record cannot be read.
        """
        found: dict[str, RunFolder] = {}
        records = set(self.runs.glob("*/run.json"))  # looked for first: a run may begin meanwhile
        runs = RunFolder.all(self.runs)
        for path in records - {run.path / "run.json" for run in runs}:
            raise UserError(f"{path} is damaged: restore it, or move the run away, and it is trained anew")
        for run in runs:
            name = run.path.name.rpartition("-")[0]
            if name in found:
                raise UserError(
                    f"{found[name].path} and {run.path} are one planned run: move away the one that is not to count"
                )
            found[name] = run
        return found

    def write_arm(self, name: str, config: Mapping[str, Any]) -> Path:
        """The recipe of an arm, as a file; returns its path."""
        path = self.path / "arms" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        return path

    def events(self) -> list[dict[str, Any]]:
        """All lines of events.jsonl."""
        return read_jsonl(self.path / "events.jsonl")

    def add_event(self, kind: str, **details: Any) -> None:
        """Append to events.jsonl."""
        append_lines(self.path / "events.jsonl", {"time": utc_now(), "event": kind, **details})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the experiment for this process.

        Raises:
            UserError: another process runs it.
        """
        with locked(self.path, f"experiment {self.path.name} is being run by another process"):
            yield

    def _begun_under(self) -> Iterator[str]:
        """The hash of the plan under which each run was started."""
        return (event["plan"] for event in self.events() if event["event"] == "started" and "plan" in event)

    def _since(self) -> str:
        started = (event["time"] for event in self.events() if event["event"] == "started")
        return str(self._content()["frozen"] or next(started))

    @property
    def _file(self) -> Path:
        return self.path / "plan.json"

    def _content(self) -> dict[str, Any]:
        if not self._file.is_file():
            return {}
        try:
            content: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self._file} is damaged: {error}") from error
        return content

    def _write(self, versions: list[dict[str, Any]], frozen: str | None) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        since = frozen or self._content().get("frozen")
        write_text(self._file, json.dumps({"format": FORMAT, "frozen": since, "versions": versions}, indent=1))

    def _check_arms(self, plan: Plan, earlier: list[Plan]) -> None:
        """An arm keeps its settings: its runs would be of two kinds otherwise."""
        for before in earlier:
            for arm in before.arms:
                now = next((each for each in plan.arms if each.name == arm.name), arm)
                if now.config != arm.config:
                    change = next(differences(arm.config, now.config))
                    raise UserError(
                        f"arm {arm.name} would change ({change}), and its runs would not be alike: "
                        "give the new settings to an arm of another name"
                    )


def _version(plan: Plan, reason: str | None) -> dict[str, Any]:
    dumped = plan.model_dump(mode="json")
    return {"sha256": plan_sha256(dumped), "time": utc_now(), "reason": reason, "plan": dumped}
