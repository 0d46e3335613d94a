"""Examples in one file, read one at a time, so that the memory of a run does not grow with its dataset.

The file: the sha256 of all that follows; the examples, one after another; of those that a run uses, in the run's order,
the numbers of tokens, then where they stand, as pairs of start and size; facts, as JSON, and their length.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BufferedRandom
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from burnish.records import Branch, Example

ItemT = TypeVar("ItemT")
Indices = Sequence[int] | NDArray[np.int64]

_DIGEST_BYTES = 32
_PLACE = struct.Struct("=qq")
_LENGTH = struct.Struct("=q")
_HEAD = struct.Struct("=ii")


class Lazy(Sequence[ItemT]):
    """Items that are made when they are asked for, and not kept: `make(index)` for each of `indices`."""

    def __init__(self, make: Callable[[int], ItemT], indices: Indices) -> None:
        self._make = make
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> ItemT: ...

    @overload
    def __getitem__(self, index: slice) -> Lazy[ItemT]: ...

    def __getitem__(self, index: int | slice) -> ItemT | Lazy[ItemT]:
        if isinstance(index, slice):
            return Lazy(self._make, self._indices[index])
        return self._make(int(self._indices[index]))


class ExampleFile:
    """A finished file, open: it can be read when its name is gone. `num_tokens` are those of the examples in order."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError, or a ValueError where the file is damaged."""
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        with open(self._descriptor, "rb", closefd=False) as file:
            if file.read(_DIGEST_BYTES) != hashlib.file_digest(file, "sha256").digest():
                raise ValueError(f"{path} is damaged")
        end = os.fstat(self._descriptor).st_size - _LENGTH.size
        (length,) = _LENGTH.unpack(os.pread(self._descriptor, _LENGTH.size, end))
        self.facts: dict[str, Any] = json.loads(os.pread(self._descriptor, length, end - length))
        num_examples = int(self.facts["num_examples"])
        self._places = end - length - _PLACE.size * num_examples
        counts = os.pread(self._descriptor, 4 * num_examples, self._places - 4 * num_examples)
        self.num_tokens = np.frombuffer(counts, np.int32)

    def example(self, index: int) -> Example:
        """The example with this place in the order of the run."""
        place = os.pread(self._descriptor, _PLACE.size, self._places + _PLACE.size * index)
        start, size = _PLACE.unpack(place)
        return _from_bytes(os.pread(self._descriptor, size, start))


class ExampleWriter:
    """Fills a new file, open for writing and reading: `add` what there is, then `finish` with what is used of it."""

    def __init__(self, file: BufferedRandom) -> None:
        self._file = file
        self._ends = array("q", [file.write(bytes(_DIGEST_BYTES))])
        self._num_tokens = array("i")

    def add(self, example: Example) -> None:
        """Append an example."""
        self._ends.append(self._ends[-1] + self._file.write(_to_bytes(example)))
        self._num_tokens.append(example.num_tokens)

    def examples(self, indices: NDArray[np.int64]) -> Iterator[Example]:
        """Some of those that were added."""
        self._file.flush()
        for index in indices:
            start, end = self._ends[index], self._ends[index + 1]
            yield _from_bytes(os.pread(self._file.fileno(), end - start, start))

    def finish(self, indices: NDArray[np.int64], facts: Mapping[str, Any]) -> None:
        """Write the order of those that are used, and what is known of them."""
        self._file.write(np.frombuffer(self._num_tokens, np.int32)[indices].data)
        ends = np.frombuffer(self._ends, np.int64)
        self._file.write(np.stack([ends[indices], ends[indices + 1] - ends[indices]], axis=1).data)
        text = json.dumps({**facts, "num_examples": len(indices)}).encode()
        self._file.write(text + _LENGTH.pack(len(text)))
        self._file.seek(_DIGEST_BYTES)
        digest = hashlib.file_digest(self._file, "sha256").digest()
        self._file.seek(0)
        self._file.write(digest)


def as_json(example: Example) -> str:
    """What a fingerprint hashes: every field, in the order of its declaration."""
    # dataclasses.asdict copies token by token, which takes ten times as long
    branches = [{name: getattr(branch, name) for name in Branch.__slots__} for branch in example.branches]
    return json.dumps({"id": example.id, "prompt_ids": example.prompt_ids, "branches": branches})


def _to_bytes(example: Example) -> bytes:
    """Head, id, three floats a branch, then whole numbers: every piece after its length, -1 for a None."""
    numbers = [len(example.prompt_ids), *example.prompt_ids]
    for branch in example.branches:
        numbers += [len(branch.token_ids), *branch.token_ids]
        spans = None if branch.scored is None else _spans(branch.scored)
        numbers += [-1] if spans is None else [len(spans), *spans]
    floats = [number for branch in example.branches for number in (branch.label, branch.score, branch.weight)]
    name = example.id.encode()
    head = _HEAD.pack(len(example.branches), len(name))
    return head + name + array("d", floats).tobytes() + array("i", numbers).tobytes()


def _from_bytes(data: bytes) -> Example:
    num_branches, name_length = _HEAD.unpack_from(data)
    name_end = _HEAD.size + name_length
    floats_end = name_end + 3 * 8 * num_branches
    floats, numbers = array("d", data[name_end:floats_end]), iter(array("i", data[floats_end:]))

    def piece() -> tuple[int, ...] | None:
        length = next(numbers)
        return None if length < 0 else tuple(islice(numbers, length))

    prompt_ids = piece() or ()
    branches = []
    for branch in range(num_branches):
        label, score, weight = floats[3 * branch : 3 * branch + 3]
        token_ids, spans = piece() or (), piece()
        scored = None if spans is None else _positions(spans)
        branches.append(Branch(token_ids=token_ids, scored=scored, label=label, score=score, weight=weight))
    return Example(id=data[_HEAD.size : name_end].decode(), prompt_ids=prompt_ids, branches=tuple(branches))


def _spans(positions: Iterable[int]) -> list[int]:
    """Start and end of every run of positions, flat."""
    spans: list[int] = []
    for position in positions:
        if spans and spans[-1] == position:
            spans[-1] += 1
        else:
            spans += [position, position + 1]
    return spans


def _positions(spans: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(chain.from_iterable(map(range, spans[::2], spans[1::2])))
