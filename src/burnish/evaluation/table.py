"""Scores of one model on the items of one task: what every comparison reads, from an eval store or from a run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.errors import DataError, UserError
from burnish.evaluation.sealed import read_eval_record, require_unchanged
from burnish.reproducibility.differences import method_of
from burnish.reproducibility.run_folder import RunFolder, read_jsonl


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """Scores of one model on the items of one task: `scores_IK`, item by sample, NaN where an answer has no score."""

    label: str
    """What is shown: the run, the model."""
    ids: tuple[str, ...]
    """I items, unique."""
    scores_IK: NDArray[np.float64]
    clusters: tuple[str, ...] | None
    """What items share (a passage, a template); None: each item is its own."""
    slices: Mapping[str, tuple[str, ...]]
    """Name of a field -> its value per item."""
    settings: Mapping[str, Any]
    """What must be equal for a comparison: fingerprints of items and reward, how tokens were drawn."""
    origin: Mapping[str, Any]
    """What may differ: model, run, step, seed, and whether the checkpoint was picked on these very items."""


def table_of_store(folder: Path) -> ScoreTable:
    """The table of an eval store that is done, from its `scores.jsonl`.

    Every file is compared with its hash first; see changed_files for what that costs.

    Raises:
        DataError: the evaluation was not finished, or a file of it is not what was written.
    """
    record = read_eval_record(folder)
    require_unchanged(folder, record)
    lines = read_jsonl(folder / "scores.jsonl")
    clusters = [line["cluster"] for line in lines]
    if any(cluster is None for cluster in clusters) and any(cluster is not None for cluster in clusters):
        raise DataError(f"{folder}: some items have a cluster and some have none")
    names = list(lines[0]["slices"]) if lines else []
    return _table(
        label=str(record["label"]),
        place=str(folder),
        ids=[line["id"] for line in lines],
        scores=[line["scores"] for line in lines],
        clusters=None if not lines or clusters[0] is None else tuple(map(str, clusters)),
        slices={name: tuple(str(line["slices"][name]) for line in lines) for name in names},
        facts=(record["settings"], record["origin"]),
    )


def table_of_run(run: RunFolder, step: int | None = None) -> ScoreTable:
    """The held-out items of a run after `step`; None takes the last evaluation.

    Raises:
        UserError: the run was not evaluated then, or not at all.
        DataError: what is read was changed since the run ended.
    """
    steps = run.steps("evaluations")
    if not steps:
        raise UserError(f"run {run.path.name} has no evaluation yet")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise UserError(f"run {run.path.name} was not evaluated after step {step}; it was after {_shown(steps)}")
    run.require_unchanged(("config.yaml", f"evaluations/step-{chosen:06d}"))
    items = run.read_step("evaluations", chosen)
    record = run.record()
    config = run.config()
    return _table(
        label=run.path.name if step is None else f"{run.path.name}@{step}",
        place=str(run.path),
        ids=[item["id"] for item in items],
        scores=[[item["score"]] for item in items],
        clusters=None,
        slices={},
        facts=(
            _run_settings(items, record, config),
            {
                "model": record.get("model"),
                "run": run.path.name,
                "step": chosen,
                "seed": config.get("seed"),
                "method": method_of(config),
                "was_selected_on": 0 < chosen < steps[-1],  # a person chose it, and had seen these items' scores
                "selected_among": len(steps),
            },
        ),
    )


def read_table(what: str, runs_folder: Path) -> ScoreTable:
    """The table of an eval store's folder, of a run (path, name, its beginning, or `last`), or of RUN@STEP.

    Raises:
        UserError: there is nothing of that name, or it has no scores.
    """
    folder = Path(what)
    if (folder / "eval.json").is_file():
        return table_of_store(folder)
    return table_of_run(*run_and_step(what, runs_folder))


def run_and_step(what: str, runs_folder: Path) -> tuple[RunFolder, int | None]:
    """The run of RUN or RUN@STEP, and the step if there is one.

    Raises:
        UserError: there is no such run.
    """
    name, at, step = what.rpartition("@")
    if at and step.isdigit():
        return RunFolder.find(name, runs_folder), int(step)
    try:
        return RunFolder.find(what, runs_folder), None
    except UserError as error:
        raise UserError(f"{error}; an eval store is given by its folder, as evals/NAME") from error


def items_sha256(items: Iterable[Mapping[str, Any]]) -> str:
    """Fingerprint of what was asked: ids, messages and reference answers, in any order."""
    return _in_any_order([item["id"], item.get("messages"), item.get("answer")] for item in items)


def asked_settings(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was asked, as settings: the items, and where they all say it what a reward can see beside them."""
    settings = {"items": items_sha256(items)}
    if all("extra_sha256" in item for item in items):
        settings["extra"] = _in_any_order([item["id"], item["extra_sha256"]] for item in items)
    return settings


def _in_any_order(lines: Iterable[Any]) -> str:
    texts = sorted(json.dumps(line, ensure_ascii=False) for line in lines)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _table(
    *,
    label: str,
    place: str,
    ids: Sequence[str],
    scores: Sequence[Sequence[float | None]],
    clusters: tuple[str, ...] | None,
    slices: Mapping[str, tuple[str, ...]],
    facts: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> ScoreTable:
    if not ids:
        raise DataError(f"{place}: has no items")
    repeated = [each for each, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f"{place}: item {repeated[0]!r} stands there twice")
    if len({len(row) for row in scores}) != 1:
        raise DataError(f"{place}: some items have more samples than others")
    scores_IK = np.array(scores, dtype=np.float64)  # None becomes NaN
    settings, origin = facts
    return ScoreTable(
        label=label,
        ids=tuple(ids),
        scores_IK=scores_IK,
        clusters=clusters,
        slices=slices,
        settings=settings,
        origin=origin,
    )


def _run_settings(
    items: Sequence[Mapping[str, Any]], record: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    settings = asked_settings(items)
    if "rollout" not in config or "task" not in config:  # pairs, or answers to imitate: nothing was sampled
        return settings | {"scoring": {"measure": record.get("measure")}}
    rollout = config["rollout"]
    sampling = {"temperature": 0.0, "max_tokens": rollout["max_tokens"], "stop": list(rollout["stop"])}
    if config["task"].get("environment") is not None:
        sampling["max_turns"] = rollout["max_turns"]
    scoring = {"reward": record.get("reward"), "right_at": config["evaluation"]["right_at"]}
    return settings | {"scoring": scoring, "sampling": sampling}


def _shown(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps[-8:]]
    return ("..., " if len(steps) > 8 else "") + ", ".join(shown)
