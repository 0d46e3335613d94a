"""Do the parts of an objective pull the same way? Their gradients on the batches that a run would see next."""

from __future__ import annotations

import copy
import io
import itertools
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from burnish.algorithms.asking import TaskInputs
from burnish.algorithms.hooks import Hooks
from burnish.algorithms.session import Inputs, algorithm_of, load_roles, prepare
from burnish.config.schema import RunConfig
from burnish.distributed.local import LocalRoles
from burnish.distributed.roles import T, Trainable
from burnish.losses.loss import Loss
from burnish.losses.parts import parts_of
from burnish.monitoring.console import Progress
from burnish.records import Completion, GenerationRequest, Metric, Prompt, SamplingSettings, Scored, TokenBatch
from burnish.reproducibility.run_folder import RunFolder
from burnish.rewards.scoring import Score
from burnish.rollout.play import Episode, Play, Sample
from burnish.training.checkpoint import TrainState, checkpoints, load_checkpoint, step_of

_SURROGATE = "surrogate"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartGradients:
    """By batch: the norm of each part's gradient, and the cosine between those of two parts (None where one is 0)."""

    norms: dict[str, list[float]]
    cosines: dict[tuple[str, str], list[float | None]]


def part_gradients(run: RunFolder, config: RunConfig, *, num_batches: int) -> tuple[int, PartGradients]:
    """(step, what was found) for a run's newest weights, or for those it starts from. The run is only read.

    Every part of the loss has its gradient, and every named part of the reward: the same completions then have the
    reward of this part alone.

    Raises:
        UserError: something that the run reads cannot be used.
    """
    saved = checkpoints(run.checkpoints)
    num_steps = max(config.train.num_steps, (step_of(saved[-1]) if saved else 0) + num_batches)
    # a gradient is looked at before any step, so none may be taken in its backward pass
    saved_memory = tuple(name for name in config.train.save_memory if name != "step_in_backward")
    train = config.train.model_copy(update={"num_steps": num_steps, "save_memory": saved_memory})
    config = config.model_copy(update={"train": train})
    inputs = prepare(config)
    roles = load_roles(config)
    inputs.start(roles, lambda text: None)
    state = TrainState()
    if saved:
        state = load_checkpoint(saved[-1], roles.learners)
    step, found = state.step, []
    for _ in range(num_batches):
        gradients, state = _of_one_batch(config, inputs, roles, state)
        found.append(gradients)
    parts = list(dict.fromkeys(name for gradients in found for name in gradients))
    pairs = list(itertools.combinations(parts, 2))
    return step, PartGradients(
        norms={name: [float(each[name].norm()) if name in each else 0.0 for each in found] for name in parts},
        cosines={(one, other): [_cosine(each.get(one), each.get(other)) for each in found] for one, other in pairs},
    )


def _of_one_batch(
    config: RunConfig, inputs: Inputs, roles: LocalRoles, state: TrainState
) -> tuple[dict[str, Tensor], TrainState]:
    """The gradient of each part, flat, and the state after the batch."""
    if not isinstance(inputs, TaskInputs):
        return _gradients(config, inputs, roles, state)
    recorded = _Recorded(inputs.play)
    gradients, after = _gradients(config, replace(inputs, play=recorded), roles, state)
    names = recorded.names()
    for name in names if len(names) > 1 else ():
        alone, _ = _gradients(config, replace(inputs, play=_Only(recorded, name)), roles, state)
        gradients[f"reward.{name}"] = alone.get(_SURROGATE, torch.zeros(1))  # all alike: nothing to learn
    return gradients, after


def _gradients(
    config: RunConfig, inputs: Inputs, roles: LocalRoles, state: TrainState
) -> tuple[dict[str, Tensor], TrainState]:
    """Run one step of the algorithm's own loop with roles that change nothing."""
    measuring, after = _Measuring(roles), copy.deepcopy(state)

    def stop(state: TrainState) -> None:
        hooks.should_stop = True

    with tempfile.TemporaryDirectory() as folder:
        hooks = Hooks(
            run=RunFolder.create(Path(folder), "gradients"),
            progress=Progress(Console(file=io.StringIO()), num_steps=1, columns=()),
            num_steps=state.step + 1,
            checkpoint=config.checkpoint,
            evaluate_every=config.evaluation.every_steps,
            evaluate=lambda step: 0.0,
            save=stop,
        )
        algorithm_of(config).train(config, inputs, measuring, hooks, after)
    return measuring.gradients, after


