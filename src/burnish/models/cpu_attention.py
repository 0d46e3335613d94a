"""Scaled dot-product attention with a backward pass for the CPU's short, many-headed shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK_SCORES = 4_000_000  # computed at once in the backward pass: 8 MB in bfloat16


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
        return _flash(query, key, value, mask_RK, scaling)[0]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask_RK, is_causal=mask_RK is None, scale=scaling
    )


def _flash(query: Tensor, key: Tensor, value: Tensor, mask_RK: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """What torch chooses on a CPU, with the logarithm of each row's sum of exponentials [N, heads, R], float32."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found = flash(query, key, value, is_causal=mask_RK is None, attn_mask=mask_RK, scale=scaling)
    return cast(tuple[Tensor, Tensor], found)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask_RK: Tensor | None, scaling: float) -> Tensor:
        output, log_sum = _flash(query, key, value, mask_RK, scaling)
        ctx.save_for_backward(query, key, value, mask_RK, output, log_sum)
        ctx.scaling = scaling
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Dao et al. 2022 (arXiv 2205.14135), appendix B.2.

        Both products that a sum of the row is subtracted from subtract it as one more dimension. In bfloat16 they are
        rounded after that and not before: a logarithm of a share near 0 and a gradient of a score keep their eight bits.
        """
        query, key, value, mask_RK, output, log_sum = ctx.saved_tensors
        rows, num_keys = query.shape[2], key.shape[2]
        # sum over keys of share x gradient of the share
        expected = (grad.float() * output.float()).sum(-1)
        query_less, grad_less = _less(query, log_sum / ctx.scaling), _less(grad, expected)
        key_one, value_one = (F.pad(part, (0, 2), value=1.0) for part in (key, value))
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros_like(part, dtype=torch.float32) for part in (key, value))
        height = max(1, _BLOCK_SCORES // (query.shape[0] * query.shape[1] * num_keys))
        for start in range(0, rows, height):
            block = slice(start, min(start + height, rows))
            seen = slice(num_keys if mask_RK is not None else block.stop)
            shares = (query_less[:, :, block] @ key_one[:, :, seen].mT).mul_(ctx.scaling)
            if mask_RK is not None:
                shares += mask_RK[block]
            shares.exp_()
            if mask_RK is None:
                shares[..., start:].tril_()
            grad_scores = (grad_less[:, :, block] @ value_one[:, :, seen].mT).mul_(shares)
            grad_query[:, :, block] = (grad_scores @ key[:, :, seen]).mul_(ctx.scaling)
            grad_key[:, :, seen] += grad_scores.mT @ query[:, :, block]
            grad_value[:, :, seen] += shares.mT @ grad[:, :, block]
        return grad_query, grad_key.mul_(ctx.scaling).to(key.dtype), grad_value.to(value.dtype), None, None


def _less(part: Tensor, total_R: Tensor) -> Tensor:
    """Two more dimensions, whose product with ones is -total_R: it in the type of `part`, and what that rounds away."""
    coarse = total_R.to(part.dtype)
    return torch.cat([part, -coarse[..., None], (coarse - total_R).to(part.dtype)[..., None]], dim=-1)
