"""Log-probabilities and entropies of scored tokens, in chunks: [S, V] never exists, forward or backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Rows of logits at once: 256 x 49,152 float32 are 50 MB. Larger chunks fall out of the cache and are slower.
CHUNK_ROWS = 256


def scored_logprobs(
    hidden_SH: Tensor, head_VH: Tensor, target_ids_S: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(log-probability [S] of each target, entropy [S] of its distribution, without gradient), float32.

    The distribution is softmax(hidden @ head^T / temperature); log-sum-exp and sums are float32.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _ScoredLogprobs.apply  # which torch leaves untyped
    return apply(hidden_SH, head_VH, target_ids_S, temperature)


class _ScoredLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_SH: Tensor, head_VH: Tensor, target_ids_S: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = [], []
        for hidden_CH, target_ids_C in zip(hidden_SH.split(CHUNK_ROWS), target_ids_S.split(CHUNK_ROWS), strict=True):
            logprobs_CV = _logprobs(hidden_CH, head_VH, temperature)
            logprobs.append(logprobs_CV.gather(1, target_ids_C[:, None])[:, 0])
            entropies.append(-(logprobs_CV.exp() * logprobs_CV).sum(1))
        ctx.save_for_backward(hidden_SH, head_VH, target_ids_S)
        ctx.temperature = temperature
        entropy_S = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_S)
        return torch.cat(logprobs), entropy_S

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_SH, head_VH, target_ids_S = ctx.saved_tensors
        grad_hidden = []
        needs_head = ctx.needs_input_grad[1]
        # Summed over chunks in float32: in bfloat16 the later chunks would be rounded away.
        grad_head_VH = torch.zeros(head_VH.shape, dtype=torch.float32, device=head_VH.device) if needs_head else None
        chunks = (part.split(CHUNK_ROWS) for part in (hidden_SH, target_ids_S, gradients[0]))
        for hidden_CH, target_ids_C, grad_C in zip(*chunks, strict=True):
            # d logprob / d logits = (one-hot - softmax) / temperature
            grad_CV = _logprobs(hidden_CH, head_VH, ctx.temperature).exp_().mul_(-grad_C[:, None])
            grad_CV.scatter_add_(1, target_ids_C[:, None], grad_C[:, None])
            if ctx.temperature != 1:
                grad_CV /= ctx.temperature
            grad_CV = grad_CV.to(head_VH.dtype)
            grad_hidden.append(grad_CV @ head_VH)
            if grad_head_VH is not None:
                grad_head_VH += grad_CV.T @ hidden_CH
        return torch.cat(grad_hidden), None if grad_head_VH is None else grad_head_VH.to(head_VH.dtype), None, None


def _logprobs(hidden_CH: Tensor, head_VH: Tensor, temperature: float) -> Tensor:
    logits_CV = (hidden_CH @ head_VH.T).float()
    return torch.log_softmax(logits_CV if temperature == 1 else logits_CV / temperature, dim=1)
