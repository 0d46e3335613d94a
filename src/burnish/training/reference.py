"""Log-probabilities of a dataset under the weights that a run starts from: computed once, kept by fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from burnish.data.packing import pack, scored_positions
from burnish.errors import MachineError
from burnish.records import Example, TokenBatch
from burnish.reproducibility.files import require_free_space, write_aside


def in_chunks(examples: Sequence[Example]) -> list[Sequence[Example]]:
    """Examples a few at a time."""
    return [examples[start : start + _CHUNK] for start in range(0, len(examples), _CHUNK)]


_CHUNK = 32


class ReferenceLogprobs:
    """One vector for each example: the log-probabilities of its scored tokens, branch after branch."""

    def __init__(self, flat: Tensor, examples: Sequence[Example]) -> None:
        lengths = [sum(len(scored_positions(branch)) for branch in example.branches) for example in examples]
        if sum(lengths) != len(flat):
            raise ValueError(f"{len(flat)} log-probabilities for {sum(lengths)} scored tokens")
        self._parts = flat.split(lengths)

    def of(self, indices: Sequence[int]) -> Tensor:
        """Those of some examples, in the order in which `pack` puts their scored tokens."""
        return torch.cat([self._parts[index] for index in indices])


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
    examples = [example for chunk in chunks for example in chunk]
    rows = [[asdict(example) for example in chunk] for chunk in chunks]
    fingerprint = hashlib.sha256(json.dumps([rows, origin], sort_keys=True).encode()).hexdigest()
    path = folder / f"{fingerprint}.safetensors"
    if (flat := _read(path)) is None:
        say(f"computing the reference's log-probabilities of {len(examples)} examples")
        flat = torch.cat([compute(pack(chunk)) for chunk in chunks if chunk])
        folder.mkdir(parents=True, exist_ok=True)
        require_free_space(folder, flat.numel() * 4 + 100_000, "the reference's log-probabilities")
        kept = {"logprobs": flat}
        write_aside(path, lambda aside: save_file(kept, aside))
    return ReferenceLogprobs(flat, examples)


def _read(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            flat: Tensor = file.get_tensor("logprobs")
    except SafetensorError as error:
        raise MachineError(f"{path} is damaged ({error}): delete it, it is made again") from error
    return flat
