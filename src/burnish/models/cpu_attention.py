"""Scaled dot-product attention with a backward pass for the CPU's short, many-headed shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK_SCORES = 4_000_000  # scores computed at once in the backward pass: 16 MB in float32


def attention(query: Tensor, key: Tensor, value: Tensor, mask_RK: Tensor | None, scaling: float) -> Tensor:
    """Output [N, heads, R, head_dim] for queries of that shape, keys and values [N, heads, K, head_dim].

    `mask_RK` is added to the scores; None is causal, with R = K. On the CPU torch's own backward pass takes two to
    five times as long as the scores computed once more, a block of rows at a time; its forward pass is used as it is.
    """
    if query.device.type not in ("cpu", "meta") or not torch.is_grad_enabled():  # a plan of the memory runs on meta
        return _forward(query, key, value, mask_RK, scaling)
    apply: Callable[..., Tensor] = _Attention.apply  # which torch leaves untyped
    return apply(query, key, value, mask_RK, scaling)


def _forward(query: Tensor, key: Tensor, value: Tensor, mask_RK: Tensor | None, scaling: float) -> Tensor:
    if query.device.type == "meta":  # what would be chosen there keeps every score
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return cast(Tensor, flash(query, key, value, is_causal=mask_RK is None, attn_mask=mask_RK, scale=scaling)[0])
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask_RK, is_causal=mask_RK is None, scale=scaling
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask_RK: Tensor | None, scaling: float) -> Tensor:
        output = _forward(query, key, value, mask_RK, scaling)
        ctx.save_for_backward(query, key, value, mask_RK, output)
        ctx.scaling = scaling
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Dao et al. 2022 (arXiv 2205.14135), appendix B.2. Scores and shares are float32, as in the forward pass."""
        query, key, value, mask_RK, output = ctx.saved_tensors
        rows, num_keys = query.shape[2], key.shape[2]
        # sum over keys of share x gradient of the share
        expected = (grad.float() * output.float()).sum(-1, keepdim=True)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros_like(part, dtype=torch.float32) for part in (key, value))
        height = max(1, _BLOCK_SCORES // (query.shape[0] * query.shape[1] * num_keys))
        for start in range(0, rows, height):
            block = slice(start, min(start + height, rows))
            seen = num_keys if mask_RK is not None else block.stop
            query_b, grad_b, key_b, value_b = (
                query[:, :, block],
                grad[:, :, block],
                key[:, :, :seen],
                value[:, :, :seen],
            )
            scores = (query_b.float() @ key_b.float().mT).mul_(ctx.scaling)
            if mask_RK is not None:
                scores += mask_RK[block]
            else:
                scores += scores.new_full(scores.shape[2:], float("-inf")).triu(start + 1)
            shares = scores.softmax(-1)
            grad_scores = (grad_b.float() @ value_b.float().mT).sub_(expected[:, :, block])
            grad_scores = grad_scores.mul_(shares).mul_(ctx.scaling).to(query.dtype)
            grad_query[:, :, block] = grad_scores @ key_b
            grad_key[:, :, :seen] += grad_scores.mT @ query_b
            grad_value[:, :, :seen] += shares.to(value.dtype).mT @ grad_b
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None
