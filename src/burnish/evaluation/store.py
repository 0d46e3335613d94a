"""The folder of one evaluation. Every figure is computed from its files, and each can be checked against the others.

eval.json       what was evaluated: task, settings, model, how it ran; once it is done, the hash of every other file
items.jsonl     one line per item: what was asked, and what is right
samples.jsonl   one line per answer, appended while it runs
batches.jsonl   one line per batch: when it ended, how many tokens, how long it took
scores.jsonl    one line per item, written at the end
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burnish.errors import DataError, UserError
from burnish.evaluation.sealed import FORMAT, changed_files, hashes_of, read_eval_record
from burnish.evaluation.table import ScoreTable, table_of_store
from burnish.reproducibility.files import append_lines, locked, replace_folder, write_text
from burnish.reproducibility.run_folder import read_jsonl

Line = Mapping[str, Any]


class EvalStore:
    """A store that exists."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path) -> EvalStore:
        """A store by its folder.

        Raises:
            DataError: there is none, or another version wrote it.
        """
        read_eval_record(path)
        return cls(path)

    @classmethod
    def find(cls, store: str, evals_folder: Path) -> EvalStore:
        """A store by its path, its name, an unambiguous beginning of it, or `last`.

        Raises:
            DataError: it is none, or another version wrote it.
            UserError: there is none of that name, or several.
        """
        if (Path(store) / "eval.json").is_file() or len(Path(store).parts) != 1:
            return cls.open(Path(store))
        made = sorted(path.parent for path in evals_folder.glob("*/eval.json"))
        if store == "last":
            found = sorted(made, key=lambda path: str(read_eval_record(path).get("created")))[-1:]
        else:
            found = [path for path in made if path.name.startswith(store)]
        if store == "last" and not made:
            raise UserError(f"there is no eval store in {evals_folder} yet; `burnish eval MODEL --task TASK` makes one")
        if len(found) != 1:
            what = "several stores begin" if found else "no store begins"
            names = ", ".join(path.name for path in (found or made)[-5:]) or "none yet"
            raise UserError(f"{what} with {store!r} in {evals_folder}: {names}")
        return cls.open(found[0])

    @classmethod
    def create(cls, path: Path, record: Line, items: Iterable[Line]) -> EvalStore:
        """Make a store with nothing sampled yet; `record` becomes eval.json."""

        def write(aside: Path) -> None:
            (aside / "items.jsonl").write_text(_jsonl(items), encoding="utf-8")
            (aside / "samples.jsonl").touch()
            (aside / "batches.jsonl").touch()
            (aside / "eval.json").write_text(json.dumps({"format": FORMAT, **record}, indent=1), encoding="utf-8")

        replace_folder(path, write)
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for this process.

        Raises:
            UserError: another process evaluates into it.
        """
        with locked(self.path, f"{self.path} is being written by another process"):
            yield

    @property
    def is_done(self) -> bool:
        """Whether everything was sampled and scored."""
        return bool(self.record()["status"] == "done")

    def record(self) -> dict[str, Any]:
        """The content of eval.json."""
        return read_eval_record(self.path)

    def items(self) -> list[dict[str, Any]]:
        """The lines of items.jsonl."""
        return read_jsonl(self.path / "items.jsonl")

    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl."""
        return read_jsonl(self.path / "samples.jsonl")

    def batches(self) -> list[dict[str, Any]]:
        """The lines of batches.jsonl."""
        return read_jsonl(self.path / "batches.jsonl")

    def table(self) -> ScoreTable:
        """See table_of_store."""
        return table_of_store(self.path)

    def keep_whole_batches(self) -> int:
        """Drop what a killed process left of its last batch; the number of answers that stay.

        Raises:
            DataError: what stands there was not written by such an evaluation.
        """
        samples, batches = self.samples(), self.batches()
        kept, num_samples = [], 0
        for batch in batches:
            if num_samples + batch["samples"] > len(samples):
                break
            num_samples += batch["samples"]
            kept.append(batch)
        self._require_order(samples[:num_samples])
        for name, lines in (("samples.jsonl", samples[:num_samples]), ("batches.jsonl", kept)):
            if (text := _jsonl(lines)) != (self.path / name).read_text(encoding="utf-8"):
                write_text(self.path / name, text)
        return num_samples

    def add(self, samples: Sequence[Line], batch: Line) -> None:
        """Append a batch. Its own line comes last: answers without one are a batch that was cut off."""
        append_lines(self.path / "samples.jsonl", *samples)
        append_lines(self.path / "batches.jsonl", {**batch, "samples": len(samples)})

    def seal(self, efficiency: Line) -> None:
        """Write scores.jsonl, then the hash of every file into eval.json."""
        write_text(self.path / "scores.jsonl", _jsonl(score_lines(self.items(), self.samples())))
        record = {**self.record(), "status": "done", "efficiency": dict(efficiency)}
        record["sha256"] = hashes_of(self.path, record)
        write_text(self.path / "eval.json", json.dumps(record, indent=1))

    def verify(self) -> list[str]:
        """What is wrong with the store, a line for each fault; nothing where it is as it was written.

        Raises:
            DataError: the evaluation is not finished.
        """
        changed = changed_files(self.path, self.record())
        faults = [f"{name} {how}" for name, how in changed.items()]
        if "is gone" in changed.values():
            return faults
        try:
            computed = score_lines(self.items(), self.samples())
            kept = read_jsonl(self.path / "scores.jsonl")
        except DataError as error:
            return [*faults, str(error)]
        except (KeyError, TypeError, AttributeError) as error:  # whoever changed a line may have left anything there
            return [*faults, f"a line is not as it was written: {type(error).__name__}: {error}"]
        for new, old in zip(computed, kept, strict=False):
            if new != old:
                faults.append(f"scores.jsonl: item {old.get('id')!r} is {_told(old)}, and its samples say {_told(new)}")
        if len(computed) != len(kept):
            faults.append(f"scores.jsonl has {len(kept)} items, items.jsonl has {len(computed)}")
        return faults

    def _require_order(self, samples: Sequence[Line]) -> None:
        count = self.record()["samples_per_item"]
        expected = ((item["id"], number) for item in self.items() for number in range(count))
        for line, (name, number) in zip(samples, expected, strict=False):
            if (line.get("id"), line.get("sample")) != (name, number):
                raise DataError(
                    f"{self.path}/samples.jsonl: holds {line.get('id')!r} where {name!r} belongs: start anew"
                )


