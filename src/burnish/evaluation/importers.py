"""Results of other tools as eval stores: a table of outcomes, votes of judges, logs of lm-eval, logs of inspect."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import numbers
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.data.rows import Row, read_rows
from burnish.errors import DataError
from burnish.evaluation.store import EvalStore, score_lines
from burnish.evaluation.table import items_sha256
from burnish.reproducibility.files import sha256_of_file
from burnish.reproducibility.run_folder import utc_now

_ITEM = "item"
_CLUSTER = "cluster"
_JUDGE = ("judge", "prompting")  # the columns that say who judged; the second may be missing
_VOTES = ("gold", "winner_ab", "winner_ba")
_INSPECT_VALUES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # correct, partial, incorrect, no answer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Imported:
    """One model's results on one task, as they stood in a file."""

    label: str
    items: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    scoring: Mapping[str, Any]


def import_csv(file: Path, evals_folder: Path) -> list[EvalStore]:
    """A store for each column of scores in a table with a column `item`.

    A column `cluster` says what items share; other columns with something else than numbers become slices. An item that
    stands there several times has several samples; a cell that is empty or nan is an answer without a score.

    Raises:
        DataError: there is no such column or no scores, one is infinite, or the items have different numbers of rows.
    """
    rows = _table_rows(file)
    names = [name for name in rows[0] if name not in (_ITEM, _CLUSTER)]
    scores = [name for name in names if all(_is_score(row[name], f"{file}, column {name!r}") for row in rows)]
    slices = [name for name in names if name not in scores]
    if not scores:
        raise DataError(f"{file}: no column has numbers only: there are no scores")
    firsts = {row[_ITEM]: row for row in reversed(rows)}
    ordered = dict.fromkeys(row[_ITEM] for row in rows)
    items = [
        _item(name, cluster=firsts[name].get(_CLUSTER), slices={key: firsts[name][key] for key in slices})
        for name in ordered
    ]
    stores = []
    for column in scores:
        counted = Counter[str]()
        samples = []
        for row in rows:
            score = float(row[column].strip() or math.nan)
            samples.append(_sample(row[_ITEM], counted[row[_ITEM]], None if math.isnan(score) else score))
            counted[row[_ITEM]] += 1
        found = _Imported(label=column, items=items, samples=samples, scoring={"imported": "csv"})
        stores.append(_store(file, evals_folder, found))
    return stores


def import_votes(file: Path, evals_folder: Path) -> list[EvalStore]:
    """A store for each judge in a table of votes on pairs of answers, each asked about in both orders.

    Its columns: `item`, `judge`, `gold` (1 or 2, the better answer), and `winner_ab` and `winner_ba` (the answer that
    was preferred, 1 or 2 by the same numbers, when 1 stood first and when 2 did; empty where the vote could not be
    read, which has no score). A column `prompting` belongs to the judge; any other column becomes a slice, and with
    the item it names what was judged. The two votes are an item's two samples.

    Raises:
        DataError: a column is missing, a vote is something else, or a judge voted twice on an item.
    """
    rows = _table_rows(file)
    if missing := [name for name in (_JUDGE[0], *_VOTES) if name not in rows[0]]:
        raise DataError(f"{file}: has no column {', '.join(missing)}")
    who = [name for name in _JUDGE if name in rows[0]]
    slices = [name for name in rows[0] if name not in (_ITEM, *who, *_VOTES)]
    by_judge: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for line, row in enumerate(rows, start=2):
        by_judge[" ".join(row[name] for name in who)].append((line, row))
    stores = []
    for judge, votes in by_judge.items():
        items, samples = [], []
        for line, row in votes:
            place = f"{file}, line {line}"
            gold = _vote(row, "gold", place)
            if gold is None:
                raise DataError(f"{place}: gold is empty; it must be 1 or 2")
            name = "/".join(row[each] for each in (*slices, _ITEM))
            items.append(_item(name, answer=gold, slices={each: row[each] for each in slices}))
            for number, column in enumerate(_VOTES[1:]):
                vote = _vote(row, column, place)
                score = None if vote is None else float(vote == gold)
                samples.append(_sample(name, number, score, text=vote or "", parsed=vote))
        scoring = {"imported": "votes", "orders": list(_VOTES[1:])}
        stores.append(_store(file, evals_folder, _Imported(label=judge, items=items, samples=samples, scoring=scoring)))
    return stores


