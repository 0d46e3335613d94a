"""Keys and values of the rows that a server decodes: each row of its own length, joining and leaving at any step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from burnish.models.attention import ScoreRule, causal_mask, soft_cap, weigh

_SMALLEST = 256  # tokens of room; a row that outgrows its room moves to one twice as large
_FIRST_SLOTS = 4
_NOWHERE = 2**62  # further than any window


@dataclass(slots=True, eq=False)
class CacheRow:
    """A place in the cache. `length` is the number of tokens whose keys and values are stored."""

    room: int
    slot: int
    length: int = 0


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys [kv_heads, head_dim, tokens] and values [kv_heads, tokens, head_dim] of the beginning of a row, by layer."""

    key: dict[int, Tensor]
    value: dict[int, Tensor]

    @property
    def num_bytes(self) -> int:
        """What is held."""
        return sum(tensor.nbytes for by_layer in (self.key, self.value) for tensor in by_layer.values())


@dataclass(slots=True)
class _Pool:
    """Rows with the same room. They stand in the slots 0, 1, 2 ... without a gap, so that a step takes views.

    Keys are stored as columns: the product with a single query is twice as fast so.
    """

    room: int
    rows: list[CacheRow] = field(default_factory=list)
    num_slots: int = 0
    key: dict[int, Tensor] = field(default_factory=dict)
    value: dict[int, Tensor] = field(default_factory=dict)

    def add(self, row: CacheRow) -> None:
        if len(self.rows) == self.num_slots:
            self.num_slots = max(_FIRST_SLOTS, 2 * self.num_slots)
            for by_layer in (self.key, self.value):
                for layer, old in by_layer.items():
                    # zeros, because what a mask hides still enters a product with weight 0, and 0 x NaN is NaN
                    by_layer[layer] = old.new_zeros(self.num_slots, *old.shape[1:])
                    by_layer[layer][: len(old)] = old
        row.room, row.slot = self.room, len(self.rows)
        self.rows.append(row)
        for by_layer in (self.key, self.value):
            for tensor in by_layer.values():
                tensor[row.slot].zero_()  # whoever had the place before may have left what is no number

    def remove(self, row: CacheRow) -> None:
        """The last row takes its place."""
        last = self.rows.pop()
        if last is not row:
            for by_layer in (self.key, self.value):
                for tensor in by_layer.values():
                    tensor[row.slot] = tensor[last.slot]
            last.slot = row.slot
            self.rows[row.slot] = last
        if not self.rows:  # a rare long row must not hold memory for ever
            self.num_slots = 0
            self.key.clear()
            self.value.clear()

    def make_layer(self, layer: int, kv_heads: int, head_dim: int, like: Tensor) -> None:
        if layer not in self.key:
            self.key[layer] = like.new_zeros(self.num_slots, kv_heads, head_dim, self.room)
            self.value[layer] = like.new_zeros(self.num_slots, kv_heads, self.room, head_dim)


