"""One attention function for every use of a model: a plan, handed through the forward pass, says who sees whom.

The model's own modules see one row of tokens, [1, T]. What belongs together is known to the plan alone, so packed
training, prefill and decoding run the same modules without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from burnish.errors import ModelError
from burnish.models.cpu_attention import attention
from burnish.records import Segment

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

IMPLEMENTATION = "burnish"

# What transformers hands to every attention function and ours has no use for: dropout is off, the plan knows the rest.
_NOT_NEEDED = {"dropout", "position_ids", "use_cache", "output_attentions", "output_router_logits"}


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """What a layer makes of the products of queries and keys.

    A key at a distance of `window` or more is not seen. A score x becomes softcap * tanh(x / softcap).
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None


class AttentionPlan(Protocol):
    """Who attends to whom."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        """Output [1, T, heads, head_dim] for query [1, heads, T, head_dim]; key and value have kv_heads."""
        ...


class SegmentAttention:
    """A prompt is causal; each branch attends to its prompt and, causally, to itself.

    The branches of a segment are a batch over the same prompt, so the cost is P^2 + B R (P + R) for B branches of R
    tokens and not (P + B R)^2. Shorter ones repeat their last token, which no earlier token sees. A window costs
    nothing until a sequence is longer; then it is a mask over all keys. Under a soft cap all scores of a segment exist
    at once, in the forward and in the backward pass.
    """

    def __init__(
        self, segments: Sequence[Segment], *, on_key_value: Callable[[int, Tensor, Tensor], None] | None = None
    ) -> None:
        """`on_key_value(layer, key, value)` receives what a cache stores, [1, kv_heads, T, head_dim]."""
        self.segments = segments
        self.on_key_value = on_key_value
        self._fans: dict[int, _Fan] = {}
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        """See AttentionPlan."""
        if self.on_key_value is not None:
            self.on_key_value(layer, key, value)
        sizes = [segment.num_tokens for segment in self.segments]
        outputs = []
        parts = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
        for index, (query_part, key_part, value_part) in enumerate(parts):
            segment = self.segments[index]
            if len(segment.branch_lengths) <= 1:
                outputs.append(self._causal(query_part, key_part, value_part, rule))
                continue
            prompt = segment.prompt_length
            if index not in self._fans:
                self._fans[index] = _Fan(segment, query, query.shape[1] // key.shape[1])
            if prompt > 0:
                query_P, key_P, value_P = (part[:, :, :prompt] for part in (query_part, key_part, value_part))
                outputs.append(self._causal(query_P, key_P, value_P, rule))
            outputs.append(self._fans[index].attend(query_part, key_part, value_part, rule))
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def _causal(self, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        per_kv, length = query.shape[1] // key.shape[1], query.shape[2]
        if per_kv > 1:
            key, value = key.repeat_interleave(per_kv, dim=1), value.repeat_interleave(per_kv, dim=1)
        window = _effective(rule.window, length)
        if window is None and rule.softcap is None:
            return attention(query, key, value, None, rule.scaling)
        if window not in self._masks:
            longest = max(sum(segment.branch_lengths[:1], segment.prompt_length) for segment in self.segments)
            self._masks[window] = causal_mask(0, longest, window, query)
        return weigh(query, key, value, self._masks[window][:length, :length], rule)


class _Fan:
    """The branches of one segment as a batch; `per_kv` query heads share a key head."""

    def __init__(self, segment: Segment, like: Tensor, per_kv: int) -> None:
        lengths = torch.tensor(segment.branch_lengths)
        self.num_branches, self.width, self.prompt = len(lengths), int(lengths.max()), segment.prompt_length
        self.per_kv = per_kv
        column_R = torch.arange(self.width)
        starts_B = self.prompt + lengths.cumsum(0) - lengths
        self.is_even = bool((lengths == self.width).all())
        token_BR = starts_B[:, None] + torch.minimum(column_R, lengths[:, None] - 1)
        self.tokens = token_BR.flatten().to(like.device)
        self.kept = (column_R < lengths[:, None]).flatten().nonzero()[:, 0].to(like.device)
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        """Output [1, heads, tokens of the branches, head_dim] for tensors of the whole segment."""
        heads, head_dim, kv_heads = query.shape[1], query.shape[3], key.shape[1]
        rows = self._own(query).view(self.num_branches, kv_heads, -1, head_dim)
        keys, values = (self._with_prompt(part) for part in (key, value))
        output = weigh(rows, keys, values, self._mask(rule.window, query), rule)
        output = output.view(self.num_branches, heads, self.width, head_dim).transpose(0, 1)
        output = output.reshape(1, heads, self.num_branches * self.width, head_dim)
        return output if self.is_even else output.index_select(2, self.kept)

    def _mask(self, window: int | None, like: Tensor) -> Tensor:
        length = self.prompt + self.width
        window = _effective(window, length)
        if window not in self._masks:
            # the query heads of a key head are further rows: nothing is repeated but this
            self._masks[window] = causal_mask(self.prompt, length, window, like).repeat(self.per_kv, 1)
        return self._masks[window]

    def _own(self, part: Tensor) -> Tensor:
        """[branches, heads, width, head_dim] of what a branch itself holds."""
        own = part[:, :, self.prompt :] if self.is_even else part.index_select(2, self.tokens)
        heads, head_dim = part.shape[1], part.shape[3]
        return own.reshape(heads, self.num_branches, self.width, head_dim).transpose(0, 1).contiguous()

    def _with_prompt(self, part: Tensor) -> Tensor:
        """[branches, heads, prompt + width, head_dim]."""
        return torch.cat([part[:, :, : self.prompt].expand(self.num_branches, -1, -1, -1), self._own(part)], dim=2)


def _effective(window: int | None, length: int) -> int | None:
    """None where a sequence of this length lies within the window."""
    return None if window is None or length <= window else window


def causal_mask(first: int, length: int, window: int | None, like: Tensor) -> Tensor:
    """Added to the scores of the queries at `first` to `length` for all keys, [length - first, length]."""
    visible = torch.ones(length - first, length, dtype=torch.bool, device=like.device).tril(first)
    if window is not None:
        visible = visible.triu(first - window + 1)
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill(~visible, float("-inf"))


def weigh(query: Tensor, key: Tensor, value: Tensor, mask_RK: Tensor, rule: ScoreRule) -> Tensor:
    """Output [N, heads, R, head_dim] for queries of that shape, and as many heads of K keys; see causal_mask."""
    if rule.softcap is None:
        return attention(query, key, value, mask_RK, rule.scaling)
    scores = soft_cap((query @ key.mT).float() * rule.scaling, rule.softcap) + mask_RK
    return scores.softmax(-1).to(value.dtype) @ value


def soft_cap(scores: Tensor, softcap: float) -> Tensor:
    """Scores within (-softcap, softcap), nearly unchanged around 0."""
    return (scores / softcap).tanh() * softcap


def check_supported(config: PretrainedConfig) -> None:
    """Raise a ModelError if the config alone shows that the model is none a plan is right for.

    What only its forward pass shows, `trial.try_out` finds when the weights are there.
    """
    needed = ("num_attention_heads", "num_hidden_layers", "hidden_size", "max_position_embeddings")
    is_of_text = getattr(config, "text_config", None) is None
    lacking = [name for name in needed if is_of_text and not isinstance(getattr(config, name, None), int)]
    other_layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    faults = {
        "it is made for more than text": not is_of_text,
        f"its config lacks {', '.join(lacking)}": bool(lacking),
        "its values are narrower than its keys": getattr(config, "v_head_dim", None) is not None,
        f"it has layers of type {', '.join(sorted(other_layers))}": bool(other_layers),
        "it attends within chunks": getattr(config, "attention_chunk_size", None) is not None,
        "its tokens see later ones": bool(getattr(config, "use_bidirectional_attention", None)),
        "its attention has sinks": config.model_type == "gpt_oss",
    }
    if found := [fault for fault, is_there in faults.items() if is_there]:
        raise ModelError(f"model type {config.model_type!r} is not supported: {'; '.join(found)}")


def install(model: PreTrainedModel) -> None:
    """Switch a model to the plan-driven attention."""
    from transformers import AttentionInterface, AttentionMaskInterface  # slow to import

    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _window)
    check_supported(model.config)
    model.set_attn_implementation(IMPLEMENTATION)


def hidden_states(decoder: nn.Module, token_ids_T: Tensor, position_ids_T: Tensor, plan: AttentionPlan) -> Tensor:
    """Last hidden states [T, H] of the decoder (the causal LM without its head)."""
    hidden_TH: Tensor = decoder(**model_inputs(token_ids_T, position_ids_T, plan)).last_hidden_state[0]
    return hidden_TH


def model_inputs(token_ids_T: Tensor, position_ids_T: Tensor, plan: AttentionPlan) -> dict[str, Any]:
    """What the forward pass of a model or its decoder is called with."""
    return {
        "input_ids": token_ids_T[None],
        "position_ids": position_ids_T[None],
        # Without one, transformers looks for packed sequences in the positions, and waits for the device to tell.
        "attention_mask": torch.ones_like(token_ids_T[None], dtype=torch.bool),
        "use_cache": False,
        "attention_plan": plan,
    }


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: int | None,
    *,
    scaling: float,
    attention_plan: AttentionPlan | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What a layer calls. Its mask is a window, from `_window`."""
    window, softcap = options.pop("sliding_window", None), options.pop("softcap", None)
    if isinstance(attention_mask, Tensor) or (window and window != attention_mask):
        raise ModelError(f"{type(module).__name__} is not supported: its mask is not that of its window ({window})")
    if unknown := sorted(name for name, given in options.items() if given is not None and name not in _NOT_NEEDED):
        raise ModelError(f"{type(module).__name__} is not supported: it attends with {', '.join(unknown)}")
    if attention_plan is None:
        raise ModelError(f"{type(module).__name__} is not supported: the model does not hand it the attention plan")
    rule = ScoreRule(scaling, attention_mask, softcap)
    return attention_plan.attend(module.layer_idx, query, key, value, rule).contiguous(), None


def _window(
    *,
    config: PretrainedConfig,
    local_size: int | None = None,
    use_vmap: bool = False,
    allow_is_bidirectional_skip: bool | None = None,
    **others: Any,  # the shape and the type of a mask
) -> int | None:
    """What transformers asks for a mask: the window in its place, None for full causal attention.

    Not every layer that is masked by a window names it when it attends (Qwen2-MoE does not), but every one has a mask.
    """
    is_window = local_size is None or local_size == getattr(config, "sliding_window", None)
    if use_vmap or allow_is_bidirectional_skip is not None or not is_window:
        raise ModelError(f"model type {config.model_type!r} is not supported: its mask is neither causal nor a window")
    return local_size
