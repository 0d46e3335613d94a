import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import burnish.training.learner as learner_module
from burnish.config.schema import ModelConfig, OptimizerConfig
from burnish.data.packing import pack
from burnish.distributed.local import LocalRoles
from burnish.errors import MachineError
from burnish.losses.loss import FunctionLoss
from burnish.models.load import load_policy
from burnish.records import Branch, Example, Scored, TokenBatch
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer

BATCHES = [
    pack(
        [
            Example(id=f"{n}-{m}", prompt_ids=tuple(range(n + m, 30)), branches=(Branch(token_ids=tuple(range(10))),))
            for m in range(4)
        ]
    )
    for n in (1, 5)
]


class Memory:
    """A loss that runs out of memory above a number of tokens, and counts its calls."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.sizes: list[int] = []

    def __call__(self, scored: Scored, batch: TokenBatch) -> torch.Tensor:
        self.sizes.append(len(batch.token_ids_T))
        if len(batch.token_ids_T) > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return -scored.logprobs_S.sum()


def step(folder: Path, memory: Memory) -> tuple[Learner, torch.Tensor, dict[str, float]]:
    policy = load_policy(ModelConfig(path=str(folder), compute_dtype="float32"), seed=0)
    learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=400)
    for batch in BATCHES:
        learner.forward_backward(batch, FunctionLoss(memory))
    gradient = torch.cat([parameter.grad.flatten() for parameter in policy.trainable().values()])
    return learner, gradient, {name: float(metric.value) for name, metric in learner.optim_step(1e-3).items()}


def test_a_smaller_micro_batch_gives_the_same_step(tiny_folder: Path) -> None:
    _, plain_gradient, plain = step(tiny_folder, Memory(10_000))
    memory = Memory(90)  # the first batch of 150 tokens fails at 400 and 200 and is done in parts of at most 90
    learner, gradient, metrics = step(tiny_folder, memory)
    assert memory.sizes[:2] == [150, 150]
    assert max(memory.sizes[2:]) <= 90
    assert learner.micro_batch_tokens == 100
    assert metrics.pop("out_of_memory") == 2
    assert metrics == pytest.approx(plain, rel=1e-6)
    assert float((gradient - plain_gradient).norm() / plain_gradient.norm()) < 1e-6


def test_what_was_accumulated_before_is_not_lost(tiny_folder: Path) -> None:
    class Later(Memory):
        def __call__(self, scored: Scored, batch: TokenBatch) -> torch.Tensor:
            self.tokens = 10_000 if len(self.sizes) == 0 else 90
            return super().__call__(scored, batch)

    _, plain_gradient, plain = step(tiny_folder, Memory(10_000))
    _, gradient, metrics = step(tiny_folder, Later(0))  # the second batch fails; the first is done again too
    assert metrics.pop("out_of_memory") == 2
    assert metrics == pytest.approx(plain, rel=1e-6)
    assert float((gradient - plain_gradient).norm() / plain_gradient.norm()) < 1e-6


def test_where_nothing_fits_it_says_what_to_do(tiny_folder: Path) -> None:
    with pytest.raises(MachineError, match="`burnish memory` says what would make the recipe fit"):
        step(tiny_folder, Memory(5))


def test_a_group_longer_than_a_micro_batch_can_still_be_parted(tiny_folder: Path) -> None:
    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32"), seed=0)
    learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=100)
    branches = tuple(Branch(token_ids=(7,) * 20) for _ in range(8))
    batch = pack([Example(id="1", prompt_ids=(5,) * 10, branches=branches)])  # 170 tokens, in parts of at most 90
    assert len(learner.forward_backward(batch, FunctionLoss(Memory(50)))) == 4
    assert learner.micro_batch_tokens == 50


def test_another_error_is_not_taken_for_it(tiny_folder: Path) -> None:
    def broken(scored: Scored, batch: TokenBatch) -> torch.Tensor:
        raise RuntimeError("shapes differ")

    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32"), seed=0)
    learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=400)
    with pytest.raises(RuntimeError, match="shapes differ"):
        learner.forward_backward(BATCHES[0], FunctionLoss(broken))


REAL = """
import re, resource, sys
from pathlib import Path
import torch
from burnish.config.schema import ModelConfig, OptimizerConfig
from burnish.data.packing import pack
from burnish.losses.loss import FunctionLoss
from burnish.models.load import load_policy
from burnish.records import Branch, Example
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer

torch.set_num_threads(1)
policy = load_policy(ModelConfig(path=sys.argv[1], compute_dtype="float32"), seed=0)
learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=400_000)
branch = Branch(token_ids=(7,) * 300)
batch = pack([Example(id=str(n), prompt_ids=(5,) * 100, branches=(branch,)) for n in range(100)])
loss = FunctionLoss(lambda scored, batch: -scored.logprobs_S.sum())
first = pack([Example(id="w", prompt_ids=(5,), branches=(branch,))])
learner.forward_backward(first, loss)  # sets up what later calls use
size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 150_000_000, resource.RLIM_INFINITY))
learner.forward_backward(batch, loss)
print(learner.micro_batch_tokens < 400_000, float(learner.optim_step(0.0)["out_of_memory"].value) > 0)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its own address space as Linux does")
def test_a_process_that_runs_out_of_memory_goes_on(tiny_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", REAL, tiny_folder], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True True", done.stderr[-2000:]


def test_scoring_halves_too(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32"), seed=0)
    learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=400)
    plain = learner.score(BATCHES[0]).logprobs_S
    whole = learner_module.score

    def limited(policy: Any, batch: TokenBatch, *rest: Any) -> Scored:
        if len(batch.token_ids_T) > 90:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(policy, batch, *rest)

    monkeypatch.setattr(learner_module, "score", limited)
    assert torch.allclose(learner.score(BATCHES[0]).logprobs_S, plain, atol=1e-5)
    assert learner.micro_batch_tokens == 100
    one_of_several = Learner(policy, learner.optimizer, micro_batch_tokens=400, may_halve=False)
    with pytest.raises(MachineError, match="out of memory in a micro-batch of 400 tokens"):
        one_of_several.score(BATCHES[0])


def test_an_optimizer_or_a_sampler_without_memory_is_one_line(tiny_folder: Path) -> None:
    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32"), seed=0)
    learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=400)
    learner.optimizer.step = fails  # type: ignore[method-assign]
    with pytest.raises(MachineError, match=r"^out of memory while the optimizer takes its step; `burnish memory` says"):
        learner.optim_step(1e-3)
    generator = SimpleNamespace(generate=fails)
    with pytest.raises(MachineError, match=r"^out of memory while sampling; `burnish memory` says"):
        LocalRoles(learner, cast(Any, generator)).sample([])


def test_a_step_in_the_backward_pass_is_not_halved(tiny_folder: Path) -> None:
    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32"), seed=0)
    optimizer = MasterOptimizer(policy.trainable(), OptimizerConfig(max_grad_norm=None), steps_in_backward=True)
    learner = Learner(policy, optimizer, micro_batch_tokens=400)
    with pytest.raises(MachineError, match="out of memory in a micro-batch of 400 tokens"):
        learner.forward_backward(BATCHES[0], FunctionLoss(Memory(90)))