@dataclass(slots=True)
class _Measuring:
    """Roles that take the gradient of each part of a loss by itself, and never step."""

    roles: LocalRoles
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def forward_backward(self, batch: TokenBatch, loss: Loss) -> list[dict[str, Metric]]:
        """See Roles."""
        for name, part in parts_of(loss).items():
            self.roles.forward_backward(batch, part)
            gradient = self._take()
            self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient
        metrics = self.roles.forward_backward(batch, loss)  # which an algorithm may act on
        self._take()
        return metrics

    def optim_step(self, learning_rate: float) -> dict[str, Metric]:
        """See Roles."""
        return {}

    def publish_weights(self, version: int) -> None:
        """See Roles."""

    def sample(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """See Roles."""
        return self.roles.sample(requests)

    def aside(self, job: Callable[[Sample], T]) -> Future[T]:
        """See Roles."""
        return self.roles.aside(job)

    def score(self, batch: TokenBatch, *, with_collisions: bool = False) -> Scored:
        """See Roles."""
        return self.roles.score(batch, with_collisions=with_collisions)

    def reference_logprobs(self, batch: TokenBatch) -> Tensor:
        """See Roles."""
        return self.roles.reference_logprobs(batch)

    def teacher_logprobs(self, batch: TokenBatch, teacher: int) -> Tensor:
        """See Roles."""
        return self.roles.teacher_logprobs(batch, teacher)

    @property
    def critic(self) -> Trainable:
        """See Roles. What it learns here is not kept."""
        return self.roles.critic

    def _take(self) -> Tensor:
        masters = self.roles.learner.optimizer.masters.values()
        flat = [torch.zeros(master.numel()) if master.grad is None else master.grad.flatten() for master in masters]
        for master in masters:
            master.grad = None
        return torch.cat(flat)


@dataclass(slots=True)
class _Recorded:
    """Plays a prompt once, and remembers it."""

    play: Play
    kept: dict[tuple[str, tuple[int, ...]], list[Episode]] = field(default_factory=dict)

    def __call__(
        self, sample: Sample, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]], sampling: SamplingSettings
    ) -> list[list[Episode]]:
        """See Play."""
        keys = [(prompt.task.id, own) for prompt, own in zip(prompts, seeds, strict=True)]
        new = [index for index, key in enumerate(keys) if key not in self.kept]
        played = self.play(sample, [prompts[i] for i in new], [seeds[i] for i in new], sampling) if new else []
        self.kept.update(zip((keys[i] for i in new), played, strict=True))
        return [self.kept[key] for key in keys]

    def names(self) -> list[str]:
        """The parts of the rewards so far."""
        scores = [episode.score for episodes in self.kept.values() for episode in episodes]
        return list(dict.fromkeys(name for score in scores if isinstance(score, Score) for name in score.components))


@dataclass(frozen=True, slots=True)
class _Only:
    """Scores by one part of the reward."""

    play: Play
    name: str

    def __call__(
        self, sample: Sample, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]], sampling: SamplingSettings
    ) -> list[list[Episode]]:
        """See Play."""
        played = self.play(sample, prompts, seeds, sampling)
        return [[self._alone(episode) for episode in episodes] for episodes in played]

    def _alone(self, episode: Episode) -> Episode:
        if not isinstance(episode.score, Score):
            return episode
        return replace(episode, score=Score(episode.score.components.get(self.name, 0.0), {}))


def _cosine(one: Tensor | None, other: Tensor | None) -> float | None:
    if one is None or other is None or not one.any() or not other.any():
        return None
    return float(torch.dot(one, other) / (one.norm() * other.norm()))
