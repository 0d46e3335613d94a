"""A few tokens through a model, before it is trusted with real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.errors import ModelError
from burnish.models import attention
from burnish.models.attention import SegmentAttention
from burnish.models.head import head_of
from burnish.records import Segment

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Two branches of one prompt, and a sequence of its own; for the last token of the latter two, what it may depend on.
_SEGMENTS = (Segment(3, (2, 2)), Segment(3, ()))
_POSITIONS = (0, 1, 2, 3, 4, 3, 4, 0, 1, 2)
_SEEN = {6: {0, 1, 2, 5, 6}, 9: {7, 8, 9}}

# bfloat16 rounds a number by 1/512 of it at most, a logit in each of the few steps that make it
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.01}


def try_out(model: PreTrainedModel) -> None:
    """Refuse a model whose tokens meet elsewhere than in the plan's attention, or whose logits are not its head's.

    A convolution or a recurrence over the row would mix the sequences that are packed in it; a layer that attends
    twice would store two things in one place of a cache. The finding does not depend on rounding: what a token must
    not see has a gradient of exactly 0. On torch's "meta" device there is nothing to find.

    Raises:
        ModelError: the model is not supported.
    """
    if model.device.type == "meta":
        return
    try:
        with torch.enable_grad():
            fault = _fault(model)
    except ModelError:
        raise
    except Exception as error:  # whatever another kind of forward pass makes of a plan
        fault = f"a trial of it failed: {' '.join(str(error).split())[:300]}"
    if fault is not None:
        raise ModelError(f"model type {model.config.model_type!r} is not supported: {fault}")


def _fault(model: PreTrainedModel) -> str | None:
    embedding: Any = model.get_input_embeddings()
    device = model.device
    embedded: list[Tensor] = []
    layers: list[int] = []
    plan = SegmentAttention(_SEGMENTS, on_key_value=lambda layer, key, value: layers.append(layer))
    token_ids_T, position_ids_T = torch.arange(len(_POSITIONS), device=device), torch.tensor(_POSITIONS, device=device)
    hook = embedding.register_forward_hook(lambda module, ids, output: embedded.append(output.requires_grad_()))
    try:
        hidden_TH = attention.hidden_states(model.base_model, token_ids_T, position_ids_T, plan)
    finally:
        hook.remove()
    if sorted(layers) != list(range(model.config.num_hidden_layers)):
        return "not every one of its layers attends once"
    # not sums, which are the same for all inputs where the last layer normalises
    mixed_T = hidden_TH.float() @ torch.arange(hidden_TH.shape[1], device=device).float().cos()
    for last, seen in _SEEN.items():
        (gradient,) = torch.autograd.grad(mixed_T[last], embedded[0], retain_graph=True)
        if not set(gradient[0].any(1).nonzero()[:, 0].tolist()) <= seen:
            return "sequences that are packed in one row mix in it"
    if model.get_output_embeddings() is not None:
        with torch.no_grad():
            own_TV = model(**attention.model_inputs(token_ids_T, position_ids_T, plan)).logits[0].float()
            logits_TV = head_of(model).logits(hidden_TH.detach())
        if not (logits_TV - own_TV).norm() <= _TOLERANCES[hidden_TH.dtype] * own_TV.norm():
            return "it changes its logits in a way of its own"
    return None
