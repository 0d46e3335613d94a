"""The record of an evaluation, and whether its files are what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.errors import DataError
from burnish.reproducibility.files import sha256_of_file

FORMAT = 1
SEALED = ("items.jsonl", "samples.jsonl", "batches.jsonl", "scores.jsonl")

_NEEDED = {"label": str, "settings": dict, "origin": dict, "samples_per_item": int, "status": str}


def read_eval_record(folder: Path) -> dict[str, Any]:
    """The content of `eval.json`, which has what every reader needs.

    Raises:
        DataError: there is none, it is damaged, or it is of another format.
    """
    path = folder / "eval.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not the record of an evaluation ({error})") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: not the record of an evaluation (no JSON object)")
    if record.get("format") != FORMAT:
        raise DataError(f"{path}: format {record.get('format')!r} is not {FORMAT}: another version of burnish wrote it")
    if damaged := [key for key, kind in _NEEDED.items() if not isinstance(record.get(key), kind)]:
        raise DataError(f"{path}: not the record of an evaluation (what it says of {', '.join(damaged)} is damaged)")
    return record


def hashes_of(folder: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """The hash of each sealed file that is there, and of all that the record says but the hashes themselves."""
    content = {key: value for key, value in record.items() if key != "sha256"}
    hashes = {name: sha256_of_file(folder / name) for name in SEALED if (folder / name).is_file()}
    return {**hashes, "eval.json": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def changed_files(folder: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """By the name of a file, how it is not what was written; empty where every hash is what eval.json says.

    Every byte is read: about a second for each gigabyte of answers.

    Raises:
        DataError: the evaluation is not finished.
    """
    if record["status"] != "done":
        raise DataError(f"{folder}: the evaluation is not finished; the same `burnish eval` goes on with it")
    kept, found = record.get("sha256"), hashes_of(folder, record)
    written: Mapping[str, Any] = kept if isinstance(kept, dict) else {}
    return {
        name: "is not what was written: its hash is another than eval.json says" if name in found else "is gone"
        for name in (*SEALED, "eval.json")
        if name not in found or found[name] != written.get(name)
    }


def require_unchanged(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse an evaluation of which any file is not what was written.

    Raises:
        DataError: one is not, or the evaluation is not finished.
    """
    for name, how in changed_files(folder, record).items():
        raise DataError(
            f"{folder}/{name} {how}; `burnish eval verify {folder}` says more, and an evaluation into another folder "
            "(--evals_folder) begins anew"
        )
