"""A policy on several processes: its layers' products cut by tensor parallelism, its weights spread by FSDP2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import Replicate

from burnish.errors import ConfigError
from burnish.models import attention
from burnish.models.attention import AttentionPlan, SegmentAttention
from burnish.models.policy import Policy
from burnish.records import Segment

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SUMMED = "replicated_with_grad_allreduce"
_STYLES: dict[str, tuple[type[ParallelStyle], dict[str, Any]]] = {
    "colwise": (ColwiseParallel, {}),
    "rowwise": (RowwiseParallel, {}),
    "colwise_gather_output": (ColwiseParallel, {"output_layouts": Replicate()}),
    "rowwise_split_input": (RowwiseParallel, {"input_layouts": Replicate()}),
}


class Trunk(nn.Module):
    """From tokens to hidden states, with every weight of a policy inside, the heads' too.

    FSDP gathers what is not in a layer when this is called, and keeps it until the backward pass is over: so a head
    that is used between the two is whole.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.module = policy.module
        self._decoder = [policy.model.base_model]  # in a list, so that its weights are not counted twice

    def forward(self, token_ids_T: Tensor, position_ids_T: Tensor, plan: AttentionPlan) -> Tensor:
        """Hidden states [1, T, H]; of a view of them FSDP could not see the gradient."""
        hidden_1TH: Tensor = self._decoder[0](
            **attention.model_inputs(token_ids_T, position_ids_T, plan)
        ).last_hidden_state
        return hidden_1TH


@dataclass(frozen=True)
class Sharding:
    """How many copies of the spread weights there are, how many processes share one, and how many each product.

    `summed` are the weights that every process of a product has whole, though each sees a part of their gradient.
    """

    mesh: DeviceMesh
    summed: set[str] = field(default_factory=set)

    def spread(self, policy: Policy, dtype: torch.dtype) -> Policy:
        """The policy with its weights spread, in place, on the mesh's device. Trained ones are float32, and compute in
        `dtype`.
        """
        if self.mesh["tensor"].size() > 1:
            self._cut_products(policy)
        spread_over = self.mesh["copy", "share"] if self.mesh["copy"].size() > 1 else self.mesh["share"]
        precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        trunk = Trunk(policy)
        kept: set[nn.Parameter] = set()
        if (head := policy.value_head) is not None:  # small, and called outside of the trunk: every process has it
            kept = set(head.to(self.mesh.device_type).parameters())
        for layer in _layers(policy):
            _sum_gradients(fully_shard(layer, mesh=spread_over, mp_policy=precision))
        _sum_gradients(fully_shard(trunk, mesh=spread_over, mp_policy=precision, ignored_params=kept))
        spread = replace(policy, trunk=trunk)
        # FSDP looks once, in the first pass, which weights are trained: adapters that are switched off then are not
        zero_T = torch.zeros(1, dtype=torch.long, device=self.mesh.device_type)
        with torch.no_grad():
            spread.hidden_states(zero_T, zero_T, SegmentAttention([Segment(1, ())]))
        trunk.reshard()  # type: ignore[operator]  # FSDP's
        return spread

    def _cut_products(self, policy: Policy) -> None:
        model = policy.model
        styles = product_styles(model.config)
        cut: dict[str, ParallelStyle] = {}
        for name, _ in model.base_model.named_modules():
            for pattern, style in styles.items():
                if fnmatch(name, pattern):
                    if style == _SUMMED:
                        self.summed.add(name)
                    else:
                        kind, options = _STYLES[style]
                        cut[name] = kind(**options)
        parallelize_module(model.base_model, self.mesh["tensor"], cut)

    @torch.no_grad()
    def complete_gradients(self, parameters: Mapping[str, nn.Parameter], masters: Mapping[str, nn.Parameter]) -> Tensor:
        """Add up what each process has of a gradient that is not spread; the norm of all gradients.

        Every process must call it, and gets the same norm.
        """
        total = torch.zeros((), device=self.mesh.device_type)
        for name, master in masters.items():
            if master.grad is None:
                continue
            if not isinstance(parameters[name], DTensor):
                for dimension in ("copy", "share"):
                    dist.all_reduce(master.grad, group=self.mesh[dimension].get_group())
            if any(f".{each}." in f".{name}" for each in self.summed):
                dist.all_reduce(master.grad, group=self.mesh["tensor"].get_group())
            total += torch.linalg.vector_norm(master.grad) ** 2 / self._num_copies(parameters[name])
        dist.all_reduce(total)
        return total.sqrt()

    def _num_copies(self, parameter: Tensor) -> int:
        """How many processes have the same part of a weight."""
        if not isinstance(parameter, DTensor):
            return self.mesh.size()
        copies = self.mesh.size() // parameter.device_mesh.size()
        for dimension, placement in enumerate(parameter.placements):
            copies *= parameter.device_mesh.size(dimension) if isinstance(placement, Replicate) else 1
        return copies


def make_sharding(num_learners: int, tensor_parallel: int, replicas: int, device: torch.device) -> Sharding:
    """For the processes of a group that is there already. Those of a product are neighbours, then those of a copy."""
    shape = (replicas, num_learners // (replicas * tensor_parallel), tensor_parallel)
    return Sharding(init_device_mesh(device.type, shape, mesh_dim_names=("copy", "share", "tensor")))


def product_styles(config: PretrainedConfig) -> dict[str, str]:
    """Which products of a decoder are cut, and how, by the pattern of the layers' names: the model's own plan.

    Raises:
        ConfigError: the model has no plan, or one with a style that is not known here.
    """
    plan: dict[str, str] = {
        pattern: style
        for pattern, style in (getattr(config, "base_model_tp_plan", None) or {}).items()
        if pattern.startswith("layers.")  # embeddings and heads stay whole
    }
    if not plan:
        raise ConfigError(f"cluster.tensor_parallel: model type {config.model_type!r} says nothing of it: set it to 1")
    if unknown := sorted(set(plan.values()) - set(_STYLES) - {_SUMMED}):
        raise ConfigError(
            f"cluster.tensor_parallel: model type {config.model_type!r} wants {', '.join(unknown)}, which is not "
            "supported: set it to 1"
        )
    return plan


def check_tensor_parallel(config: PretrainedConfig, tensor_parallel: int) -> None:
    """Refuse to cut heads.

    Raises:
        ConfigError: it would, or the model cannot be cut at all.
    """
    if tensor_parallel == 1:
        return
    product_styles(config)
    heads = {
        "attention heads": config.num_attention_heads,
        "key-value heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "hidden units of a layer": config.intermediate_size,
    }
    for name, number in heads.items():
        if number % tensor_parallel:
            raise ConfigError(
                f"cluster.tensor_parallel={tensor_parallel} does not divide the model's {number} {name}: "
                "give a number that does"
            )


def _layers(policy: Policy) -> nn.ModuleList:
    lists = [module for module in policy.model.base_model.modules() if isinstance(module, nn.ModuleList)]
    return next(each for each in lists if len(each) == policy.model.config.num_hidden_layers)


def _sum_gradients(module: Any) -> None:
    # a loss is divided by the counts of the whole step already; gloo knows plain sums alone
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
