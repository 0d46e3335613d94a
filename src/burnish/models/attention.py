"""One attention function for every use of a model: a plan, handed through the forward pass, says who sees whom.

The model's own modules see one row of tokens, [1, T]. What belongs together is known to the plan alone, so packed
training, prefill and decoding run the same modules without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from burnish.errors import ModelError
from burnish.records import Segment

IMPLEMENTATION = "burnish"


class AttentionPlan(Protocol):
    """Who attends to whom."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Output [1, T, heads, head_dim] for query [1, heads, T, head_dim]; key and value have kv_heads."""
        ...


class SegmentAttention:
    """A prompt is causal; each branch attends to its prompt and, causally, to itself."""

    def __init__(
        self, segments: Sequence[Segment], *, on_key_value: Callable[[int, Tensor, Tensor], None] | None = None
    ) -> None:
        """`on_key_value(layer, key, value)` receives what a cache stores, [1, kv_heads, T, head_dim]."""
        self.segments = segments
        self.on_key_value = on_key_value
        self._masks: dict[int, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See AttentionPlan."""
        if self.on_key_value is not None:
            self.on_key_value(layer, key, value)
        heads_per_kv = query.shape[1] // key.shape[1]
        if heads_per_kv > 1:
            key, value = key.repeat_interleave(heads_per_kv, dim=1), value.repeat_interleave(heads_per_kv, dim=1)
        sizes = [segment.num_tokens for segment in self.segments]
        outputs = []
        parts = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
        for index, (query_part, key_part, value_part) in enumerate(parts):
            mask = self._mask(index, query)
            outputs.append(
                F.scaled_dot_product_attention(
                    query_part, key_part, value_part, attn_mask=mask, is_causal=mask is None, scale=scaling
                )
            )
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def _mask(self, index: int, query: Tensor) -> Tensor | None:
        segment = self.segments[index]
        if len(segment.branch_lengths) <= 1:
            return None
        if index not in self._masks:
            lengths = torch.tensor([segment.prompt_length, *segment.branch_lengths])
            branch_T = torch.arange(len(lengths)).repeat_interleave(lengths)  # 0 is the prompt
            same_branch_TT = branch_T[:, None] == branch_T[None, :]
            visible_TT = (same_branch_TT | (branch_T == 0)[None, :]).tril()
            mask = torch.zeros(visible_TT.shape, dtype=query.dtype).masked_fill(~visible_TT, float("-inf"))
            self._masks[index] = mask.to(query.device)
        return self._masks[index]


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