class RowCache:
    """The cache of one set of weights, and the attention plan of one step over it.

    A step feeds some rows one token each, those that are decoding, and some a piece of their prompt. The tokens of the
    step stand in the order that `begin` returns.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pools: dict[int, _Pool] = {}

    @property
    def num_bytes(self) -> int:
        """What is held, used or not."""
        return sum(
            tensor.nbytes for pool in self._pools.values() for by in (pool.key, pool.value) for tensor in by.values()
        )

    def open(self, num_tokens: int) -> CacheRow:
        """A new row with room for so many tokens."""
        row = CacheRow(room=0, slot=0)
        self._pool(num_tokens).add(row)
        return row

    def close(self, row: CacheRow) -> None:
        """The row is over. Nothing is done for one that is not in this cache, as after a step that failed."""
        pool = self._pools.get(row.room)
        if pool is not None and row.slot < len(pool.rows) and pool.rows[row.slot] is row:
            pool.remove(row)

    def copy_in(self, row: CacheRow, prefix: Prefix, num_tokens: int) -> None:
        """Begin an empty row with the first tokens of a prefix."""
        pool = self._pools[row.room]
        for layer, key in prefix.key.items():
            pool.make_layer(layer, key.shape[0], key.shape[1], key)
            pool.key[layer][row.slot, :, :, :num_tokens] = key[:, :, :num_tokens]
            pool.value[layer][row.slot, :, :num_tokens] = prefix.value[layer][:, :num_tokens]
        row.length = num_tokens

    def copy_out(self, row: CacheRow, num_tokens: int) -> Prefix:
        """A copy of the first tokens of a row."""
        pool = self._pools[row.room]
        return Prefix(
            {layer: key[row.slot, :, :, :num_tokens].clone() for layer, key in pool.key.items()},
            {layer: value[row.slot, :, :num_tokens].clone() for layer, value in pool.value.items()},
        )

    def begin(self, decoding: Sequence[CacheRow], prompts: Sequence[tuple[CacheRow, int]]) -> list[CacheRow]:
        """Prepare a step: one token for each row of `decoding`, then so many for each of `prompts`.

        Returns the decoding rows in the order in which their tokens must stand.
        """
        for row, count in [*((row, 1) for row in decoding), *prompts]:
            self._make_room(row, row.length + count)
        by_room: dict[int, list[CacheRow]] = {}
        for row in decoding:
            by_room.setdefault(row.room, []).append(row)
        self._parts = [
            _Part(self._pools[room], sorted(rows, key=lambda row: row.slot), self._device)
            for room, rows in sorted(by_room.items())
        ]
        self._prompts = list(prompts)
        return [row for part in self._parts for row in part.rows]

    def end(self) -> None:
        """The step is done: count its tokens."""
        for part in self._parts:
            for row in part.rows:
                row.length += 1
        for row, count in self._prompts:
            row.length += count

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        """See AttentionPlan."""
        sizes = [len(part.rows) for part in self._parts] + [count for _, count in self._prompts]
        pieces = list(zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True))
        for pool in self._pools.values():
            pool.make_layer(layer, key.shape[1], key.shape[3], key)
        outputs = [part.attend(layer, *piece, rule) for part, piece in zip(self._parts, pieces, strict=False)]
        for (row, count), piece in zip(self._prompts, pieces[len(self._parts) :], strict=True):
            outputs.append(self._read_prompt(layer, row, count, *piece, rule))
        return torch.cat(outputs, dim=1)

    def _read_prompt(
        self, layer: int, row: CacheRow, count: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule
    ) -> Tensor:
        """[1, count, heads, head_dim] for a piece of a row's prompt, which sees what came before it."""
        pool, end = self._pools[row.room], row.length + count
        pool.key[layer][row.slot, :, :, row.length : end] = key[0].mT
        pool.value[layer][row.slot, :, row.length : end] = value[0]
        per_kv = query.shape[1] // key.shape[1]
        keys = pool.key[layer][row.slot, :, :, :end].mT.repeat_interleave(per_kv, 0)[None].contiguous()
        values = pool.value[layer][row.slot, :, :end].repeat_interleave(per_kv, 0)[None]
        window = None if rule.window is None or end <= rule.window else rule.window
        mask = causal_mask(row.length, end, window, query)
        return weigh(query, keys, values, mask, rule).transpose(1, 2)

    def _pool(self, num_tokens: int) -> _Pool:
        room = _SMALLEST
        while room < num_tokens:
            room *= 2
        return self._pools.setdefault(room, _Pool(room))

    def _make_room(self, row: CacheRow, num_tokens: int) -> None:
        if num_tokens <= row.room:
            return
        held = self.copy_out(row, row.length)
        self.close(row)
        self._pool(num_tokens).add(row)
        self.copy_in(row, held, row.length)


class _Part:
    """The decoding rows of one pool in one step."""

    def __init__(self, pool: _Pool, rows: list[CacheRow], device: torch.device) -> None:
        self.pool, self.rows = pool, rows
        self._slots = torch.tensor([row.slot for row in rows], device=device)
        self._lengths = torch.tensor([row.length for row in rows], device=device)
        self._is_full = len(rows) == len(pool.rows)
        self._longest = max(row.length for row in rows) + 1
        lengths = torch.zeros(len(pool.rows), dtype=torch.long)  # a row that only waits sees its first key
        lengths[[row.slot for row in rows]] = torch.tensor([row.length for row in rows])
        behind = lengths[:, None] - torch.arange(self._longest)
        self._distances = behind.where(behind >= 0, _NOWHERE)
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        """[1, rows, heads, head_dim] for the new token of each row."""
        heads, head_dim, kv_heads, num_slots = query.shape[1], query.shape[3], key.shape[1], len(self.pool.rows)
        keys, values = self.pool.key[layer], self.pool.value[layer]
        keys[self._slots, :, :, self._lengths] = key[0].transpose(0, 1)
        values[self._slots, :, self._lengths] = value[0].transpose(0, 1)
        rows = query[0].transpose(0, 1) * rule.scaling
        if not self._is_full:
            rows = rows.new_zeros(num_slots, heads, head_dim).index_copy_(0, self._slots, rows)
        grid = rows.reshape(num_slots, kv_heads, heads // kv_heads, head_dim)
        scores = (grid @ keys[:num_slots, :, :, : self._longest]).float()
        if rule.softcap is not None:
            scores = soft_cap(scores, rule.softcap)
        shares = (scores + self._mask(rule.window)).softmax(-1).to(query.dtype)
        output = (shares @ values[:num_slots, :, : self._longest]).reshape(1, num_slots, heads, head_dim)
        return output if self._is_full else output.index_select(1, self._slots)

    def _mask(self, window: int | None) -> Tensor:
        """[slots, 1, 1, keys], added to scores; made once a step for each window."""
        if window not in self._masks:
            hidden = self._distances >= (_NOWHERE if window is None else window)
            mask = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))
            self._masks[window] = mask[:, None, None].to(self._slots.device)
        return self._masks[window]