def import_lm_eval(file: Path, evals_folder: Path) -> list[EvalStore]:
    """A store for each filter and metric of a `samples_*.jsonl` of lm-eval; metrics that are no numbers are left out.

    Raises:
        DataError: it is no such file, or has no metric that is a number.
    """
    by_filter: dict[str, list[Row]] = defaultdict(list)
    for place, row in read_rows("file", str(file)):
        if not {"doc_id", "doc", "metrics", "filter"} <= row.keys():
            raise DataError(f"{place}: not a sample of lm-eval: it needs doc_id, doc, metrics and filter")
        by_filter[str(row["filter"])].append(row)
    stores = []
    for name, rows in by_filter.items():
        metrics = [each for each in rows[0]["metrics"] if all(_is_number(row.get(each)) for row in rows)]
        for metric in metrics:
            items = [
                _item(str(row["doc_id"]), answer=str(row.get("target", "")), extra={"doc": row["doc"]}) for row in rows
            ]
            samples = [
                _sample(str(row["doc_id"]), 0, _or_none(row[metric]), text=_first_text(row.get("filtered_resps")))
                for row in rows
            ]
            hashes = [[row["doc_id"], row.get("prompt_hash"), row.get("target_hash")] for row in rows]
            prompts = hashlib.sha256(json.dumps(sorted(hashes, key=str)).encode()).hexdigest()
            task = re.sub(r"^samples_|_\d{4}-\d\d-\d\dT.*$", "", file.stem)
            scoring = {"imported": "lm-eval", "task": task, "filter": name, "metric": metric, "prompts": prompts}
            found = _Imported(label=file.parent.name or "model", items=items, samples=samples, scoring=scoring)
            stores.append(_store(file, evals_folder, found))
    if not stores:
        raise DataError(f"{file}: no metric of it is a number for every document")
    return stores


