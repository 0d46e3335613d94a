import copy

import pytest
import torch
from torch import nn

from burnish.config.schema import OptimizerConfig
from burnish.errors import BurnishError
from burnish.training.optimizer import MasterAdamW, learning_rate_at


def test_schedules_by_hand() -> None:
    def rates(**settings) -> list[float]:
        config = OptimizerConfig(learning_rate=1.0, **settings)
        return [learning_rate_at(config, step, 6) for step in range(6)]

    assert rates() == [1.0] * 6
    assert rates(warmup_steps=2) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates(warmup_steps=2, decay="linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates(decay="cosine") == pytest.approx([1.0, 0.93301, 0.75, 0.5, 0.25, 0.06699], abs=1e-5)


def parameters(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype)),
        "norm": nn.Parameter(torch.ones(4, dtype=dtype)),
    }


def test_adamw_by_hand() -> None:
    # First step: m = (1 - b1) g, v = (1 - b2) g^2, both bias-corrected to g and g^2, so the step is lr g / (|g| + eps);
    # decoupled decay takes lr * wd * w from matrices. The gradient (3, 4) is clipped from norm 5 to 1: (0.6, 0.8).
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = MasterAdamW({"w": weight}, OptimizerConfig(learning_rate=0.1, weight_decay=0.5, epsilon=0.1))
    weight.grad = torch.tensor([[3.0, 4.0]])
    assert optimizer.step(0.1) == pytest.approx(5.0)
    expected = [1.0 * (1 - 0.05) - 0.1 * 0.6 / 0.7, -2.0 * (1 - 0.05) - 0.1 * 0.8 / 0.9]
    assert weight[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_no_decay_on_vectors() -> None:
    weights = parameters(torch.float32)
    optimizer = MasterAdamW(weights, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    matrix = weights["matrix"].detach().clone()
    optimizer.step(0.1)
    assert torch.allclose(weights["matrix"], matrix * 0.95)
    assert torch.equal(weights["norm"], torch.ones(4))


def test_small_updates_are_not_lost_in_bfloat16() -> None:
    weights = {"w": nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))}
    optimizer = MasterAdamW(weights, OptimizerConfig(learning_rate=1e-3))
    for _ in range(20):
        weights["w"].sum().backward()
        assert weights["w"].grad is None
        optimizer.step(1e-3)
    # each step of 0.001 is less than half the distance to the next bfloat16 below 1, 0.0039
    assert weights["w"][0, 0].item() == pytest.approx(0.98, abs=0.002)


def test_micro_batch_gradients_are_added() -> None:
    weights = parameters(torch.bfloat16)
    optimizer = MasterAdamW(weights, OptimizerConfig())
    for factor in (1.0, 2.0**-9):  # in bfloat16 1 + 2^-9 is 1
        (weights["matrix"] * factor).sum().backward()
    assert optimizer.masters["matrix"].grad[0, 0].item() == 1 + 2.0**-9


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    weights = parameters(torch.float32)
    before = copy.deepcopy(weights)
    optimizer = MasterAdamW(weights, OptimizerConfig())
    weights["matrix"].grad = torch.full((3, 4), float("nan"))
    with pytest.raises(BurnishError, match=r"the gradient's norm is nan: lower optimizer.learning_rate"):
        optimizer.step(1e-3)
    assert all(torch.equal(weights[name], before[name]) for name in weights)
