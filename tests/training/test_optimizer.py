import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from burnish.config.schema import ModelConfig, OptimizerConfig
from burnish.data.packing import pack
from burnish.errors import BurnishError, ConfigError
from burnish.losses.imitation import NegativeLogLikelihood
from burnish.models.load import load_policy
from burnish.records import Branch, Example
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer, check_installed, learning_rate_at, state_bytes

KINDS = ("adamw", "adamw_8bit", "adafactor", "muon")


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    if request.param == "adamw_8bit":
        need_torchao()
    return request.param


def need_torchao() -> None:
    pytest.importorskip("torchao", reason="torchao is in the extra `quantized`")


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
    # First step: m = (1 - b1) g, v = (1 - b2) g^2, both bias-corrected to g and g^2, so the step is lr g / |g|;
    # decoupled decay takes lr * wd * w from matrices. The gradient (3, 4) is clipped from norm 5 to 1: (0.6, 0.8).
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = MasterOptimizer({"w": weight}, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    weight.grad = torch.tensor([[3.0, 4.0]])
    assert optimizer.step(0.1) == pytest.approx(5.0)
    first = [1.0 * 0.95 - 0.1, -2.0 * 0.95 - 0.1]
    assert weight[0].tolist() == pytest.approx(first, abs=1e-6)
    # Second step, with the gradient (0, 0.8), which is not clipped; b1 = 0.9 and b2 = 0.95. The first weight has
    # m = 0.9 * 0.1 * 0.6 of 1 - 0.81, and v = 0.95 * 0.05 * 0.36 of 1 - 0.9025; the second weight as before.
    weight.grad = torch.tensor([[0.0, 0.8]])
    assert optimizer.step(0.1) == pytest.approx(0.8)
    moment, size = 0.09 * 0.6 / 0.19, (0.0475 * 0.36 / 0.0975) ** 0.5
    second = [first[0] * 0.95 - 0.1 * moment / size, first[1] * 0.95 - 0.1]
    assert weight[0].tolist() == pytest.approx(second, abs=1e-6)


def test_no_decay_on_vectors() -> None:
    weights = parameters(torch.float32)
    optimizer = MasterOptimizer(weights, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    matrix = weights["matrix"].detach().clone()
    optimizer.step(0.1)
    assert torch.allclose(weights["matrix"], matrix * 0.95)
    assert torch.equal(weights["norm"], torch.ones(4))


def test_small_updates_are_not_lost_in_bfloat16() -> None:
    weights = {"w": nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))}
    optimizer = MasterOptimizer(weights, OptimizerConfig(learning_rate=1e-3))
    for _ in range(20):
        weights["w"].sum().backward()
        assert weights["w"].grad is None
        optimizer.step(1e-3)
    # each step of 0.001 is less than half the distance to the next bfloat16 below 1, 0.0039
    assert weights["w"][0, 0].item() == pytest.approx(0.98, abs=0.002)


def test_micro_batch_gradients_are_added() -> None:
    weights = parameters(torch.bfloat16)
    optimizer = MasterOptimizer(weights, OptimizerConfig())
    for factor in (1.0, 2.0**-9):  # in bfloat16 1 + 2^-9 is 1
        (weights["matrix"] * factor).sum().backward()
    assert optimizer.masters["matrix"].grad[0, 0].item() == 1 + 2.0**-9


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    weights = parameters(torch.float32)
    before = copy.deepcopy(weights)
    optimizer = MasterOptimizer(weights, OptimizerConfig())
    weights["matrix"].grad = torch.full((3, 4), float("nan"))
    with pytest.raises(BurnishError, match=r"the gradient's norm is nan: lower optimizer.learning_rate"):
        optimizer.step(1e-3)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


SHAPES = {"layers.0.up": (64, 128), "layers.0.norm": (64,), "embed": (80, 64), "layers.1.down": (16, 32)}


