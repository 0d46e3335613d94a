"""Log-probabilities and entropies of scored tokens, in chunks: [S, V] never exists, forward or backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from burnish.models.head import Head

# Rows of logits at once: 256 x 49,152 float32 are 50 MB. Larger chunks fall out of the cache and are slower.
CHUNK_ROWS = 256


def scored_logprobs(
    hidden_SH: Tensor, head: Head, target_ids_S: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(log-probability [S] of each target, entropy [S] of its distribution), float32, both with gradient.

    The distribution is softmax(head.logits(hidden) / temperature); log-sum-exp and sums are float32.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _ScoredLogprobs.apply  # which torch leaves untyped
    return apply(hidden_SH, head.weight_VH, head.bias_V, head, target_ids_S, temperature)


def log_collisions(hidden_SH: Tensor, head: Head, temperature: float = 1.0) -> Tensor:
    """Log of sum_v p(v)^2 [S], without gradient: minus the order-2 Renyi entropy."""
    chunks = [torch.logsumexp(2 * _logprobs(head.logits(part), temperature), 1) for part in hidden_SH.split(CHUNK_ROWS)]
    return torch.cat(chunks)


class _ScoredLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SH: Tensor,
        head_VH: Tensor,
        bias_V: Tensor | None,
        head: Head,
        target_ids_S: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = [], []
        for hidden_CH, target_ids_C in zip(hidden_SH.split(CHUNK_ROWS), target_ids_S.split(CHUNK_ROWS), strict=True):
            logprobs_CV = _logprobs(head.logits(hidden_CH), temperature)
            logprobs.append(logprobs_CV.gather(1, target_ids_C[:, None])[:, 0])
            entropies.append(-torch.einsum("cv,cv->c", logprobs_CV.exp(), logprobs_CV))
        logprobs_S = torch.cat(logprobs)
        ctx.save_for_backward(hidden_SH, head_VH, bias_V, target_ids_S, logprobs_S)
        ctx.head, ctx.temperature = head, temperature
        ctx.set_materialize_grads(False)  # a loss without an entropy term costs no entropy gradient
        return logprobs_S, torch.cat(entropies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_SH, head_VH, bias_V, target_ids_S, logprobs_S = ctx.saved_tensors
        grad_hidden = []
        _, needs_head, needs_bias, *_ = ctx.needs_input_grad
        # Summed over chunks in float32: in bfloat16 the later chunks would be rounded away.
        grad_head_VH = torch.zeros(head_VH.shape, dtype=torch.float32, device=head_VH.device) if needs_head else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias else None
        grad_logprobs_S, grad_entropy_S = gradients
        if grad_logprobs_S is None:
            grad_logprobs_S = torch.zeros(len(target_ids_S), device=hidden_SH.device)
        # d logprob / d logits = one-hot - p; at the target 1 - p, exactly where p is near 1
        grad_targets_S = -torch.expm1(logprobs_S) * grad_logprobs_S
        entropy_parts = [None] * -(-len(target_ids_S) // CHUNK_ROWS)
        if grad_entropy_S is not None:
            entropy_parts = grad_entropy_S.split(CHUNK_ROWS)
        chunks = (part.split(CHUNK_ROWS) for part in (hidden_SH, target_ids_S, grad_logprobs_S, grad_targets_S))
        for hidden_CH, target_ids_C, grad_C, grad_target_C, grad_entropy_C in zip(*chunks, entropy_parts, strict=True):
            if grad_entropy_C is None and ctx.temperature == 1 and ctx.head.is_matrix:
                # The gradient enters the products in the head's type, so the softmax may be made in it too.
                grad_CV = torch.softmax(hidden_CH @ head_VH.T, dim=1).mul_(-grad_C[:, None])
                grad_CV.scatter_(1, target_ids_C[:, None], grad_target_C[:, None].to(grad_CV.dtype))
            else:
                logits_CV = ctx.head.logits(hidden_CH)
                logprobs_CV = _logprobs(logits_CV, ctx.temperature)
                probabilities_CV = logprobs_CV.exp()
                grad_CV = (probabilities_CV * -grad_C[:, None]).scatter_(
                    1, target_ids_C[:, None], grad_target_C[:, None]
                )
                if grad_entropy_C is not None:
                    # d entropy / d logits = -p (log p + entropy)
                    entropy_C1 = -torch.einsum("cv,cv->c", probabilities_CV, logprobs_CV)[:, None]
                    grad_CV -= probabilities_CV * (logprobs_CV + entropy_C1) * grad_entropy_C[:, None]
                grad_CV = ctx.head.product_gradient(grad_CV / ctx.temperature, logits_CV).to(head_VH.dtype)
            grad_hidden.append(grad_CV @ head_VH)
            if grad_head_VH is not None:
                grad_head_VH += grad_CV.T @ hidden_CH
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0, dtype=torch.float32)
        grad_head = None if grad_head_VH is None else grad_head_VH.to(head_VH.dtype)
        grad_bias = None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype)
        return torch.cat(grad_hidden), grad_head, grad_bias, None, None, None


def _logprobs(logits_CV: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits_CV if temperature == 1 else logits_CV / temperature, dim=1)
