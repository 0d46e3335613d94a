"""How sampling and learning grow: tokens a second and memory against group size, prompt, completion and batch.

    python benchmarks/growth.py [--plot docs/growth.svg] [group prompt completion batch]

SmolLM2-135M, one process. Each point is run twice: the first pass warms up and counts the memory that is alive, the
second is timed. Prints a table and draws it.
"""

import argparse
import os
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from compare import processor

from burnish.config.schema import ModelConfig, OptimizerConfig
from burnish.data.packing import pack
from burnish.losses.policy_gradient import PolicyLoss
from burnish.memory.allocator import allocator
from burnish.memory.trace import LiveBytes
from burnish.models.load import load_policy
from burnish.records import Branch, Example, GenerationRequest, SamplingSettings, TokenBatch
from burnish.rollout.generators.native import NativeGenerator
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer

MODEL = "smollm2-135m"
MICRO_BATCH_TOKENS, MAX_ROWS = 8192, 64  # every point is learnt from in one piece
HEADER = """| varied | prompts | group | prompt | completion | sampling tok/s, s | learning tok/s, s | GB |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True)
class Size:
    """What is sampled and learnt from: prompts, completions of each, tokens of both."""

    prompts: int = 1
    group: int = 4
    prompt: int = 64
    completion: int = 64

    @property
    def sampled_tokens(self) -> int:
        """Tokens of all completions."""
        return self.prompts * self.group * self.completion

    @property
    def learnt_tokens(self) -> int:
        """The completions' and, once each, the prompts'."""
        return self.sampled_tokens + self.prompts * self.prompt


@dataclass(frozen=True, slots=True)
class Point:
    """What a size took."""

    size: Size
    sample_seconds: float
    learn_seconds: float
    beside_bytes: int
    """Alive in learning, beside weights and optimizer: activations, logits, gradients."""


AXES = {
    "group": [Size(prompt=128, group=n) for n in (2, 4, 8, 16, 32)],
    "prompt": [Size(prompt=n) for n in (64, 256, 1024, 4096)],
    "completion": [Size(group=2, completion=n) for n in (32, 128, 512, 2048)],
    "batch": [Size(prompts=n, completion=32) for n in (1, 2, 4, 8, 16)],
}


def main() -> None:
    """Read the arguments, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axes", nargs="*", default=list(AXES))
    parser.add_argument("--plot", type=Path, help="an image to draw, its kind by its suffix")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    allocator.choose(returns_freed=False)
    policy = load_policy(ModelConfig(path=MODEL), seed=0)
    optimizer = MasterOptimizer(policy.trainable(), OptimizerConfig())
    learner = Learner(policy, optimizer, micro_batch_tokens=MICRO_BATCH_TOKENS)
    generator = NativeGenerator(policy, max_rows=MAX_ROWS)
    dtype = next(iter(policy.trainable().values())).dtype
    print(f"{platform.platform()}, {processor()}, {os.cpu_count()} cores, {dtype}\n\n{HEADER}", flush=True)
    measure(learner, generator, Size(group=1, prompt=8, completion=8))  # AdamW makes its moments in its first step
    found: dict[str, list[Point]] = {}
    for axis in arguments.axes:
        found[axis] = []
        for size in AXES[axis]:
            point = measure(learner, generator, size)
            found[axis].append(point)
            print(row(axis, point), flush=True)
    if arguments.plot is not None:
        draw(found, arguments.plot)


def measure(learner: Learner, generator: NativeGenerator, size: Size) -> Point:
    """Sample and learn twice."""
    settings = SamplingSettings(max_tokens=size.completion)  # nothing stops it earlier
    requests = [
        GenerationRequest(
            token_ids=tuple(100 + (index * 7 + n * 13) % 1000 for n in range(size.prompt)),
            sampling=settings,
            seeds=tuple(range(index * size.group, (index + 1) * size.group)),
        )
        for index in range(size.prompts)
    ]
    generator.generate(requests)
    began = time.perf_counter()
    groups = generator.generate(requests)
    sample_seconds = time.perf_counter() - began
    examples = [
        Example(id=str(n), prompt_ids=request.token_ids, branches=tuple(Branch(token_ids=c.token_ids) for c in group))
        for n, (request, group) in enumerate(zip(requests, groups, strict=True))
    ]
    logprobs = [value for group in groups for completion in group for value in completion.sampling_logprobs]
    batch = pack(examples)
    batch = replace(batch, sampler_logprobs_S=torch.tensor(logprobs), advantages_S=torch.ones(len(logprobs)))
    with LiveBytes() as live:
        learn(learner, batch)
    began = time.perf_counter()
    learn(learner, batch)
    return Point(size, sample_seconds, time.perf_counter() - began, live.peak_bytes)


def learn(learner: Learner, batch: TokenBatch) -> None:
    """A step at a learning rate of 0, so that every point has the same weights."""
    learner.forward_backward(batch, PolicyLoss())
    learner.optim_step(0.0)


def row(axis: str, point: Point) -> str:
    """A line of the table."""
    size = point.size
    sizes = f"{size.prompts} | {size.group} | {size.prompt:,} | {size.completion:,}"
    sampling = f"{size.sampled_tokens / point.sample_seconds:.0f}, {point.sample_seconds:.2f}"
    learning = f"{size.learnt_tokens / point.learn_seconds:.0f}, {point.learn_seconds:.2f}"
    return f"| {axis} | {sizes} | {sampling} | {learning} | {point.beside_bytes / 1e9:.2f} |"


def draw(found: dict[str, list[Point]], path: Path) -> None:
    """A column for each axis: tokens a second above, the memory of learning below."""
    names = {"group": "group size", "prompt": "prompt tokens", "completion": "completion tokens", "batch": "prompts"}
    values = {"group": "group", "prompt": "prompt", "completion": "completion", "batch": "prompts"}
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "burnish"  # the same numbers make the same file
    figure, axes = plt.subplots(2, len(found), figsize=(3.4 * len(found), 5.2), sharey="row", squeeze=False)
    for column, (axis, points) in enumerate(found.items()):
        x = [getattr(point.size, values[axis]) for point in points]
        above, below = axes[0][column], axes[1][column]
        above.plot(x, [p.size.sampled_tokens / p.sample_seconds for p in points], "o-", label="sampling")
        above.plot(x, [p.size.learnt_tokens / p.learn_seconds for p in points], "s--", label="learning")
        below.plot(x, [p.beside_bytes / 1e9 for p in points], "^-", color="tab:green", label="beside the weights")
        for panel in (above, below):
            panel.set_xscale("log", base=2)
            panel.set_xticks(x, [f"{value:,}" for value in x])
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
        below.set_xlabel(names[axis])
    axes[0][0].set_ylabel("tokens a second")
    axes[1][0].set_ylabel("GB")
    axes[0][0].legend()
    axes[1][0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
