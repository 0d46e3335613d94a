"""A frozen base in 8 or 4 bits a weight, for adapters to be trained on (QLoRA, Dettmers et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Bits = Literal[4, 8]

_GROUP = 64  # weights of a row that share a scale


class QuantizedLinear(nn.Linear):
    """y = x W^T + b with W in whole numbers times a scale for each group of 64 weights of a row, symmetric about 0.

    The weight in the type that computes exists for one product at a time, in the forward and again in the backward
    pass, so an activation that autograd keeps is never a weight. 8 bits cost 8.25 bits a weight, 4 cost 4.25. It is a
    Linear so that peft puts adapters on it; what a Linear stores, it does not.
    """

    def __init__(self, linear: nn.Linear, bits: Bits) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = linear.in_features, linear.out_features, bits
        self.bias = linear.bias
        weight = linear.weight.detach()
        grouped = weight.view(self.out_features, -1, math.gcd(self.in_features, _GROUP)).float()
        largest = 2 ** (bits - 1) - 1
        # in the type that is kept, so that the rounding below knows the scale it will be multiplied with
        scales = (grouped.abs().amax(2, keepdim=True).clamp_min(1e-12) / largest).to(weight.dtype)
        codes = (grouped / scales.float()).round_().clamp_(-largest, largest).to(torch.int8).flatten(1)
        self.register_buffer("codes", _two_in_a_byte(codes) if bits == 4 else codes)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # made when it is asked for
        """W [out, in] in the type of the scales."""
        codes: Tensor = self.get_buffer("codes")
        scales = self.get_buffer("scales")
        if self.bits == 4:
            codes = torch.stack([codes.bitwise_left_shift(4), codes], dim=2).flatten(1).bitwise_right_shift(4)
        return (codes.view(self.out_features, scales.shape[1], -1) * scales).flatten(1)

    def forward(self, rows: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        apply: Callable[..., Tensor] = _FrozenProduct.apply  # which torch leaves untyped
        output = apply(rows, self)
        return output if self.bias is None else output + self.bias


def quantize_layers(model: PreTrainedModel, bits: Bits) -> None:
    """Put the linear layers of a model, but neither its language head nor its value head, into `bits` bits.

    Raises:
        ModelError: most weights of its layers are in other modules and would stay as they are.
    """
    heads = [model.get_output_embeddings(), getattr(model, "score", None)]
    found = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is nn.Linear and not any(child is head for head in heads) and child.in_features % 2 == 0
    ]
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    outside = {id(module.weight) for module in (*embeddings, *heads) if module is not None}
    num_weights = sum(each.numel() for each in model.parameters() if each.dim() > 1 and id(each) not in outside)
    num_quantized = sum(linear.weight.numel() for _, _, linear in found)
    if 2 * num_quantized < num_weights:
        raise ModelError(
            f"model.lora.base_bits={bits} would leave {1 - num_quantized / num_weights:.0%} of the layers' weights as "
            f"they are: {type(model).__name__} keeps them in other modules than nn.Linear; set it to 16, or take a "
            "dense model of another family"
        )
    for module, name, linear in found:
        setattr(module, name, QuantizedLinear(linear, bits))


def _two_in_a_byte(codes: Tensor) -> Tensor:
    """Neighbours of a row, the first in the lower half; signed, so that a shift to the right restores the sign."""
    lower, upper = codes[:, ::2], codes[:, 1::2]
    return upper.bitwise_left_shift(4) | (lower & 15)


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(rows, layer.weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.weight, None