def import_inspect(file: Path, evals_folder: Path) -> list[EvalStore]:
    """A store for each scorer of a JSON log of inspect; its epochs are the samples of an item.

    C, P, I and N count as 1, 0.5, 0 and 0, as they do there.

    Raises:
        DataError: it is no such log, it is of a run that failed, or a score is no number.
    """
    try:
        log = json.loads(file.read_text(encoding="utf-8"))
        rows, model, task = log["samples"], str(log["eval"]["model"]), str(log["eval"]["task"])
        scorers = list(dict.fromkeys(name for row in rows for name in row.get("scores") or {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a JSON log of inspect (inspect log convert --to json makes one)") from error
    if log.get("status") != "success":
        raise DataError(
            f"{file}: the evaluation ended with status {log.get('status')!r}: its samples are not all there"
        )
    if not scorers:
        raise DataError(f"{file}: no sample has a score")
    firsts = {str(row["id"]): row for row in reversed(rows)}
    items = [
        _item(name, answer=json.dumps(firsts[name].get("target")), messages=_asked(firsts[name].get("input")))
        for name in dict.fromkeys(str(row["id"]) for row in rows)
    ]
    stores = []
    for scorer in scorers:
        samples = []
        for row in rows:
            score = (row.get("scores") or {}).get(scorer)
            value = None if score is None else _inspect_value(score.get("value"), f"{file}, sample {row['id']}")
            text = str(((row.get("output") or {}).get("completion")) or "")
            parsed = None if score is None else score.get("answer")
            samples.append(_sample(str(row["id"]), int(row.get("epoch", 1)) - 1, value, text=text, parsed=parsed))
        found = _Imported(
            label=model, items=items, samples=samples, scoring={"imported": "inspect", "task": task, "scorer": scorer}
        )
        stores.append(_store(file, evals_folder, found))
    return stores


def _table_rows(file: Path) -> list[Row]:
    """The rows of a table with commas that has a column `item`."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows: list[Row] = list(csv.DictReader(lines, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a table with commas: {error}") from error
    if not rows or _ITEM not in rows[0]:
        raise DataError(f"{file}: needs a head line with a column {_ITEM!r}, and rows")
    if short := next((n for n, row in enumerate(rows, start=2) if None in row or None in row.values()), None):
        raise DataError(f"{file}, line {short}: has more or fewer cells than the head line")
    return rows


def _vote(row: Row, column: str, place: str) -> str | None:
    """Which answer a cell prefers, or nothing where it is empty."""
    vote = str(row[column]).strip()
    if vote not in ("", "1", "2"):
        raise DataError(f"{place}: {column} is {vote!r}; it must be 1 or 2, or empty where the vote could not be read")
    return vote or None


def _item(name: str, **known: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "cluster": None,
        "slices": {},
        "messages": None,
        "prompt": None,
        "answer": None,
        "extra": {},
    }
    return {"id": name, **nothing, **known}


def _sample(name: str, number: int, score: float | None, *, text: str = "", parsed: Any = None) -> dict[str, Any]:
    return {
        "id": name,
        "sample": number,
        "token_ids": [],
        "text": text,
        "finish_reason": "imported",
        "logprob": None,
        "parsed": None if parsed is None else str(parsed),
        "score": score,
        "failure": "no score in the file" if score is None else None,
    }


def _store(file: Path, evals_folder: Path, found: _Imported) -> EvalStore:
    """The store of these results; importing the same again finds it."""
    digest = sha256_of_file(file)
    key = hashlib.sha256(json.dumps([digest, found.label, dict(found.scoring)], sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", found.label)[:56].strip("-.") or "imported"
    path = evals_folder / f"{name}-{key[:6]}"
    if path.exists():
        store = EvalStore.open(path)
        if store.record().get("key_sha256") != key:
            raise DataError(f"{path} holds another evaluation: choose another --evals-folder")
        if store.is_done:
            return store
    in_order = _in_order(file, found)
    items_hash = items_sha256(found.items)
    record = {
        "label": found.label,
        "task": {"source": str(file), "kind": "imported", "num_items": len(found.items), "items": items_hash},
        "settings": {"items": items_hash, "scoring": dict(found.scoring)},
        "origin": {
            "model": {"source": found.label},
            "run": None,
            "step": None,
            "seed": None,
            "was_selected_on": False,
            "imported": {"file": str(file), "sha256": digest},
        },
        "samples_per_item": len(found.samples) // len(found.items),
        "status": "running",
        "created": utc_now(),
        "key_sha256": key,
    }
    store = EvalStore.create(path, record, found.items) if not path.exists() else EvalStore(path)
    with store.locked():
        if store.keep_whole_batches() == 0:
            store.add(in_order, {"items": len(found.items)})
        store.seal({})
    return store


def _in_order(file: Path, found: _Imported) -> list[Mapping[str, Any]]:
    """The samples in the order of the items, if they fit.

    Raises:
        DataError: an item stands there twice, items have different numbers of samples, or none has a score.
    """
    if twice := next((name for name, count in Counter(i["id"] for i in found.items).items() if count > 1), None):
        raise DataError(f"{file}: item {twice!r} stands there twice")
    try:
        lines = score_lines(found.items, found.samples)
    except DataError as error:
        raise DataError(f"{file}: {str(error).removeprefix('samples.jsonl: ')}") from error
    if all(score is None for line in lines for score in line["scores"]):
        raise DataError(f"{file}: {found.label}: no item has a score")
    by_id: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in found.samples:
        by_id[line["id"]].append(line)
    return [line for item in found.items for line in sorted(by_id[item["id"]], key=lambda each: int(each["sample"]))]


def _asked(given: Any) -> list[dict[str, str]]:
    """An input of inspect, a text or a list of messages, as messages."""
    if isinstance(given, list):
        return [{"role": str(each.get("role")), "content": str(each.get("content"))} for each in given]
    return [{"role": "user", "content": str(given)}]


def _inspect_value(value: Any, place: str) -> float | None:
    found: Any = _INSPECT_VALUES.get(value) if isinstance(value, str) else value
    if not _is_number(found):
        raise DataError(f"{place}: score {value!r} is neither a number nor one of C, P, I, N")
    return _or_none(found)


def _first_text(responses: Any) -> str:
    """The first text in nested lists, or nothing: of likelihoods lm-eval keeps numbers."""
    while isinstance(responses, list) and responses:
        responses = responses[0]
    return responses if isinstance(responses, str) else ""


def _is_score(cell: str, place: str) -> bool:
    try:
        number = float(cell.strip() or math.nan)
    except ValueError:
        return False
    if math.isinf(number):
        raise DataError(f"{place}: {cell.strip()} is no score")
    return True


def _is_number(value: Any) -> bool:
    """A number that may be NaN, which is no score."""
    return isinstance(value, numbers.Real) and not math.isinf(value)


def _or_none(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
