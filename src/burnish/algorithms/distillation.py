"""On-policy distillation: the student answers, and learns from what its teachers think of every token.

Agarwal et al. 2024 (GKD) with whole distributions; Lu et al. 2025 with the sampled tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field

from burnish.algorithms.asking import (
    MEASURE,
    AskingConfig,
    TaskInputs,
    check_tasks,
    rollout_lines,
    rollout_metrics,
    rollout_steps,
)
from burnish.algorithms.hooks import Hooks
from burnish.algorithms.teaching import SampledDivergenceConfig, TeacherConfig, check_teachers, teachers_record
from burnish.config.schema import NAME_PATTERN
from burnish.data.packing import count_examples, example_of, pack_groups
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.errors import ConfigError, DataError
from burnish.losses.distillation import DistillationLoss, SampledReverseKL
from burnish.models.load import ModelFacts
from burnish.records import Metric, RolloutGroup, Task, TokenBatch
from burnish.training.checkpoint import TrainState
from burnish.training.optimizer import learning_rate_at

__all__ = ["COLUMNS", "MEASURE", "DistillationConfig", "needs", "prepare", "train"]

COLUMNS = ("loss", "divergence", "reward_mean", "held_out", "entropy", "completion_tokens_mean", "truncated_share")


class DistillationConfig(AskingConfig):
    """Everything an on-policy distillation depends on. The reward is watched, not learnt from."""

    algorithm: Literal["distillation"] = "distillation"
    """The algorithm."""
    name: str = Field("distillation", max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    teachers: tuple[TeacherConfig, ...]
    """[{"path": ..., "weight": 1, "where": {"field": "value"}}, ...]; a task may have several teachers."""
    loss: SampledDivergenceConfig = SampledDivergenceConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationInputs(TaskInputs):
    """What a run reads."""

    config: DistillationConfig
    teachers: Sequence[ModelFacts]

    def record(self) -> dict[str, Any]:
        """Fingerprints."""
        # not super(): a dataclass with slots is another class than the one that its methods were made in
        return TaskInputs.record(self) | {"teachers": teachers_record(self.teachers)}

    def shares(self, task: Task) -> dict[int, float]:
        """The teachers of a task with their weights, which sum to 1."""
        weights = {
            index: teacher.weight
            for index, teacher in enumerate(self.config.teachers)
            if all(task.extra.get(field) == value for field, value in teacher.where.items())
        }
        return {index: weight / sum(weights.values()) for index, weight in weights.items()}


def prepare(config: DistillationConfig) -> DistillationInputs:
    """Check what the run reads. Raises a UserError."""
    tasks = check_tasks(config)
    teachers = check_teachers(tasks.model, config.teachers, config.loss.top_k)
    inputs = DistillationInputs(config=config, teachers=teachers, **tasks.shared())
    taught = [inputs.shares(prompt.task) for prompt in inputs.train]
    for index, teacher in enumerate(config.teachers):
        if not any(index in shares for shares in taught):
            raise ConfigError(f"teachers: {teacher.path} teaches no task: none has {teacher.where}")
    for prompt in inputs.train:
        if not inputs.shares(prompt.task):
            raise DataError(f"teachers: none of them teaches the task {prompt.task.messages[-1].content[:60]!r}")
    return inputs


def needs(config: DistillationConfig) -> RoleNeeds:
    """What the run asks of the roles."""
    return RoleNeeds(
        temperature=config.rollout.temperature,
        max_rows=config.rollout.max_rows,
        teachers=tuple(teacher.path for teacher in config.teachers),
        divergence=config.loss.divergence(),
    )


def train(
    config: DistillationConfig, inputs: DistillationInputs, roles: Roles, hooks: Hooks, state: TrainState
) -> None:
    """The loop. `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
    for collected in rollout_steps(config, inputs, roles, hooks, state):
        learned = learn_sampled if config.loss.kind == "sampled" else learn_distributions
        parts = learned(inputs, collected.groups, roles)
        parts.append(roles.optim_step(learning_rate_at(config.optimizer, state.step, config.train.num_steps)))
        state.step += 1
        state.weight_version += 1
        roles.publish_weights(state.weight_version)
        lines = rollout_lines(collected.groups, [[0.0] * len(group.rollouts) for group in collected.groups])
        hooks.after_step(state, parts, observed=rollout_metrics(collected), rollouts=lines)


def learn_sampled(inputs: DistillationInputs, groups: Sequence[RolloutGroup], roles: Roles) -> list[dict[str, Metric]]:
    """The gradient of the sampled reverse KL, to the mixture of each task's teachers."""
    batch = packed(groups)
    advantages_S = -torch.as_tensor(batch.sampler_logprobs_S)
    for teacher in range(len(inputs.teachers)):
        shares_G = torch.tensor([inputs.shares(group.prompt.task).get(teacher, 0.0) for group in groups])
        if shares_G.any():
            shares_S = shares_G[batch.group_B][batch.sequence_S]
            advantages_S = advantages_S + shares_S * roles.teacher_logprobs(batch, teacher)
    return roles.forward_backward(replace(batch, advantages_S=advantages_S), SampledReverseKL())


def learn_distributions(
    inputs: DistillationInputs, groups: Sequence[RolloutGroup], roles: Roles
) -> list[dict[str, Metric]]:
    """The gradient of the divergence from each teacher on its own tasks."""
    parts: list[dict[str, Metric]] = []
    counts = count_examples([example_of(group) for group in groups])
    for teacher in range(len(inputs.teachers)):
        own = [group for group in groups if teacher in inputs.shares(group.prompt.task)]
        if own:
            shares_G = torch.tensor([inputs.shares(group.prompt.task)[teacher] for group in own])
            batch = packed(own)
            weights_S = shares_G[batch.group_B][batch.sequence_S]
            batch = replace(batch, weights_S=weights_S, teacher=teacher, counts=counts)
            parts += roles.forward_backward(batch, DistillationLoss())
    return parts


def packed(groups: Sequence[RolloutGroup]) -> TokenBatch:
    """Groups in one batch; there is no advantage of a completion."""
    return pack_groups(groups, [[0.0] * len(group.rollouts) for group in groups])
