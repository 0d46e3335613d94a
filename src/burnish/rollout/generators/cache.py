"""The key-value cache of the native generator: lanes of one prompt and its samples."""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.models.attention import ScoreRule, soft_cap
from burnish.models.policy import Policy

_NOWHERE = 2**62  # further than any window


class LaneCache:
    """Keys and values of `num_lanes` prompts and, for each, of `width` completions that grow from it.

    A prompt is stored once for all its completions, and attended to by all of them in one product. The completions of
    a lane start together, so a lane has one length. `begin` and `attend` serve one decoding step at a time.
    """

    def __init__(self, policy: Policy, *, num_lanes: int, width: int, max_prompt: int, max_new: int) -> None:
        self.width = width
        self._max_tokens = max_prompt, max_new
        self._device = policy.device
        # by layer, of the shape that the layer's own keys have
        self.prompt_key: dict[int, Tensor] = {}
        self.prompt_value: dict[int, Tensor] = {}
        self.own_key: dict[int, Tensor] = {}
        self.own_value: dict[int, Tensor] = {}
        self.prompt_lengths = [0] * num_lanes
        self.own_lengths = [0] * num_lanes
        self._masks: dict[int | None, Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """What is held, once the first prompts are stored."""
        held = (self.prompt_key, self.prompt_value, self.own_key, self.own_value)
        return sum(tensor.nbytes for by_layer in held for tensor in by_layer.values())

    def store_prompts(self, layer: int, lanes: list[int], lengths: list[int], key: Tensor, value: Tensor) -> None:
        """Keep what a packed prefill computed, [1, kv_heads, T, head_dim], for these lanes."""
        if layer not in self.prompt_key:
            self._make_room(layer, key)
        parts = zip(lanes, lengths, key[0].split(lengths, 1), value[0].split(lengths, 1), strict=True)
        for lane, length, lane_key, lane_value in parts:
            self.prompt_key[layer][lane, :, :length] = lane_key
            self.prompt_value[layer][lane, :, :length] = lane_value

    def _make_room(self, layer: int, key: Tensor) -> None:
        num_lanes, kv_heads, head_dim = len(self.own_lengths), key.shape[1], key.shape[3]
        max_prompt, max_new = self._max_tokens
        # Zeros, because what a mask hides still enters a product with weight 0, and 0 x NaN is NaN.
        self.prompt_key[layer] = key.new_zeros(num_lanes, kv_heads, max_prompt, head_dim)
        self.prompt_value[layer] = key.new_zeros(num_lanes, kv_heads, max_prompt, head_dim)
        # with the keys as columns: the product with a single query is twice as fast so
        self.own_key[layer] = key.new_zeros(num_lanes, kv_heads, self.width, head_dim, max_new)
        self.own_value[layer] = key.new_zeros(num_lanes, kv_heads, self.width, max_new, head_dim)

    def open_lanes(self, lanes: list[int], prompt_lengths: list[int]) -> None:
        """Start lanes anew, with no token of their own."""
        for lane, length in zip(lanes, prompt_lengths, strict=True):
            self.prompt_lengths[lane] = length
            self.own_lengths[lane] = 0

    def begin(self, rows: list[tuple[int, int]]) -> None:
        """Prepare a step in which each of `rows`, as (lane, member), brings one new token."""
        device = self._device
        lanes = sorted({lane for lane, _ in rows})
        slot = {lane: index for index, lane in enumerate(lanes)}
        places = [slot[lane] * self.width + member for lane, member in rows]
        # Where every row, or at least every lane, is under way, views of the cache serve and nothing is moved.
        self._has_all_lanes = len(lanes) == len(self.own_lengths)
        self._is_full = places == list(range(len(lanes) * self.width))
        self._lanes = torch.tensor(lanes, device=device)
        self._grid_R = torch.tensor(places, device=device)
        self._row_lane_R = torch.tensor([lane for lane, _ in rows], device=device)
        self._row_member_R = torch.tensor([member for _, member in rows], device=device)
        self._row_length_R = torch.tensor([self.own_lengths[lane] for lane, _ in rows], device=device)
        prompt_lengths = torch.tensor([self.prompt_lengths[lane] for lane in lanes])[:, None]
        own_lengths = torch.tensor([self.own_lengths[lane] + 1 for lane in lanes])[:, None]
        self._max_prompt, self._max_own = int(prompt_lengths.max()), int(own_lengths.max())
        prompt_keys, own_keys = torch.arange(self._max_prompt), torch.arange(self._max_own)
        behind_prompt = (prompt_lengths + own_lengths - 1 - prompt_keys).where(prompt_keys < prompt_lengths, _NOWHERE)
        behind_own = (own_lengths - 1 - own_keys).where(own_keys < own_lengths, _NOWHERE)
        # how far behind the new token of its lane a key is
        self._distances = torch.cat([behind_prompt, behind_own], dim=1)
        self._masks = {}

    def end(self, rows: list[tuple[int, int]]) -> None:
        """Count the token that each row's lane has gained."""
        for lane in {lane for lane, _ in rows}:
            self.own_lengths[lane] += 1

    def _mask(self, window: int | None) -> Tensor:
        """[lanes, 1, 1, 1, prompt + own keys], added to scores; made once a step for each window."""
        if window not in self._masks:
            hidden = self._distances >= (_NOWHERE if window is None else window)
            mask = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))
            self._masks[window] = mask[:, None, None, None].to(self._device)
        return self._masks[window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        """See AttentionPlan. One token per row: query [1, heads, R, head_dim]."""
        heads, head_dim = query.shape[1], query.shape[3]
        kv_heads, lanes, width = key.shape[1], len(self._lanes), self.width
        per_kv = heads // kv_heads
        place = (self._row_lane_R, slice(None), self._row_member_R)
        self.own_key[layer][(*place, slice(None), self._row_length_R)] = key[0].transpose(0, 1)
        self.own_value[layer][(*place, self._row_length_R)] = value[0].transpose(0, 1)
        rows = query[0].transpose(0, 1) * rule.scaling
        if not self._is_full:
            rows = rows.new_zeros(lanes * width, heads, head_dim).index_copy_(0, self._grid_R, rows)
        # [lanes, kv_heads, width, per_kv, head_dim]
        grid = rows.reshape(lanes, width, kv_heads, per_kv, head_dim).transpose(1, 2).contiguous()
        prompt_key = self._active(self.prompt_key[layer][:, :, : self._max_prompt])
        prompt_value = self._active(self.prompt_value[layer][:, :, : self._max_prompt])
        own_key = self._active(self.own_key[layer][..., : self._max_own])
        own_value = self._active(self.own_value[layer][:, :, :, : self._max_own])
        flat = grid.view(lanes, kv_heads, width * per_kv, head_dim)
        prompt_scores = (flat @ prompt_key.transpose(-1, -2)).view(lanes, kv_heads, width, per_kv, -1)
        own_scores = grid @ own_key
        scores = torch.cat([prompt_scores, own_scores], dim=-1).float()
        if rule.softcap is not None:
            scores = soft_cap(scores, rule.softcap)
        shares = (scores + self._mask(rule.window)).softmax(-1).to(query.dtype)
        prompt_shares, own_shares = shares.split([self._max_prompt, self._max_own], dim=-1)
        output = (prompt_shares.reshape(lanes, kv_heads, width * per_kv, -1) @ prompt_value).view_as(grid)
        output = output + own_shares @ own_value
        answers: Tensor = output.transpose(1, 2).reshape(1, lanes * width, heads, head_dim)
        return answers if self._is_full else answers.index_select(1, self._grid_R)

    def _active(self, cache: Tensor) -> Tensor:
        """Of one layer's cache, the lanes of this step."""
        return cache if self._has_all_lanes else cache.index_select(0, self._lanes)
