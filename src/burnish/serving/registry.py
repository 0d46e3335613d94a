"""Checkpoints that may be deployed, each with the evaluation that speaks for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from burnish.errors import DataError, UserError
from burnish.evaluation.figures import mean_figure
from burnish.evaluation.store import EvalStore
from burnish.models.load import inspect_model
from burnish.reproducibility.files import write_text
from burnish.reproducibility.record import model_digest, model_record, quick_fingerprint
from burnish.reproducibility.run_folder import utc_now

_FILE = "registry.jsonl"


def register(weights_folder: Path, checkpoint: str, stores: Sequence[EvalStore], *, is_forced: bool) -> dict[str, Any]:
    """Note that a checkpoint below the weights folder may be deployed. Returns the entry.

    Raises:
        UserError: it lies elsewhere, or no evaluation of just these weights is there and it is not forced.
        DataError: a store is not whole.
    """
    facts = inspect_model(checkpoint)
    root, folder = weights_folder.resolve(), Path(facts.source).resolve()
    if not folder.is_relative_to(root):
        raise UserError(f"{checkpoint}: does not lie below {weights_folder}, from where the server takes weights")
    digest = model_digest(model_record(facts.source, base=facts.base, commit=facts.commit))
    evaluations = []
    for store in stores:
        if not store.is_done:
            raise DataError(f"{store.path}: this evaluation is not finished")
        record = store.record()
        if record["origin"]["model"].get("sha256") != digest:
            raise UserError(f"{store.path}: is an evaluation of other weights than {folder}")
        if faults := store.verify():
            raise DataError(f"{store.path}: {faults[0]}")
        figure = mean_figure(store.table())
        evaluations.append(
            {
                "store": str(store.path),
                "task": record["task"]["source"],
                "measure": figure.measure,
                "value": figure.value,
                "interval": [figure.low, figure.high],
                "n": figure.n,
            }
        )
    if not evaluations and not is_forced:
        raise UserError(
            f"{checkpoint}: no evaluation speaks for it: run `burnish eval` on it and give --eval STORE, or --force"
        )
    entry = {
        "path": folder.relative_to(root).as_posix(),
        "fingerprint": quick_fingerprint(facts.source, base=facts.base, commit=facts.commit),
        "evaluations": evaluations,
        "forced": not evaluations,
        "registered": utc_now(),
    }
    file = weights_folder / _FILE
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    write_text(file, before + json.dumps(entry) + "\n")
    return entry


def find_entry(weights_folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """What was registered of weights with this fingerprint, the newest.

    Raises:
        DataError: what was registered cannot be read.
    """
    file = weights_folder / _FILE
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        entries = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read: it must hold one entry of `burnish deploy register` a line"
        ) from error
    return next((each for each in reversed(entries) if each["fingerprint"] == fingerprint), None)
