"""What is not the same in the records of two runs: configuration, code, inputs, environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from burnish.reproducibility.environment import environment_differences
from burnish.reproducibility.run_folder import RunFolder

ABSENT = "(absent)"
_PLACES = ("name", "runs_folder")
"""Settings that say where a run is kept."""

_WHEN = ("format", "created", "finished", "status", "failure", "cost", "outputs", "changes", "rerun")
_ELSEWHERE = ("measure", "seed", "settings", "config_sha256", "code", "environment", "determinism")


@dataclass(frozen=True, slots=True)
class Section:
    """One side of two runs: its name, and each leaf that differs with both values, what matters most first."""

    name: str
    differences: Mapping[str, tuple[Any, Any]]


def configuration_of(run: RunFolder) -> dict[str, Any]:
    """Every setting of a run by its dotted key, as its config.yaml says it."""
    return _flat(run.config())


def changed_configuration(first: RunFolder, second: RunFolder) -> dict[str, tuple[Any, Any]]:
    """The settings in which two runs differ, but for where they are kept and on what they ran."""
    found = _changed(configuration_of(first), configuration_of(second))
    return {key: pair for key, pair in found.items() if key not in _PLACES and not key.startswith("cluster.")}


def method_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that its replicates share, by dotted key: all but its seed, where it is kept, on what it
    ran, and what `auto` finds by the memory that happens to be free.
    """
    left_out = ("seed", *_PLACES, "train.micro_batch_tokens", "train.recompute")
    return {
        key: value for key, value in _flat(config).items() if key not in left_out and not key.startswith("cluster.")
    }


def record_sections(first: RunFolder, second: RunFolder) -> list[Section]:
    """Two runs side by side, section by section; a section without differences is there too.

    Raises:
        UserError: one was recorded by another version.
    """
    records = [run.whole_record() for run in (first, second)]
    inputs = [
        _flat({key: value for key, value in record.items() if key not in (*_WHEN, *_ELSEWHERE)}) for record in records
    ]
    differences = environment_differences(records[0]["environment"], records[1]["environment"])
    breaking = {each.key: (each.before, each.after) for each in differences if each.breaks_exactness}
    others = {each.key: (each.before, each.after) for each in differences if not each.breaks_exactness}
    return [
        Section("configuration", changed_configuration(first, second)),
        Section("code", _changed(*(_code(record["code"]) for record in records))),
        Section("inputs", _changed(*inputs)),
        Section("environment", breaking),
        Section("environment, without effect on a number", others),
    ]


def _code(code: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a code record that says what the code was."""
    package = code["package"]
    found: dict[str, Any] = {"burnish": package["version"], "burnish sha256": package["sha256"]}
    for name, repository in (("", code["repository"]), ("burnish ", package["repository"])):
        if repository is not None:
            diff = repository["diff"]
            found[f"{name}commit"] = repository["commit"]
            found[f"{name}branch"] = repository["branch"]
            found[f"{name}diff sha256"] = None if diff is None else diff["sha256"]
            found |= {f"{name}untracked {path}": facts["sha256"] for path, facts in repository["untracked"].items()}
    return found


def _changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (first.get(key, ABSENT), second.get(key, ABSENT)) for key in dict.fromkeys([*first, *second])}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; an empty mapping is a leaf."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
