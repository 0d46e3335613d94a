"""Activation checkpointing: some layers keep only their input and compute the rest again in the backward pass."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from burnish.errors import ModelError


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The model's layers, first to last.

    Raises:
        ModelError: the model does not say what its layers are.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer  # slow to import

    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(f"train.recompute: {type(model).__name__} has no layers that could be computed again")
    return layers


def recompute(model: nn.Module, *, every: int) -> None:
    """Let every `every`-th layer keep its input alone; 1 is all of them. The gradient is the same bit for bit.

    Nothing is drawn at random in a layer, so no generator state is kept. Without gradient (sampling, scoring) nothing
    is kept in any case.
    """
    for layer in layers_of(model)[::every]:
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
        )
