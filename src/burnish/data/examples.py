"""Rows to examples, and the split by prompt; both are kept, so that rows are read once."""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.config.imports import import_by_path
from burnish.config.schema import DataConfig
from burnish.data.chat import Chat
from burnish.data.example_file import ExampleFile, ExampleWriter, Lazy, as_json
from burnish.data.rows import (
    Row,
    Told,
    existing_file,
    read_messages,
    read_rows,
    tell_nobody,
    transformed,
    with_system_prompt,
)
from burnish.errors import DataError, MachineError
from burnish.records import Example
from burnish.reproducibility.code_state import package_sha256
from burnish.reproducibility.environment import versions
from burnish.reproducibility.files import remove_oldest, sha256_of_file, write_aside
from burnish.reproducibility.record import source_hash
from burnish.reproducibility.seeds import seed_for

ToExample = Callable[[Chat, Row, str], Example]
"""A method of a frozen dataclass: its `repr` then says everything that decides what it makes of a row."""

_CHECKED_ROWS = 100
_MAX_KEPT_BYTES = 20e9
_SECONDS_UNTIL_LEFT_OVER = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSplit:
    """Examples to train on, read from a file one by one, and examples held out, one for each held-out prompt.

    `num_tokens` are those of each example to train on. `sides` has count and hash of both, in their order, `longest` is
    in tokens, `left_out` counts rows by reason.
    """

    train: Sequence[Example]
    num_tokens: NDArray[np.int32]
    held_out: tuple[Example, ...]
    sides: dict[str, Any]
    longest: int
    left_out: dict[str, int]

    def record(self) -> dict[str, Any]:
        """Counts and hashes of both sides, in their order."""
        return {"examples": self.sides}

    def summary(self) -> str:
        """Counts, for a person."""
        left_out = "".join(f"; {count} rows left out: {reason}" for reason, count in self.left_out.items())
        counts = f"{len(self.train)} to train on, {len(self.held_out)} held out"
        return f"{counts}, longest {self.longest} tokens{left_out}"


def load_examples(
    config: DataConfig,
    chat: Chat,
    to_example: ToExample,
    *,
    context_length: int,
    folder: Path,
    say: Callable[[str], None],
    told: Told = tell_nobody,
) -> ExampleSplit:
    """Read, transform, render and split by prompt, or find in `folder` what an earlier run made of the same data.

    The split depends on the prompts alone, not on the run's seed. Rows whose prompt is held out are never trained on,
    and each held-out prompt has one item, so that the items are independent of one another.

    Raises:
        DataError: a row is faulty (named by its line), most rows are too long, or too few remain.
        ConfigError: a file or the transform does not exist.
        MachineError: the disk is full.
    """
    longest = min(config.max_tokens or context_length, context_length)
    reader = _Reader(config, chat, to_example, longest, told)
    hashes = reader.hashes()
    path = folder / f"{reader.fingerprint(hashes)}.examples"
    split = _find(path, say)
    if split is not None and not _would_be_made_again(split, reader):
        say(f"{config.source}: the first rows give other examples than before (data.transform?): reading all again")
        split = None
    if split is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(path, lambda aside: _write(aside, reader, hashes))
        _tidy(folder)
        split = _find(path, say)
    if split is None:
        raise MachineError(f"{path} was written, and is gone or damaged: does something else work in {folder}?")
    return split


