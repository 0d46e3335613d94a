"""AdamW on float32 master weights, whatever type the forward pass computes in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from burnish.config.schema import OptimizerConfig
from burnish.errors import BurnishError

_MOMENTS = ("exp_avg", "exp_avg_sq")


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


class MasterAdamW:
    """AdamW whose weights, gradients and moments are float32.

    A bfloat16 weight has 8 bits: an update of 1e-6 of its size would be lost. So the gradient of each micro-batch is
    added to a float32 sum as soon as it exists, the step is taken on a float32 copy, and the result is rounded into
    the weights that compute. Where those are float32 themselves there is no copy.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = dict(parameters)
        self.masters: dict[str, nn.Parameter] = {}
        for name, parameter in self.parameters.items():
            if parameter.dtype == torch.float32:
                self.masters[name] = parameter
            else:
                self.masters[name] = nn.Parameter(parameter.detach().float())
                parameter.register_post_accumulate_grad_hook(_add_gradient_to(self.masters[name]))
        matrices = [master for master in self.masters.values() if master.dim() > 1]
        others = [master for master in self.masters.values() if master.dim() <= 1]
        self._adamw = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            fused=all(master.device.type != "meta" for master in self.masters.values()),
        )

    def step(self, learning_rate: float) -> float:
        """Clip the summed gradient, update, clear the gradient. Returns its norm before clipping.

        Raises:
            BurnishError: the gradient is not finite; the weights are left as they were.
        """
        masters = list(self.masters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(masters, self.config.max_grad_norm))
        if not math.isfinite(norm):
            raise BurnishError(
                f"the gradient's norm is {norm}: lower optimizer.learning_rate, or use model.compute_dtype float32, "
                "and go on from the last checkpoint"
            )
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._round_into_parameters()
        return norm

    def state_bytes(self) -> int:
        """Bytes of the moments, whether there are some yet or not."""
        return sum(8 * master.numel() for master in self.masters.values())

    def forget_gradients(self) -> None:
        """Drop what is accumulated."""
        self._adamw.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments and step counts by name, for a checkpoint."""
        tensors = {}
        for name, master in self.masters.items():
            for key, value in self._adamw.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def load(self, weights: Mapping[str, Tensor], state_tensors: Mapping[str, Tensor]) -> None:
        """Take over the weights and moments of a checkpoint."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(weights[name])
        for name, master in self.masters.items():
            if f"step.{name}" in state_tensors:  # absent where no step was taken yet
                self._adamw.state[master] = {key: state_tensors[f"{key}.{name}"].clone() for key in ("step", *_MOMENTS)}
        self._round_into_parameters()

    @torch.no_grad()
    def _round_into_parameters(self) -> None:
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])


def _add_gradient_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        gradient = parameter.grad
        parameter.grad = None
        if gradient is None:
            return
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad += gradient

    return hook
