"""Weights that are spread over processes (torch's DTensor): the part that is here, and all of it.

What is computed weight by weight, as an optimizer's step, is computed on the parts, which are plain tensors.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

_MODULE = "torch.distributed.tensor"


def is_spread(tensor: Tensor) -> TypeIs[DTensor]:
    """Whether a tensor is spread. Where nothing imported DTensor, which takes half a second, there is none."""
    return _MODULE in sys.modules and isinstance(tensor, sys.modules[_MODULE].DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor; it shares its storage."""
    return tensor.to_local() if is_spread(tensor) else tensor


def whole(part: Tensor, like: Tensor) -> Tensor:
    """All of a tensor that is spread as `like` is, from the parts of it; every process that has one must ask."""
    if not is_spread(like) or part.dim() == 0:  # a count of steps is the same everywhere
        return part
    from torch.distributed.tensor import DTensor

    spread = DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return spread.full_tensor()


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that it has whole, if it is to be spread as `like` is."""
    if not is_spread(like) or full.dim() == 0:
        return full
    from torch.distributed.tensor import distribute_tensor

    # each process cuts its own part, so nothing is sent
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None).to_local()