def score_lines(items: Sequence[Line], samples: Sequence[Line]) -> list[dict[str, Any]]:
    """The lines of scores.jsonl: the scores of each item's samples in order, None for one that has none.

    Raises:
        DataError: a sample has no item, stands there twice, or is missing.
    """
    scores: dict[str, dict[int, float | None]] = {item["id"]: {} for item in items}
    for line in samples:
        own = scores.get(line["id"])
        if own is None:
            raise DataError(f"samples.jsonl: {line['id']!r} is no item")
        if line["sample"] in own:
            raise DataError(f"samples.jsonl: sample {line['sample']} of item {line['id']!r} stands there twice")
        own[line["sample"]] = line["score"]
    count = max((len(own) for own in scores.values()), default=0)
    lines = []
    for item in items:
        own = scores[item["id"]]
        if sorted(own) != list(range(count)):
            raise DataError(f"samples.jsonl: item {item['id']!r} has {len(own)} samples, others have {count}")
        in_order = [own[number] for number in range(count)]
        lines.append({"id": item["id"], "cluster": item["cluster"], "slices": item["slices"], "scores": in_order})
    return lines


def _told(line: Line) -> str:
    """A line of scores.jsonl but for its name; what is empty everywhere is left out."""
    return ", ".join(f"{key} {value}" for key, value in line.items() if key != "id" and value not in (None, {}))


def _jsonl(lines: Iterable[Line]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