def weights_of(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """Names and shapes that the kinds treat apart; two of them are large enough for 8 bits."""
    generator = torch.Generator().manual_seed(1)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()}


def gradients(num_steps: int, *, seed: int = 2) -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for step in range(num_steps):
        yield {name: 10**-step * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def walk(optimizer: MasterOptimizer, steps: Iterator[dict[str, torch.Tensor]]) -> list[float]:
    """Gradients arrive as a backward pass brings them."""
    norms = []
    for step in steps:
        sum((optimizer.parameters[name] * gradient).sum() for name, gradient in step.items()).backward()
        norms.append(optimizer.step(1e-2))
    return norms


def reference_optimizers(kind: str, weights: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Torch's own, on plain float32 weights, grouped by hand."""
    up, norm, embed, down = weights.values()
    groups = [{"params": [up, embed, down], "weight_decay": 0.2}, {"params": [norm], "weight_decay": 0.0}]
    match kind:
        case "adamw":
            return [torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)]
        case "adamw_8bit":
            from torchao.optim import AdamW8bit

            return [AdamW8bit(groups, lr=1e-2, betas=(0.9, 0.95))]
        case "adafactor":
            return [torch.optim.Adafactor(groups, lr=1e-2)]
    rest = [{"params": [embed], "weight_decay": 0.2}, {"params": [norm], "weight_decay": 0.0}]
    return [
        torch.optim.Muon([up, down], lr=1e-2, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.95)),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_the_optimizers_themselves(kind: str, dtype: torch.dtype) -> None:
    """Without clipping every kind is what its name says; bfloat16 weights are the float32 ones, rounded."""
    config = OptimizerConfig(kind=kind, learning_rate=7.0, weight_decay=0.2, max_grad_norm=None)
    optimizer = MasterOptimizer(weights_of(dtype), config)
    plain = {name: nn.Parameter(weight.detach().float()) for name, weight in weights_of(dtype).items()}
    references = reference_optimizers(kind, plain)
    norms = walk(optimizer, gradients(3))
    for index, step in enumerate(gradients(3)):
        for name, weight in plain.items():
            weight.grad = step[name].to(dtype).float()
        whole = torch.cat([weight.grad.flatten() for weight in plain.values()])
        assert norms[index] == pytest.approx(float(whole.norm()), rel=1e-5)
        with torch.compiler.set_stance("force_eager"):
            for reference in references:
                reference.step()
    for name, weight in plain.items():
        assert torch.allclose(optimizer.masters[name], weight, atol=1e-6), name
        assert torch.equal(optimizer.parameters[name], optimizer.masters[name].to(dtype))


def test_eight_bits_follow_adamw_and_take_a_quarter() -> None:
    """50 steps down a quadratic, sum of h (w - 1)^2: the ends are less than a tenth of the way apart."""
    need_torchao()
    compiled = torch._dynamo.utils.counters
    compiled.clear()
    generator = torch.Generator().manual_seed(0)
    start, steepness = torch.randn(128, 256, generator=generator), 10 ** torch.rand(128, 256, generator=generator)
    ends, state = {}, {}
    for kind in ("adamw", "adamw_8bit"):
        optimizer = MasterOptimizer({"w": nn.Parameter(start.clone())}, OptimizerConfig(kind=kind, max_grad_norm=None))
        weight = optimizer.parameters["w"]
        for _ in range(50):
            (steepness * (weight - 1) ** 2).sum().backward()
            optimizer.step(0.02)
        ends[kind] = weight.detach()
        state[kind] = sum(tensor.nbytes for tensor in dict(optimizer.state_tensors()).values())
    way = (ends["adamw"] - start).norm()
    assert way > 0.5 * (start - 1).norm()
    assert 0 < (ends["adamw_8bit"] - ends["adamw"]).norm() < 0.1 * way
    assert 0.25 < state["adamw_8bit"] / state["adamw"] < 0.27
    assert not any(compiled.values())


@pytest.mark.slow
def test_torchao_is_quiet() -> None:
    need_torchao()
    code = (
        "import burnish, logging, sys; from transformers import PreTrainedModel; assert 'torchao' in sys.modules\n"
        "logging.getLogger('torchao').warning('heard'); print('end')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "heard\n")


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"adamw_8bit needs torchao \(.*\): pip install 'burnish\[quantized\]'$"):
        check_installed(OptimizerConfig(kind="adamw_8bit"))
    check_installed(OptimizerConfig(kind="muon"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_goes_through_a_file_and_back(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = OptimizerConfig(kind=kind)
    unbroken = MasterOptimizer(weights_of(dtype), config)
    assert dict(unbroken.state_tensors()) == {}
    walk(unbroken, gradients(3))
    save_file({name: master.detach() for name, master in unbroken.masters.items()}, tmp_path / "weights")
    save_file(dict(unbroken.state_tensors()), tmp_path / "state")
    resumed = MasterOptimizer(weights_of(dtype), config)
    resumed.load(load_file(tmp_path / "weights"), load_file(tmp_path / "state"))
    assert all(torch.equal(resumed.parameters[name], weight) for name, weight in unbroken.parameters.items())
    for optimizer in (resumed, unbroken):
        walk(optimizer, gradients(2, seed=3))
    for name, master in unbroken.masters.items():
        assert torch.equal(resumed.masters[name], master), name
    states = dict(resumed.state_tensors()), dict(unbroken.state_tensors())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
    if kind == "adamw_8bit":
        assert states[0]["exp_avg.codes.embed"].dtype == torch.uint8


def test_the_size_of_the_state_is_known_before_the_first_step(kind: str) -> None:
    optimizer = MasterOptimizer(weights_of(torch.float32), OptimizerConfig(kind=kind))
    walk(optimizer, gradients(1))
    for name, master in optimizer.masters.items():
        own = [tensor for key, tensor in dict(optimizer.state_tensors()).items() if key.endswith("." + name)]
        assert state_bytes(optimizer.config, name, master.shape) == sum(tensor.nbytes for tensor in own), name


EXAMPLES = [
    Example(id=str(index), prompt_ids=tuple(range(3 + index)), branches=(Branch(token_ids=(40, 41, 42 + index)),))
    for index in range(3)
]


def taught(folder: Path, config: OptimizerConfig, dtype: str, *, steps_in_backward: bool) -> tuple[Learner, list]:
    """A learner after a few steps, and the metrics of each."""
    policy = load_policy(ModelConfig(path=str(folder), compute_dtype=dtype), seed=0)
    optimizer = MasterOptimizer(policy.trainable(), config, steps_in_backward=steps_in_backward)
    learner = Learner(policy, optimizer, micro_batch_tokens=1000)
    steps = []
    for _ in range(4):
        learner.forward_backward(pack(EXAMPLES), NegativeLogLikelihood())
        steps.append(learner.optim_step(config.learning_rate))
    return learner, steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_in_the_backward_pass_is_the_same_step(kind: str, dtype: str, tiny_teacher_folder: Path) -> None:
    """Bit by bit, on a model with tied weights; and every kind lowers the loss."""
    rate = {"adafactor": 0.1}.get(kind, 0.01)
    config = OptimizerConfig(kind=kind, learning_rate=rate, max_grad_norm=None, weight_decay=0.1)
    (ordinary, steps), (other, other_steps) = (
        taught(tiny_teacher_folder, config, dtype, steps_in_backward=flag) for flag in (False, True)
    )
    for name, master in ordinary.optimizer.masters.items():
        assert torch.equal(other.optimizer.masters[name], master), name
        assert torch.equal(other.optimizer.parameters[name], ordinary.optimizer.parameters[name]), name
    state, other_state = dict(ordinary.optimizer.state_tensors()), dict(other.optimizer.state_tensors())
    assert state.keys() == other_state.keys() and all(torch.equal(state[key], other_state[key]) for key in state)
    for step, other_step in zip(steps, other_steps, strict=True):
        assert other_step["loss"].value == step["loss"].value
        assert other_step["grad_norm"].value == pytest.approx(step["grad_norm"].value, rel=1e-5)
    assert steps[-1]["loss"].value < 0.8 * steps[0]["loss"].value


def test_gradients_never_exist_at_once(tiny_policy, monkeypatch) -> None:
    config = OptimizerConfig(max_grad_norm=None)
    optimizer = MasterOptimizer(tiny_policy.trainable(), config, steps_in_backward=True)
    learner = Learner(tiny_policy, optimizer, micro_batch_tokens=1000)
    alive = []
    update = MasterOptimizer._update

    def counted(self, *arguments) -> None:
        alive.append(sum(master.grad is not None for master in self.masters.values()))
        update(self, *arguments)

    monkeypatch.setattr(MasterOptimizer, "_update", counted)
    learner.forward_backward(pack(EXAMPLES), NegativeLogLikelihood())
    assert not alive  # the rate is not known yet
    learner.optim_step(1e-3)
    assert alive == [1] * len(optimizer.masters)
    assert all(master.grad is None for master in optimizer.masters.values())


def test_a_step_in_the_backward_pass_takes_one_micro_batch(tiny_policy) -> None:
    optimizer = MasterOptimizer(tiny_policy.trainable(), OptimizerConfig(), steps_in_backward=True)
    learner = Learner(tiny_policy, optimizer, micro_batch_tokens=20)
    before = copy.deepcopy(optimizer.masters)
    with pytest.raises(ConfigError, match=r"raise train.micro_batch_tokens to the 21 tokens of this batch"):
        learner.forward_backward(pack(EXAMPLES), NegativeLogLikelihood())
    assert all(torch.equal(master, before[name]) for name, master in optimizer.masters.items())


def test_a_gradient_that_is_no_number_in_the_backward_pass() -> None:
    """Of the forward pass: no weight is damaged. Of the backward pass: not its own, and the later layer is ahead."""
    for root, moved in ((float("nan"), set()), (0.0, {"late"})):
        weights = {name: nn.Parameter(torch.ones(2, 2)) for name in ("early", "late")}
        optimizer = MasterOptimizer(weights, OptimizerConfig(max_grad_norm=None), steps_in_backward=True)
        hidden = (weights["early"] * root).sqrt()  # whose slope at 0 is infinite
        with pytest.raises(BurnishError, match=r"the gradient's norm is nan: lower optimizer.learning_rate"):
            optimizer.step_in_backward((hidden + weights["late"]).square().sum(), 0.1)
        assert {name for name, weight in weights.items() if not torch.equal(weight, torch.ones(2, 2))} == moved


def test_float32_weights_that_are_where_they_belong_are_not_copied() -> None:
    weights = weights_of(torch.float32)
    optimizer = MasterOptimizer(weights, OptimizerConfig(), device=torch.device("cpu"))
    assert all(optimizer.masters[name] is weight for name, weight in weights.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a device beside the CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_offloaded_optimizer_takes_the_same_step(kind: str, dtype: torch.dtype) -> None:
    here = MasterOptimizer(weights_of(dtype), OptimizerConfig(kind=kind))
    weights = {name: nn.Parameter(weight.detach().cuda()) for name, weight in weights_of(dtype).items()}
    offloaded = MasterOptimizer(weights, here.config, device=torch.device("cpu"))
    walk(here, gradients(3))
    walk(offloaded, ({name: each.cuda() for name, each in step.items()} for step in gradients(3)))
    for name, master in offloaded.masters.items():
        assert master.is_cpu and weights[name].is_cuda and weights[name].grad is None
        assert torch.allclose(master, here.masters[name], atol=1e-5)
        assert torch.equal(weights[name].cpu(), master.to(dtype))
    assert all(tensor.is_cpu for tensor in dict(offloaded.state_tensors()).values())
