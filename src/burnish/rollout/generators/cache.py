"""The key-value cache of the native generator: lanes of one prompt and its samples."""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.models.policy import Policy


class LaneCache:
    """Keys and values of `num_lanes` prompts and, for each, of `width` completions that grow from it.

    A prompt is stored once for all its completions, and attended to by all of them in one product. The completions of
    a lane start together, so a lane has one length. `begin` and `attend` serve one decoding step at a time.
    """

    def __init__(self, policy: Policy, *, num_lanes: int, width: int, max_prompt: int, max_new: int) -> None:
        config = policy.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layers, kv_heads = config.num_hidden_layers, config.num_key_value_heads
        dtype, device = policy.head_VH.dtype, policy.device

        def empty(*shape: int) -> Tensor:
            # Zeros, because what a mask hides still enters a product with weight 0, and 0 x NaN is NaN.
            return torch.zeros(layers, num_lanes, *shape, dtype=dtype, device=device)

        self.width = width
        self.prompt_key = empty(kv_heads, max_prompt, head_dim)
        self.prompt_value = empty(kv_heads, max_prompt, head_dim)
        # with the keys as columns: the product with a single query is twice as fast so
        self.own_key = empty(kv_heads, width, head_dim, max_new)
        self.own_value = empty(kv_heads, width, max_new, head_dim)
        self.prompt_lengths = [0] * num_lanes
        self.own_lengths = [0] * num_lanes

    def store_prompts(self, layer: int, lanes: list[int], lengths: list[int], key: Tensor, value: Tensor) -> None:
        """Keep what a packed prefill computed, [1, kv_heads, T, head_dim], for these lanes."""
        parts = zip(lanes, lengths, key[0].split(lengths, 1), value[0].split(lengths, 1), strict=True)
        for lane, length, lane_key, lane_value in parts:
            self.prompt_key[layer, lane, :, :length] = lane_key
            self.prompt_value[layer, lane, :, :length] = lane_value

    def open_lanes(self, lanes: list[int], prompt_lengths: list[int]) -> None:
        """Start lanes anew, with no token of their own."""
        for lane, length in zip(lanes, prompt_lengths, strict=True):
            self.prompt_lengths[lane] = length
            self.own_lengths[lane] = 0

    def begin(self, rows: list[tuple[int, int]]) -> None:
        """Prepare a step in which each of `rows`, as (lane, member), brings one new token."""
        device = self.prompt_key.device
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
        prompt_lengths = [self.prompt_lengths[lane] for lane in lanes]
        own_lengths = [self.own_lengths[lane] + 1 for lane in lanes]
        self._max_prompt, self._max_own = max(prompt_lengths), max(own_lengths)
        hidden = torch.cat(
            [
                torch.arange(self._max_prompt) >= torch.tensor(prompt_lengths)[:, None],
                torch.arange(self._max_own) >= torch.tensor(own_lengths)[:, None],
            ],
            dim=1,
        )
        # [lanes, 1, 1, 1, prompt + own keys], added to scores
        mask = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))
        self._mask = mask[:, None, None, None].to(device)

    def end(self, rows: list[tuple[int, int]]) -> None:
        """Count the token that each row's lane has gained."""
        for lane in {lane for lane, _ in rows}:
            self.own_lengths[lane] += 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See AttentionPlan. One token per row: query [1, heads, R, head_dim]."""
        heads, head_dim = query.shape[1], query.shape[3]
        kv_heads, lanes, width = key.shape[1], len(self._lanes), self.width
        per_kv = heads // kv_heads
        place = (layer, self._row_lane_R, slice(None), self._row_member_R)
        self.own_key[(*place, slice(None), self._row_length_R)] = key[0].transpose(0, 1)
        self.own_value[(*place, self._row_length_R)] = value[0].transpose(0, 1)
        rows = query[0].transpose(0, 1) * scaling
        if not self._is_full:
            rows = rows.new_zeros(lanes * width, heads, head_dim).index_copy_(0, self._grid_R, rows)
        # [lanes, kv_heads, width, per_kv, head_dim]
        grid = rows.reshape(lanes, width, kv_heads, per_kv, head_dim).transpose(1, 2).contiguous()
        prompt_key = self._active(self.prompt_key[layer, :, :, : self._max_prompt])
        prompt_value = self._active(self.prompt_value[layer, :, :, : self._max_prompt])
        own_key = self._active(self.own_key[layer, ..., : self._max_own])
        own_value = self._active(self.own_value[layer, :, :, :, : self._max_own])
        flat = grid.view(lanes, kv_heads, width * per_kv, head_dim)
        prompt_scores = (flat @ prompt_key.transpose(-1, -2)).view(lanes, kv_heads, width, per_kv, -1)
        own_scores = grid @ own_key
        scores = torch.cat([prompt_scores, own_scores], dim=-1).float() + self._mask
        shares = scores.softmax(-1).to(query.dtype)
        prompt_shares, own_shares = shares.split([self._max_prompt, self._max_own], dim=-1)
        output = (prompt_shares.reshape(lanes, kv_heads, width * per_kv, -1) @ prompt_value).view_as(grid)
        output = output + own_shares @ own_value
        answers: Tensor = output.transpose(1, 2).reshape(1, lanes * width, heads, head_dim)
        return answers if self._is_full else answers.index_select(1, self._grid_R)

    def _active(self, cache: Tensor) -> Tensor:
        """Of one layer's cache, the lanes of this step."""
        return cache if self._has_all_lanes else cache.index_select(0, self._lanes)
