"""One attention function for every use of a model: a plan, handed through the forward pass, says who sees whom.

The model's own modules see one row of tokens, [1, T]. What belongs together is known to the plan alone, so packed
training, prefill and decoding run the same modules without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from burnish.errors import ModelError
from burnish.models.cpu_attention import attention
from burnish.records import Segment

IMPLEMENTATION = "burnish"


class AttentionPlan(Protocol):
    """Who attends to whom."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Output [1, T, heads, head_dim] for query [1, heads, T, head_dim]; key and value have kv_heads."""
        ...


class SegmentAttention:
    """A prompt is causal; each branch attends to its prompt and, causally, to itself.

    The branches of a segment are a batch over the same prompt, so the cost is P^2 + B R (P + R) for B branches of R
    tokens and not (P + B R)^2. Shorter ones repeat their last token, which no earlier token sees.
    """

    def __init__(
        self, segments: Sequence[Segment], *, on_key_value: Callable[[int, Tensor, Tensor], None] | None = None
    ) -> None:
        """`on_key_value(layer, key, value)` receives what a cache stores, [1, kv_heads, T, head_dim]."""
        self.segments = segments
        self.on_key_value = on_key_value
        self._fans: dict[int, _Fan] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See AttentionPlan."""
        if self.on_key_value is not None:
            self.on_key_value(layer, key, value)
        sizes = [segment.num_tokens for segment in self.segments]
        outputs = []
        parts = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
        for index, (query_part, key_part, value_part) in enumerate(parts):
            segment = self.segments[index]
            if len(segment.branch_lengths) <= 1:
                outputs.append(_causal(query_part, key_part, value_part, scaling))
                continue
            prompt = segment.prompt_length
            if index not in self._fans:
                self._fans[index] = _Fan(segment, query, query.shape[1] // key.shape[1])
            if prompt > 0:
                query_P, key_P, value_P = (part[:, :, :prompt] for part in (query_part, key_part, value_part))
                outputs.append(_causal(query_P, key_P, value_P, scaling))
            outputs.append(self._fans[index].attend(query_part, key_part, value_part, scaling))
        return torch.cat(outputs, dim=2).transpose(1, 2)


class _Fan:
    """The branches of one segment as a batch; `per_kv` query heads share a key head."""

    def __init__(self, segment: Segment, like: Tensor, per_kv: int) -> None:
        lengths = torch.tensor(segment.branch_lengths)
        self.num_branches, self.width, self.prompt = len(lengths), int(lengths.max()), segment.prompt_length
        column_R = torch.arange(self.width)
        starts_B = self.prompt + lengths.cumsum(0) - lengths
        self.is_even = bool((lengths == self.width).all())
        token_BR = starts_B[:, None] + torch.minimum(column_R, lengths[:, None] - 1)
        self.tokens = token_BR.flatten().to(like.device)
        self.kept = (column_R < lengths[:, None]).flatten().nonzero()[:, 0].to(like.device)
        visible_RK = torch.ones(self.width, self.prompt + self.width).tril(self.prompt).bool()
        mask_RK = torch.zeros(visible_RK.shape, dtype=like.dtype).masked_fill(~visible_RK, float("-inf"))
        # the query heads of a key head are further rows: nothing is repeated but this
        self.mask = mask_RK.repeat(per_kv, 1).to(like.device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Output [1, heads, tokens of the branches, head_dim] for tensors of the whole segment."""
        heads, head_dim, kv_heads = query.shape[1], query.shape[3], key.shape[1]
        rows = self._own(query).view(self.num_branches, kv_heads, -1, head_dim)
        keys, values = (self._with_prompt(part) for part in (key, value))
        output = attention(rows, keys, values, self.mask, scaling)
        output = output.view(self.num_branches, heads, self.width, head_dim).transpose(0, 1)
        output = output.reshape(1, heads, self.num_branches * self.width, head_dim)
        return output if self.is_even else output.index_select(2, self.kept)

    def _own(self, part: Tensor) -> Tensor:
        """[branches, heads, width, head_dim] of what a branch itself holds."""
        own = part[:, :, self.prompt :] if self.is_even else part.index_select(2, self.tokens)
        heads, head_dim = part.shape[1], part.shape[3]
        return own.reshape(heads, self.num_branches, self.width, head_dim).transpose(0, 1).contiguous()

    def _with_prompt(self, part: Tensor) -> Tensor:
        """[branches, heads, prompt + width, head_dim]."""
        return torch.cat([part[:, :, : self.prompt].expand(self.num_branches, -1, -1, -1), self._own(part)], dim=2)


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    per_kv = query.shape[1] // key.shape[1]
    if per_kv > 1:
        key, value = key.repeat_interleave(per_kv, dim=1), value.repeat_interleave(per_kv, dim=1)
    return attention(query, key, value, None, scaling)


def check_supported(config: PretrainedConfig) -> None:
    """Raise a ModelError if the model attends or scores in a way that a plan would silently ignore."""
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    scaled_logits = [
        name
        for name in ("final_logit_softcapping", "attn_logit_softcapping", "logits_scaling", "logit_scale")
        if getattr(config, name, None) not in (None, 1.0)
    ]
    needed = ("num_attention_heads", "num_key_value_heads", "hidden_size", "max_position_embeddings")
    if lacking := [name for name in needed if not isinstance(getattr(config, name, None), int)]:
        raise ModelError(f"model type {config.model_type!r} is not supported: its config lacks {', '.join(lacking)}")
    if getattr(config, "v_head_dim", None) is not None:
        raise ModelError(f"model type {config.model_type!r} is not supported: its values are narrower than its keys")
    if layer_types != {"full_attention"} or window is not None or scaled_logits:
        raise ModelError(
            f"model type {config.model_type!r} is not supported: it uses "
            f"{', '.join([*sorted(layer_types - {'full_attention'}), *scaled_logits]) or 'a sliding window'}; "
            "models with full causal attention and plain logits are"
        )


def install(model: PreTrainedModel) -> None:
    """Switch a model to the plan-driven attention."""
    check_supported(model.config)
    model.set_attn_implementation(IMPLEMENTATION)


def hidden_states(decoder: nn.Module, token_ids_T: Tensor, position_ids_T: Tensor, plan: AttentionPlan) -> Tensor:
    """Last hidden states [T, H] of the decoder (the causal LM without its head)."""
    output = decoder(
        input_ids=token_ids_T[None], position_ids=position_ids_T[None], use_cache=False, attention_plan=plan
    )
    hidden_TH: Tensor = output.last_hidden_state[0]
    return hidden_TH


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    attention_plan: AttentionPlan,
    **ignored: Any,  # what transformers hands to every implementation: dropout 0, position ids
) -> tuple[Tensor, None]:
    return attention_plan.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(IMPLEMENTATION, _attention)
