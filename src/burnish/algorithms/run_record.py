"""What a run's record says when it begins, and what must still be so when it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from burnish.config.loading import changed_settings, config_hash
from burnish.config.schema import ClusterConfig, MetricsConfig, RunConfig
from burnish.data.rows import read_rows
from burnish.models.load import ModelFacts
from burnish.reproducibility.code_state import CodeState, package_sha256
from burnish.reproducibility.environment import environment_differences, environment_record
from burnish.reproducibility.files import sha256_of_file
from burnish.reproducibility.record import model_record, source_hash, tokenizer_record
from burnish.reproducibility.run_folder import RECORD_FORMAT, utc_now

DETERMINISM = {
    "torch_deterministic_algorithms": True,
    "random_draws": "each is seeded by blake2b of the root seed, its purpose and its place; no generator has a state",
    "not_covered": [
        "another version of torch, another processor or another number of threads may round otherwise",
        "rewards of your own that read the clock, the network or an unseeded generator",
        "answers of a judge or environment behind a network",
    ],
}


_ELSEWHERE = {"cluster": ClusterConfig(), "metrics": MetricsConfig()}  # a run may move

# what decides in which order the sums of a step are added, as it is by default
_ONE_PROCESS = {"kind": "local", "learners": 1, "tensor_parallel": 1, "replicas": 1}


class Recorded(Protocol):
    """What a run reads, as far as its record is concerned."""

    @property
    def model(self) -> ModelFacts:
        """The model to train."""
        ...

    def record(self) -> dict[str, Any]:
        """Fingerprints of what is read beside model and configuration."""
        ...


def new_record(config: RunConfig, inputs: Recorded, code: CodeState, *, measure: str) -> dict[str, Any]:
    """The content of run.json when a run begins."""
    return {
        "format": RECORD_FORMAT,
        "created": utc_now(),
        "status": "running",
        "seed": config.seed,
        "measure": measure,
        "code": code.record,
        "environment": environment_record(config.model.num_threads),
        "determinism": DETERMINISM,
        "settings": changed_settings(config),
        "files": _files_read(config),
        "parents": _runs_that_made(inputs.model),
        **fingerprints(config, inputs),
    }


def fingerprints(config: RunConfig, inputs: Recorded) -> dict[str, Any]:
    """What must be the same for a run to go on as the same run."""
    model = inputs.model
    return {
        "config_sha256": config_hash(config.model_copy(update=_ELSEWHERE)),
        "model": model_record(model.source, base=model.base, commit=model.commit),
        "tokenizer": tokenizer_record(model.tokenizer),
        **inputs.record(),
        "loss": own_code(config),
    }


def changed_fingerprints(record: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed since a run began, or since a change that its user allowed: names, with the parts that did."""
    allowed = record.get("changes", ())
    before = {**record, **(allowed[-1]["now"] if allowed else {})}
    return [_named(name, before.get(name), value) for name, value in now.items() if before.get(name) != value]


def inexact(record: Mapping[str, Any], config: RunConfig) -> list[str]:
    """Why a run that goes on here may not give the same bits."""
    environment = environment_record(config.model.num_threads)
    found = [str(each) for each in environment_differences(record["environment"], environment) if each.breaks_exactness]
    layout = {key: record["settings"].get(f"cluster.{key}", default) for key, default in _ONE_PROCESS.items()}
    now = {key: getattr(config.cluster, key) for key in _ONE_PROCESS}
    if layout != now:
        words = (f"cluster.{key} {before} -> {now[key]}" for key, before in layout.items() if before != now[key])
        found.append(f"{', '.join(words)}: sums are added in another order")
    if package_sha256() != record["code"]["package"]["sha256"]:
        found.append("burnish itself is not what the run began with")
    return found


def own_code(config: RunConfig) -> dict[str, str | None]:
    """Fingerprints of the user's functions that a loss names: a resumed run must find the same ones.

    Raises:
        ConfigError: one cannot be imported.
    """
    section: BaseModel | None = getattr(config, "loss", None)
    paths = [] if section is None else sorted(set(_import_paths(section.model_dump())))
    return {path: source_hash(path, "loss") for path in paths}


def _files_read(config: RunConfig) -> dict[str, Any]:
    """Size, hash and the first row's fields of each file of data, by the setting that names it."""
    found = {}
    for section in ("data", "task"):
        for name in ("source", "held_out_source"):
            key, source = f"{section}.{name}", getattr(getattr(config, section, None), name, None)
            if source is not None and (path := Path(source)).is_file():
                fields = sorted(next((row for _, row in read_rows(key, source)), {}))
                size = path.stat().st_size
                found[key] = {"path": source, "bytes": size, "sha256": sha256_of_file(path), "fields": fields}
    return found


def _runs_that_made(model: ModelFacts) -> list[dict[str, str]]:
    """The runs whose checkpoints or exports the model and its base lie in."""
    found = []
    for folder in (Path(each).resolve() for each in (model.source, model.base) if each is not None):
        run = next((each for each in folder.parents if (each / "run.json").is_file()), None)
        if run is not None:
            found.append({"run": run.name, "folder": folder.relative_to(run).as_posix()})
    return found


def _named(name: str, before: Any, now: Any) -> str:
    """What of a record changed: the name, and the entries where there are some; of a model the files."""
    name = name.removesuffix("_sha256")
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return name
    entries = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    if entries == ["sha256"] and isinstance(before["sha256"], Mapping):
        old, new = before["sha256"], now["sha256"]
        entries = [Path(key).name for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    return f"{name} ({', '.join(entries)})"


def _import_paths(value: Any) -> Iterator[str]:
    if isinstance(value, str) and ":" in value:
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _import_paths(key)
            yield from _import_paths(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _import_paths(each)
