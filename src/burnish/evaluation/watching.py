"""Two evaluations of the same items, read while they grow: an eval store, or the held-out items of a run.

Items are paired in the order of the items, which was fixed before anything was answered, up to the first that is not
answered by both. What came early because it is short, or easy, can so not decide. Items of one cluster are alike, so
that they are one observation: their mean, once all of them are in.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.errors import DataError
from burnish.evaluation.comparable import require_same_items, require_same_settings
from burnish.evaluation.sealed import read_eval_record, require_unchanged
from burnish.evaluation.table import run_and_step, table_of_run
from burnish.reproducibility.run_folder import json_object


@dataclass(slots=True, kw_only=True)
class GrowingEvaluation:
    """The items of one evaluation, and the scores that are in: `scores[id][sample]`, NaN for an answer without one.

    `questions` and `clusters` are by id, in the order of the items; an item without a cluster is not in `clusters`.
    """

    label: str
    questions: Mapping[str, str]
    clusters: Mapping[str, str]
    settings: Mapping[str, Any]
    samples_per_item: int
    samples_file: Path
    store: Path | None
    is_done: bool
    scores: dict[str, dict[int, float]] = field(default_factory=dict)
    _read_bytes: int = 0

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the items, in their order."""
        return tuple(self.questions)

    def refresh(self) -> None:
        """Read what was added. A last line without its end is left for the next time.

        Raises:
            DataError: a line that is no sample of these items.
        """
        if self.store is not None:  # before the samples: once it says done, they are all there
            self.is_done = read_eval_record(self.store)["status"] != "running"
        if not self.samples_file.is_file():
            return
        if self.samples_file.stat().st_size < self._read_bytes:  # begun anew, or cut back by a resume
            self._read_bytes = 0
            self.scores.clear()
        with self.samples_file.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._add(line)
                self._read_bytes += len(line)

    def item_score(self, item_id: str) -> float | None:
        """Mean score of an item's samples; None while one is missing, NaN if one has no score."""
        samples = self.scores.get(item_id, {})
        if len(samples) < self.samples_per_item:
            return None
        return math.fsum(samples.values()) / len(samples)

    def _add(self, line: bytes) -> None:
        try:
            sample = json.loads(line)
            item_id, index, score = sample["id"], int(sample.get("sample", 0)), sample["score"]
            value = math.nan if score is None else float(score)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self.samples_file}: no sample in the line at byte {self._read_bytes}") from error
        if item_id not in self.questions or not 0 <= index < self.samples_per_item:
            raise DataError(f"{self.samples_file}: sample {index} of item {item_id!r} is not of this evaluation")
        self.scores.setdefault(item_id, {})[index] = value


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedScores:
    """Scores of A and B on the units, items or clusters, that both answered, in order.

    `num_waiting` more are answered by both after one that is not; `num_unscored` are left out because an answer has no
    score.
    """

    unit: str
    scores_a: tuple[float, ...]
    scores_b: tuple[float, ...]
    num_units: int
    num_waiting: int
    num_unscored: int

    @property
    def is_complete(self) -> bool:
        """Whether none is missing."""
        return len(self.scores_a) + self.num_unscored == self.num_units


def open_growing(what: str, runs_folder: Path) -> GrowingEvaluation:
    """An eval store by its folder; or the last evaluation of a run, or that of RUN@STEP. Samples are not read yet.

    Raises:
        UserError: there is no such store, run or step.
        DataError: it has no items yet, its files are not those of an eval store, or one was changed after its end.
    """
    if (Path(what) / "eval.json").is_file():
        return _open_store(Path(what))
    run, step = run_and_step(what, runs_folder)
    table = table_of_run(run, step)
    file = run.path / "evaluations" / f"step-{table.origin['step']:06d}.jsonl"
    questions, clusters = _items(file)
    return GrowingEvaluation(
        label=table.label,
        questions=questions,
        clusters=clusters,
        settings=table.settings,
        samples_per_item=1,
        samples_file=file,
        store=None,
        is_done=True,
    )


def require_same_questions(a: GrowingEvaluation, b: GrowingEvaluation) -> None:
    """Refuse a comparison of different items or settings, and say how they differ.

    Raises:
        DataError: they differ.
    """
    require_same_items(a, b)
    changed = [item for item, question in a.questions.items() if b.questions[item] != question]
    if changed:
        raise DataError(f"{len(changed)} items are asked differently in {a.label} and {b.label}: first {changed[0]!r}")
    if a.samples_per_item != b.samples_per_item:
        raise DataError(f"{a.label} has {a.samples_per_item} samples per item and {b.label} has {b.samples_per_item}")
    require_same_settings(a, b)


def paired_so_far(a: GrowingEvaluation, b: GrowingEvaluation) -> PairedScores:
    """Pair what was read, in A's order of items."""
    units: dict[tuple[str, str], list[str]] = {}
    for item_id in a.questions:
        unit = ("cluster", a.clusters[item_id]) if item_id in a.clusters else ("item", item_id)
        units.setdefault(unit, []).append(item_id)
    scores_a, scores_b = [], []
    waiting = unscored = 0
    is_prefix = True
    for items in units.values():
        score_a, score_b = _mean(a, items), _mean(b, items)
        if score_a is None or score_b is None:
            is_prefix = False
        elif not is_prefix:
            waiting += 1
        elif math.isnan(score_a) or math.isnan(score_b):
            unscored += 1
        else:
            scores_a.append(score_a)
            scores_b.append(score_b)
    return PairedScores(
        unit="clusters" if a.clusters else "items",
        scores_a=tuple(scores_a),
        scores_b=tuple(scores_b),
        num_units=len(units),
        num_waiting=waiting,
        num_unscored=unscored,
    )


def _mean(evaluation: GrowingEvaluation, items: Sequence[str]) -> float | None:
    scores = [score for item in items if (score := evaluation.item_score(item)) is not None]
    return math.fsum(scores) / len(scores) if len(scores) == len(items) else None


def _open_store(path: Path) -> GrowingEvaluation:
    record = read_eval_record(path)
    if record["status"] == "done":
        require_unchanged(path, record)
    questions, clusters = _items(path / "items.jsonl")
    return GrowingEvaluation(
        label=path.name,
        questions=questions,
        clusters=clusters,
        settings=record["settings"],
        samples_per_item=record["samples_per_item"],
        samples_file=path / "samples.jsonl",
        store=path,
        is_done=record["status"] != "running",
    )


def _items(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What each item asks and what is right, in order; and the cluster of each that has one."""
    if not file.is_file():
        raise DataError(f"{file} is not there yet: the evaluation has not begun")
    questions: dict[str, str] = {}
    clusters: dict[str, str] = {}
    for number, item in _objects(file):
        item_id = item.get("id")
        if not isinstance(item_id, str):
            raise DataError(f"{file}, line {number}: an item needs an id")
        if item_id in questions:
            raise DataError(f"{file}, line {number}: the id {item_id!r} is there twice")
        questions[item_id] = json.dumps([item.get("messages", item.get("prompt")), item.get("answer")])
        if item.get("cluster") is not None:
            clusters[item_id] = str(item["cluster"])
    if not questions:
        raise DataError(f"{file} has no items")
    return questions, clusters


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):
                yield number, json_object(line, f"{file}, line {number}")
