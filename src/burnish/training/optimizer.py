"""Optimizers on float32 master weights, whatever type the forward pass computes in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from burnish.config.extras import requires_extra
from burnish.config.schema import OptimizerConfig
from burnish.errors import NotFiniteError
from burnish.memory.allocator import allocator
from burnish.memory.trace import LiveBytes
from burnish.training.shards import is_spread, local_part, part_of, whole

_STATE = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer", "row_var", "col_var", "variance")
_QUANTIZED = ("codes", "scale", "qmap")
_BLOCK = 256  # values that share a scale in 8 bits
CompleteGradients = Callable[[Mapping[str, nn.Parameter], Mapping[str, nn.Parameter]], Tensor]
"""From parameters and their masters, which have the gradients, to the norm."""

_LAYER = re.compile(r"\.\d+\.")


def learning_rate_at(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Rate of optimizer step `step` (from 0) of `num_steps`: linear warm-up, then the decay towards 0 at the end."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    if config.decay == "linear":
        return config.learning_rate * (1 - done)
    if config.decay == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate


class MasterOptimizer:
    """An optimizer whose weights and gradients are float32.

    A bfloat16 weight has 8 bits: an update of 1e-6 of its size would be lost. So the gradient of each micro-batch is
    added to a float32 sum as soon as it exists, the step is taken on a float32 copy, and the result is rounded into
    the weights that compute. Where those are float32 themselves there is no copy.

    With a `device` the copies, their gradients and the moments live there, wherever the weights are. With
    `steps_in_backward` the learner takes `step_in_backward` in the place of a backward pass and `step`.

    Of a weight that is spread over processes the master is the part that is here. `complete_gradients` then adds what
    other processes have of a gradient, and returns the norm of all gradients.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        *,
        device: torch.device | None = None,
        steps_in_backward: bool = False,
        complete_gradients: CompleteGradients | None = None,
    ) -> None:
        self.config = config
        self._complete_gradients = complete_gradients or _norm
        self.steps_in_backward = steps_in_backward
        self.parameters = dict(parameters)
        self.masters: dict[str, nn.Parameter] = {}
        for name, parameter in self.parameters.items():
            part = local_part(parameter.detach())
            if part.dtype == torch.float32 and device in (None, part.device) and not is_spread(parameter):
                self.masters[name] = parameter
            else:
                self.masters[name] = nn.Parameter(part.to(device, torch.float32))
                parameter.register_post_accumulate_grad_hook(_add_gradient_to(self.masters[name]))
        self._optimizers = _make(config, self.masters)
        self._homes = {
            master: (optimizer, group)
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for master in group["params"]
        }

    def step(self, learning_rate: float) -> float:
        """Clip the summed gradient, update, clear the gradient. Returns its norm before clipping.

        Raises:
            BurnishError: the gradient is not finite; the weights are left as they were.
        """
        masters = [master for master in self.masters.values() if master.grad is not None]
        norm = self._complete_gradients(self.parameters, self.masters)
        _require_finite(float(norm))
        if self.config.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(masters, self.config.max_grad_norm, norm)
        for optimizer in self._optimizers:
            _take_step(optimizer, learning_rate)
            optimizer.zero_grad(set_to_none=True)
        for name in self.parameters:
            self._round_into_parameter(name)
        return float(norm)

    def step_in_backward(self, loss: Tensor, learning_rate: float) -> float:
        """Run the backward pass, update each weight as soon as its gradient is complete, and free that. Nothing is
        clipped. Returns the norm of the whole gradient.

        Raises:
            BurnishError: a gradient is not finite. Its weight is left as it was; what the forward pass made infinite
                is found so before any update. Where the backward pass did, later layers have been updated already.
        """
        norms: list[float] = []
        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._update, name, learning_rate, norms))
            for name, parameter in self.parameters.items()
        ]
        try:
            loss.backward()
        finally:
            for hook in hooks:
                hook.remove()
        return math.hypot(*norms)

    def forget_gradients(self) -> None:
        """Drop what is accumulated."""
        for master in self.masters.values():
            master.grad = None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The float32 weights by name, whole, one after the other."""
        for name, master in self.masters.items():
            yield name, whole(master.detach(), self.parameters[name])

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Moments and step counts by name, whole, one after the other, for a checkpoint."""
        for name, master in self.masters.items():
            optimizer, _ = self._homes[master]
            for key, value in optimizer.state.get(master, {}).items():
                if type(value) is Tensor:
                    yield f"{key}.{name}", whole(value, self.parameters[name])
                else:
                    yield from ((f"{key}.{part}.{name}", getattr(value, part)) for part in _QUANTIZED)

    def load(self, weights: Mapping[str, Tensor], state_tensors: Mapping[str, Tensor]) -> None:
        """Take over the weights and moments of a checkpoint."""
        for name, master in self.masters.items():
            with torch.no_grad():
                master.copy_(part_of(weights[name], self.parameters[name]))
            self._round_into_parameter(name)
            optimizer, _ = self._homes[master]
            state = {}
            for key in _STATE:  # a kind has some of them, and none before its first step
                # only fused kernels keep the count beside the weights
                stays = key == "step" and not optimizer.defaults.get("fused")
                device = torch.device("cpu") if stays else master.device
                if f"{key}.{name}" in state_tensors:
                    saved = part_of(state_tensors[f"{key}.{name}"], self.parameters[name])
                    state[key] = saved.to(device, copy=True)
                elif f"{key}.codes.{name}" in state_tensors:
                    parts = {part: state_tensors[f"{key}.{part}.{name}"] for part in _QUANTIZED}
                    state[key] = _quantized(parts, device, is_signed=key == "exp_avg")
            if state:
                optimizer.state[master] = state

    @torch.no_grad()
    def _update(self, name: str, learning_rate: float, norms: list[float], parameter: Tensor) -> None:
        """The step of one weight, and the norm of its gradient."""
        master = self.masters[name]
        gradient = master.grad
        if gradient is None:
            return
        norms.append(float(torch.linalg.vector_norm(gradient)))
        _require_finite(norms[-1])
        optimizer, group = self._homes[master]
        groups = optimizer.param_groups
        optimizer.param_groups = [{**group, "params": [master]}]
        try:
            _take_step(optimizer, learning_rate)
        finally:
            optimizer.param_groups = groups
        master.grad = None
        self._round_into_parameter(name)

    @torch.no_grad()
    def _round_into_parameter(self, name: str) -> None:
        part = local_part(self.parameters[name])
        if part.data_ptr() != self.masters[name].data_ptr():
            part.copy_(self.masters[name])


