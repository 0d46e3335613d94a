"""Prompts that were read before: a new one that begins like one of them begins with its keys and values."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from burnish.serving.cache import Prefix

_BLOCK = 16  # tokens; prompts are alike in whole blocks


@dataclass(frozen=True, slots=True)
class _Entry:
    prefix: Prefix
    keys: tuple[bytes, ...]


class PrefixStore:
    """The prefixes of one set of weights, up to so many bytes; what was used longest ago goes first.

    Belonging to the weights, nothing of it outlives them: a swap begins with an empty one. One owner does not see the
    prefixes of another: how fast an answer comes, and how much of its prompt was known, would tell what others ask.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._places: dict[bytes, list[int]] = {}  # of a beginning of whole blocks: the entries that have it
        self._next = 0

    def find(self, owner: str, token_ids: Sequence[int]) -> tuple[Prefix, int] | None:
        """The longest known beginning of a prompt, and its tokens. Its last token is always left to be read: its
        hidden state says what comes next.
        """
        found = None
        for key, length in _blocks(owner, token_ids[:-1]):
            if key not in self._places:
                break
            found = self._places[key][-1], length
        if found is None:
            return None
        self._entries.move_to_end(found[0])
        return self._entries[found[0]].prefix, found[1]

    def wants(self, owner: str, token_ids: Sequence[int]) -> int:
        """Tokens of a prompt that are worth keeping: its whole blocks; 0 where they are known, or too few."""
        blocks = list(_blocks(owner, token_ids)) if self._max_bytes else []
        return blocks[-1][1] if blocks and blocks[-1][0] not in self._places else 0

    def keep(self, owner: str, token_ids: Sequence[int], prefix: Prefix) -> None:
        """Remember the keys and values of the tokens that `wants` named."""
        if prefix.num_bytes > self._max_bytes:
            return
        keys = tuple(key for key, _ in _blocks(owner, token_ids))
        number, self._next = self._next, self._next + 1
        for key in keys:
            self._places.setdefault(key, []).append(number)
        self._entries[number] = _Entry(prefix, keys)
        self._num_bytes += prefix.num_bytes
        while self._num_bytes > self._max_bytes:
            gone, entry = self._entries.popitem(last=False)
            self._num_bytes -= entry.prefix.num_bytes
            for key in entry.keys:
                self._places[key].remove(gone)
                if not self._places[key]:
                    del self._places[key]


def _blocks(owner: str, token_ids: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """(hash, tokens) of each beginning that is whole blocks, of an owner's."""
    key = owner.encode()
    for start in range(0, len(token_ids) - _BLOCK + 1, _BLOCK):
        key = hashlib.blake2b(key + array("q", token_ids[start : start + _BLOCK]).tobytes(), digest_size=16).digest()
        yield key, start + _BLOCK
