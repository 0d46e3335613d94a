"""Weights in the order that the matrix unit reads them, for as long as they do not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def packed_linears(module: nn.Module, *, num_rows: int) -> Iterator[None]:
    """Within it, the linear layers of `module` multiply with packed copies of their bfloat16 weights.

    oneDNN packs the weights of every product again. Where the input has few rows, as in decoding, that takes as long
    as the product: with 8 rows it is twice as fast without, with 64 a sixth faster. The copies take the memory of the
    weights once more, and go when the context ends. On other devices and types it changes nothing.
    """
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear and _can_pack(layer.weight)]
    try:
        for layer in layers:
            layer.forward = _packed(layer, num_rows)  # type: ignore[method-assign,assignment]  # for this context only
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _packed(layer: nn.Linear, num_rows: int) -> Callable[[Tensor], Tensor]:
    copy = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), num_rows)
    bias = layer.bias
    return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, copy, bias, "none", [], "")


def _can_pack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and multiplies_bfloat16()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products in bfloat16; without them they go by way of float32."""
    # where torch was built without oneDNN, as for Apple's processors, it does not have the question
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
