"""Scaled dot-product attention with a backward pass for the CPU's short, many-headed shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK_SCORES = 4_000_000  # computed at once in the backward pass: 16 MB in float32


def attention(query: Tensor, key: Tensor, value: Tensor, mask_RK: Tensor | None, scaling: float) -> Tensor:
    """Output [N, heads, R, head_dim] for queries of that shape, keys and values [N, heads, K, head_dim].

    `mask_RK` is added to the scores; None is causal, with R = K. On the CPU torch's own backward pass takes two to
    five times as long as the scores computed once more, a block of rows at a time; its forward pass is used as it is.
    """
    on_cpu = query.device.type in ("cpu", "meta")  # a plan of the memory runs on meta
    if not on_cpu or not torch.is_grad_enabled() or query.shape[2] == 0:
        return _forward(query, key, value, mask_RK, scaling)
    apply: Callable[..., Tensor] = _Attention.apply  # which torch leaves untyped
    return apply(*(_dense(part) for part in (query, key, value)), mask_RK, scaling)


def _forward(query: Tensor, key: Tensor, value: Tensor, mask_RK: Tensor | None, scaling: float) -> Tensor:
    if query.device.type == "meta":  # what would be chosen there keeps every score
        return _flash(query, key, value, mask_RK, scaling)[0]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask_RK, is_causal=mask_RK is None, scale=scaling
    )


def _dense(part: Tensor) -> Tensor:
    """The kernel takes the numbers of a head to lie side by side, and does not look."""
    return part if part.stride(-1) == 1 else part.contiguous()


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
        """Dao et al. 2022 (arXiv 2205.14135), appendix B.2. Scores and shares are float32, as in the forward pass.

        Both products that a sum of the row is subtracted from subtract it as further dimensions. So the other one may
        be made in bfloat16: it is rounded after the subtraction, and a gradient of a score keeps its eight bits.
        """
        query, key, value, mask_RK, output, log_sum = ctx.saved_tensors
        rows, num_keys = query.shape[2], key.shape[2]
        # sum over keys of share x gradient of the share
        expected = (grad.float() * output.float()).sum(-1)
        query_less, key_one = _less(query.float() * ctx.scaling, log_sum), F.pad(key.float(), (0, 2), value=1.0)
        grad_less, value_one = _less(grad, expected), F.pad(value, (0, 2), value=1.0)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros_like(part, dtype=torch.float32) for part in (key, value))
        height = max(1, _BLOCK_SCORES // (query.shape[0] * query.shape[1] * num_keys))
        for start in range(0, rows, height):
            block = slice(start, min(start + height, rows))
            seen = slice(num_keys if mask_RK is not None else block.stop)
            logs = query_less[:, :, block] @ key_one[:, :, seen].mT
            if mask_RK is not None:
                logs += mask_RK[block]
            shares = logs.exp_().to(query.dtype)
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