def _find(path: Path, say: Callable[[str], None]) -> ExampleSplit | None:
    """What is kept there, if it is there and whole."""
    try:
        file = ExampleFile(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        say(f"{error}: it is made again")
        return None
    sides = file.facts["sides"]
    num_train, num_held_out = (int(sides[name]["count"]) for name in ("train", "held_out"))
    return ExampleSplit(
        train=Lazy(file.example, range(num_train)),
        num_tokens=file.num_tokens[:num_train],
        held_out=tuple(Lazy(file.example, range(num_train, num_train + num_held_out))),
        sides=sides,
        longest=file.facts["longest"],
        left_out=file.facts["left_out"],
    )


def _would_be_made_again(split: ExampleSplit, reader: _Reader) -> bool:
    """Whether the first rows still give the first examples: a transform may call what its own file does not hold."""
    held_out = {example.id for example in split.held_out}
    anew = (each for each in reader.read("data.source", Counter(), _CHECKED_ROWS) if each.id not in held_out)
    return all(new == kept for new, kept in zip(anew, split.train, strict=False))


def _write(path: Path, reader: _Reader, hashes: Sequence[str]) -> None:
    """Read everything into a new file, and split it there."""
    left_out = Counter[str]()
    with path.open("w+b") as file:
        writer = ExampleWriter(file)
        keys, num_own = _read_all(writer, reader, left_out)
        if reader.hashes() != hashes:
            raise DataError(f"{' or '.join(reader.sources.values())} changed while it was read: start again")
        train, held_out = _split(reader.config, keys, num_own)
        sides, longest = {}, 0
        for name, indices in (("train", train), ("held_out", held_out)):
            digest = hashlib.sha256(b"[")  # of the examples as one JSON list
            for number, example in enumerate(writer.examples(indices)):
                digest.update(f"{', ' if number else ''}{as_json(example)}".encode())
                longest = max(longest, _num_tokens(example))
                reader.told(f"looking through the {name.replace('_', '-')} examples", number + 1, len(indices))
            digest.update(b"]")
            sides[name] = {"count": len(indices), "sha256": digest.hexdigest()}
        facts = {"sides": sides, "longest": longest, "left_out": left_out}
        writer.finish(np.concatenate([train, held_out]), facts)


def _read_all(writer: ExampleWriter, reader: _Reader, left_out: Counter[str]) -> tuple[NDArray[np.uint64], int]:
    """(a key of each example's prompt, number of those that are no held-out file's); the lowest keys are held out."""
    keys, num_own = array("Q"), 0
    for key in reader.sources:
        for example in reader.read(key, left_out):
            writer.add(example)
            keys.append(seed_for(0, "held-out split", example.id))
        if not keys:
            raise DataError(f"{key}: {reader.sources[key]} has no examples to use; left out: {_in_words(left_out)}")
        num_own = num_own or len(keys)
    return np.frombuffer(keys, np.uint64), num_own


def _tidy(folder: Path) -> None:
    """Keep the newest files, up to a limit, and nothing that a killed process left half-written."""
    with suppress(FileNotFoundError):  # another process may tidy too
        remove_oldest(sorted(folder.glob("*.examples"), key=lambda path: path.stat().st_mtime), _MAX_KEPT_BYTES)
        for aside in folder.glob(".*.tmp"):
            if time.time() - aside.stat().st_mtime > _SECONDS_UNTIL_LEFT_OVER:
                aside.unlink()


def _split(config: DataConfig, keys: NDArray[np.uint64], num_own: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(places to train on, places held out) among examples of which the first `num_own` are those of the source.

    Raises:
        DataError: too few remain.
    """
    own, apart = keys[:num_own], keys[num_own:]
    if config.held_out_source is not None:
        _, firsts = np.unique(apart, return_index=True)
        held_out = np.sort(firsts)[: config.num_held_out] + num_own
    else:
        _, firsts = np.unique(own, return_index=True)  # in the order of the keys
        held_out = firsts[: config.num_held_out]
    train = np.flatnonzero(~np.isin(own, keys[held_out]))
    if len(held_out) < config.num_held_out:
        raise DataError(
            f"data.num_held_out={config.num_held_out}, but {config.held_out_source or config.source} has only "
            f"{len(held_out)} different prompts"
        )
    if not len(train):
        raise DataError(f"data.num_held_out={config.num_held_out} leaves no example of {config.source} to train on")
    return train, held_out


def prompt_messages(row: Row, system_prompt: str | None, place: str) -> list[Row]:
    """The messages of a row's `prompt`: a text, or a list of messages.

    Raises:
        DataError: there is none, or it is empty.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return with_system_prompt([{"role": "user", "content": prompt}], system_prompt, place)
    if isinstance(prompt, list):
        return with_system_prompt(read_messages(prompt, place), system_prompt, place)
    raise DataError(f"{place}: needs a non-empty 'prompt', a text or a list of messages; data.transform can make it")


def answer_messages(value: Any, field: str, place: str) -> list[Row]:
    """The assistant's answer in a row's `field`: a text, or messages that end with the assistant's.

    Raises:
        DataError: it is missing, empty, or ends with another role.
    """
    if isinstance(value, str) and value.strip():
        return [{"role": "assistant", "content": value}]
    if isinstance(value, list) and value:
        messages = read_messages(value, place)
        if messages[-1]["role"] == "assistant":
            return messages
    raise DataError(f"{place}: needs a non-empty {field!r}, a text or messages that end with the assistant's")


def prompt_id(messages: Sequence[Row]) -> str:
    """A hash of the messages that the system prompt does not change."""
    asked = [message for message in messages if message["role"] != "system"]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


class _Reader:
    def __init__(self, config: DataConfig, chat: Chat, to_example: ToExample, longest: int, told: Told) -> None:
        self.config = config
        self.chat = chat
        self.to_example = to_example
        self.longest = longest
        self.told = told
        self.transform = None
        if config.transform is not None:
            self.transform = import_by_path(config.transform, "data.transform", arguments=("row",))
        self.sources = {"data.source": config.source}
        if config.held_out_source is not None:
            self.sources["data.held_out_source"] = config.held_out_source

    def hashes(self) -> list[str]:
        """Of the files as they are now."""
        return [sha256_of_file(existing_file(key, source)) for key, source in self.sources.items()]

    def fingerprint(self, hashes: Sequence[str]) -> str:
        """A hash of everything that decides the examples and their split.

        Of a transform it has the file that holds it, and nothing that it calls elsewhere.
        """
        transform = self.config.transform
        origin = {
            "package": package_sha256(),
            "versions": versions(("jinja2", "tokenizers", "transformers")),
            "tokenizer": self.chat.fingerprint(),
            "to_example": repr(self.to_example),
            "longest": self.longest,
            "data": self.config.model_dump(exclude={"source", "held_out_source", "batch_size"}),
            "transform": None if transform is None else source_hash(transform, "data.transform"),
            "sources": {key: Path(source).suffix for key, source in self.sources.items()},
            "hashes": hashes,
        }
        return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()

    def read(self, key: str, left_out: Counter[str], max_rows: int | None = None) -> Iterator[Example]:
        """The examples of a file, or of its first rows; what is left out is counted."""
        source, used, faulty = self.sources[key], 0, 0
        for place, raw in islice(read_rows(key, source, self.told), max_rows):
            rows = transformed(self.transform, raw, place, "data.transform")
            if not rows:
                left_out["data.transform left them out"] += 1
            for row in rows:
                try:
                    example = self.to_example(self.chat, row, place)
                except SkippedRow as skipped:
                    left_out[str(skipped)] += 1
                    faulty += 1
                    continue
                except DataError as error:
                    raise DataError(f"{place}: {str(error).removeprefix(place + ': ')}") from error
                if _num_tokens(example) > self.longest:
                    left_out[f"longer than {self.longest} tokens"] += 1
                    faulty += 1
                else:
                    used += 1
                    yield example
        if max_rows is None and faulty > used:
            raise DataError(f"{source}: most examples cannot be used; left out: {_in_words(left_out)}")


class SkippedRow(Exception):  # no error: a row that teaches nothing
    """A row that is whole but useless; its text is the reason, and is counted."""


def _in_words(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"


def _num_tokens(example: Example) -> int:
    return len(example.prompt_ids) + max(len(branch.token_ids) for branch in example.branches)
