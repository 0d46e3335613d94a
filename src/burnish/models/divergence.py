"""How far a student's next-token distributions lie from a teacher's, in chunks: [S, V] never exists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from burnish.models.head import Head
from burnish.models.logprobs import CHUNK_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """forward_kl: KL(teacher || student). reverse_kl: KL(student || teacher). jsd: the mean of both sides' KL to their
    even mixture (Agarwal et al. 2024, eq. 1 with beta 1/2).

    With `top_k` the outcomes are the teacher's k likeliest tokens and "any other": a coarser view of the same two
    distributions, whose divergence is never larger than the full one.
    """

    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "reverse_kl"
    top_k: int | None = None

    def __call__(self, student_CV: Tensor, teacher_CV: Tensor) -> Tensor:
        """From log-probabilities to a divergence for each row, [C]."""
        if self.top_k is not None:
            ids_CK = teacher_CV.topk(self.top_k, dim=1).indices
            student_CV, teacher_CV = (_with_rest(part, ids_CK) for part in (student_CV, teacher_CV))
        if self.kind == "forward_kl":
            return _kl(teacher_CV, student_CV)
        if self.kind == "reverse_kl":
            return _kl(student_CV, teacher_CV)
        mixture_CV = torch.logaddexp(student_CV, teacher_CV) - torch.log(torch.tensor(2.0))
        return (_kl(student_CV, mixture_CV) + _kl(teacher_CV, mixture_CV)) / 2


def scored_divergence(
    divergence: Divergence, student: tuple[Tensor, Head], teacher: tuple[Tensor, Head], temperature: float
) -> Tensor:
    """Divergence [S] at every scored token, with gradient to the student.

    `student` and `teacher` are (hidden states [S, H], head); the vocabularies must be the same, the hidden sizes
    need not. Logits are divided by `temperature`.
    """
    apply: Callable[..., Tensor] = _ScoredDivergence.apply  # which torch leaves untyped
    hidden_SH, head = student
    teacher_SH, teacher_head = teacher
    heads = (head, teacher_head)
    return apply(hidden_SH, head.weight_VH, head.bias_V, teacher_SH, heads, divergence, temperature)


class _ScoredDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SH: Tensor,
        head_VH: Tensor,
        bias_V: Tensor | None,
        teacher_SH: Tensor,
        heads: tuple[Head, Head],
        divergence: Divergence,
        temperature: float,
    ) -> Tensor:
        ctx.save_for_backward(hidden_SH, head_VH, bias_V, teacher_SH)
        ctx.heads, ctx.divergence, ctx.temperature = heads, divergence, temperature
        head, teacher_head = heads
        parts = []
        for hidden_CH, teacher_CH in zip(hidden_SH.split(CHUNK_ROWS), teacher_SH.split(CHUNK_ROWS), strict=True):
            student_CV = _logprobs(head.logits(hidden_CH), temperature)
            parts.append(divergence(student_CV, _logprobs(teacher_head.logits(teacher_CH), temperature)))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_SH, head_VH, bias_V, teacher_SH = ctx.saved_tensors
        head, teacher_head = ctx.heads
        _, needs_head, needs_bias, *_ = ctx.needs_input_grad
        # Summed over chunks in float32: in bfloat16 the later chunks would be rounded away.
        grad_head_VH = torch.zeros(head_VH.shape, dtype=torch.float32, device=head_VH.device) if needs_head else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias else None
        grad_hidden = []
        chunks = (part.split(CHUNK_ROWS) for part in (hidden_SH, teacher_SH, gradients[0]))
        for hidden_CH, teacher_CH, grad_C in zip(*chunks, strict=True):
            logits_CV = head.logits(hidden_CH).requires_grad_()
            teacher_CV = _logprobs(teacher_head.logits(teacher_CH), ctx.temperature)
            with torch.enable_grad():
                value_C = ctx.divergence(_logprobs(logits_CV, ctx.temperature), teacher_CV)
            (grad_CV,) = torch.autograd.grad(value_C, logits_CV, grad_C)
            grad_CV = head.product_gradient(grad_CV, logits_CV.detach()).to(head_VH.dtype)
            grad_hidden.append(grad_CV @ head_VH)
            if grad_head_VH is not None:
                grad_head_VH += grad_CV.T @ hidden_CH
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0, dtype=torch.float32)
        grad_head = None if grad_head_VH is None else grad_head_VH.to(head_VH.dtype)
        grad_bias = None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype)
        return torch.cat(grad_hidden), grad_head, grad_bias, None, None, None, None


def _logprobs(logits_CV: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits_CV / temperature, dim=1)


def _kl(first_CV: Tensor, second_CV: Tensor) -> Tensor:
    return (first_CV.exp() * (first_CV - second_CV)).sum(1)


def _with_rest(logprobs_CV: Tensor, ids_CK: Tensor) -> Tensor:
    """Log-probabilities of the chosen ids and, last, of all others together."""
    chosen_CK = logprobs_CV.gather(1, ids_CK)
    others_CV = logprobs_CV.scatter(1, ids_CK, float("-inf"))
    return torch.cat([chosen_CK, others_CV.logsumexp(1, keepdim=True)], dim=1)