def state_bytes(config: OptimizerConfig, name: str, shape: torch.Size) -> int:
    """Size of what the optimizer keeps of one weight beside its float32 copy, once it took a step."""
    numel = shape.numel()
    step, moments = 4, 8 * numel
    if config.kind == "adafactor" and len(shape) > 1:
        return step + 4 * (numel // shape[-1] + numel // shape[-2])
    if config.kind == "adafactor":
        return step + 4 * numel
    if config.kind == "muon" and _is_in_layer(name, shape):
        return 4 * numel
    if config.kind == "adamw_8bit" and numel >= 4096 and numel % _BLOCK == 0:  # smaller ones stay float32
        codes, scales, table = numel, 4 * (numel // _BLOCK), 4 * 256
        return step + 2 * (codes + scales + table)
    return step + moments


def step_bytes(config: OptimizerConfig, name: str, shape: torch.Size) -> int:
    """Size of what a step of one weight makes and frees again, as traced.

    Only the 8-bit AdamW is looked at, whose step is some thirteen times the weight: both moments and the weight in
    float32, then several whole numbers of 64 bits for each code that is searched for, before it is cut to 8. The
    others make a few copies at most.
    """
    if config.kind != "adamw_8bit":
        return 0
    with LiveBytes() as live:
        master = nn.Parameter(torch.empty(shape, device="meta"))
        master.grad = torch.empty_like(master)
        (optimizer,) = _make(config, {name: master})
        before = live.live_bytes
        _take_step(optimizer, config.learning_rate)
        return int(live.peak_bytes - before) - state_bytes(config, name, shape)


def check_installed(config: OptimizerConfig) -> None:
    """Refuse a kind whose package is missing.

    Raises:
        ConfigError: it is.
    """
    if config.kind == "adamw_8bit":
        _torchao()


def _make(config: OptimizerConfig, masters: Mapping[str, nn.Parameter]) -> list[Optimizer]:
    rate, decay = config.learning_rate, config.weight_decay
    rest = dict(masters)
    optimizers: list[Optimizer] = []
    if config.kind == "muon":
        layers = {name: master for name, master in masters.items() if _is_in_layer(name, master.shape)}
        rest = {name: master for name, master in masters.items() if name not in layers}
        # the size of an update is then AdamW's, so that one rate serves both (Liu et al. 2025, section 2.2)
        group = {"params": list(layers.values()), "weight_decay": decay}
        optimizers.append(torch.optim.Muon([group], lr=rate, adjust_lr_fn="match_rms_adamw"))
    groups: list[dict[str, Any]] = [
        {"params": [master for master in rest.values() if master.dim() > 1], "weight_decay": decay},
        {"params": [master for master in rest.values() if master.dim() <= 1], "weight_decay": 0.0},
    ]
    if config.kind == "adafactor":
        optimizers.append(torch.optim.Adafactor(groups, lr=rate))
    elif config.kind == "adamw_8bit":
        optimizers.append(_torchao().AdamW8bit(groups, lr=rate, betas=config.betas, block_size=_BLOCK))
    else:
        is_fused = all(master.device.type != "meta" for master in rest.values())  # which has no fused kernels
        optimizers.append(torch.optim.AdamW(groups, lr=rate, betas=config.betas, fused=is_fused))
    return optimizers


def _is_in_layer(name: str, shape: torch.Size) -> bool:
    """Whether a weight is a matrix of a layer, whose number stands in its name; embeddings and heads have none."""
    return len(shape) == 2 and _LAYER.search(name) is not None


def _take_step(optimizer: Optimizer, learning_rate: float) -> None:
    is_compiled = False
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's, which compiles its step for each shape: half a minute
            group["lr"].fill_(learning_rate)
            is_compiled = True
        else:
            group["lr"] = learning_rate
    # the first step makes the moments
    with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext(), allocator.long_lived():
        optimizer.step()


def _norm(parameters: Mapping[str, nn.Parameter], masters: Mapping[str, nn.Parameter]) -> Tensor:
    return torch.nn.utils.get_total_norm([master.grad for master in masters.values() if master.grad is not None])


def _require_finite(norm: float) -> None:
    if not math.isfinite(norm):
        raise NotFiniteError(
            f"the gradient's norm is {norm}: lower optimizer.learning_rate, or use model.compute_dtype float32, "
            "and go on from the last checkpoint"
        )


def _add_gradient_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        gradient, parameter.grad = local_part(parameter.grad), None
        if master.grad is None:
            with allocator.long_lived():
                master.grad = gradient.to(master.device, master.dtype)
        else:
            master.grad += gradient.to(master.device)

    return hook


def _quantized(parts: Mapping[str, Tensor], device: torch.device, *, is_signed: bool) -> Tensor:
    from torchao.optim.subclass_8bit import OptimState8bit

    copies = {name: part.to(device, copy=True) for name, part in parts.items()}
    moment: Tensor = OptimState8bit.__tensor_unflatten__(copies, [is_signed, torch.float32])
    return moment


def _torchao() -> Any:
    """The module torchao.optim."""
    with requires_extra("quantized", "optimizer.kind=adamw_8bit needs torchao"):
        from torchao import optim
    return optim
