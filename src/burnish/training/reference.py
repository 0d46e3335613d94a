"""Log-probabilities of a dataset under the weights that a run starts from: computed once, kept by fingerprint."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from burnish.data.example_file import Indices, as_json
from burnish.data.packing import count_examples, pack
from burnish.errors import MachineError
from burnish.records import Example, TokenBatch
from burnish.reproducibility.files import require_free_space, write_aside


def in_chunks(examples: Sequence[Example]) -> list[Sequence[Example]]:
    """Examples a few at a time."""
    return [examples[start : start + _CHUNK] for start in range(0, len(examples), _CHUNK)]


_CHUNK = 32


class ReferenceLogprobs:
    """One vector for each example: the log-probabilities of its scored tokens, branch after branch."""

    def __init__(self, flat: Tensor, lengths: NDArray[np.int64]) -> None:
        if lengths.sum() != len(flat):
            raise ValueError(f"{len(flat)} log-probabilities for {lengths.sum()} scored tokens")
        self._flat = flat
        self._lengths = lengths
        self._starts = lengths.cumsum() - lengths

    def of(self, indices: Indices) -> Tensor:
        """Those of some examples, in the order in which `pack` puts their scored tokens."""
        spans = zip(self._starts[indices].tolist(), self._lengths[indices].tolist(), strict=True)
        return torch.cat([self._flat[start : start + length] for start, length in spans])


def cached_reference(
    folder: Path,
    chunks: Sequence[Sequence[Example]],
    origin: Mapping[str, Any],
    compute: Callable[[TokenBatch], Tensor],
    say: Callable[[str], None],
) -> ReferenceLogprobs:
    """Read from `folder`, or compute and keep there. `origin` is everything beside the examples that decides them.

    A chunk is packed together: scoring the same examples in one batch later meets the same arithmetic.

    Raises:
        MachineError: the disk is full.
    """
    digest, lengths = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()), array("q")
    for chunk in map(list, chunks):
        digest.update(f"[{', '.join(map(as_json, chunk))}]".encode())
        lengths.extend(count_examples([example]).scored_tokens for example in chunk)
    path = folder / f"{digest.hexdigest()}.safetensors"
    if (flat := _read(path)) is None:
        say(f"computing the reference's log-probabilities of {len(lengths)} examples")
        flat = torch.cat([compute(pack(list(chunk))) for chunk in chunks if chunk])
        folder.mkdir(parents=True, exist_ok=True)
        require_free_space(folder, flat.numel() * 4 + 100_000, "the reference's log-probabilities")
        kept = {"logprobs": flat}
        write_aside(path, lambda aside: save_file(kept, aside))
    return ReferenceLogprobs(flat, np.frombuffer(lengths, np.int64))


def _read(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            flat: Tensor = file.get_tensor("logprobs")
    except SafetensorError as error:
        raise MachineError(f"{path} is damaged ({error}): delete it, it is made again") from error
    return flat
