"""Rejection sampling: sample answers, keep the good ones, imitate them (Yuan et al. 2023; expert iteration)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

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
from burnish.config.schema import NAME_PATTERN, Section
from burnish.data.packing import example_of, pack
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.losses.imitation import NegativeLogLikelihood
from burnish.records import Example, Metric, RolloutGroup
from burnish.training.checkpoint import TrainState
from burnish.training.optimizer import learning_rate_at

__all__ = ["COLUMNS", "MEASURE", "RejectionSamplingConfig", "needs", "prepare", "train"]

COLUMNS = ("loss", "reward_mean", "kept", "held_out", "entropy", "completion_tokens_mean", "truncated_share")


class RejectionSamplingLossConfig(Section):
    """What is kept and how it is learnt."""

    keep_from: float = 1.0
    """Reward from which an answer is kept."""
    max_kept: int = Field(2, ge=1)
    """Answers kept of a prompt, the best first; equal texts count once."""
    aggregation: Literal["token", "sequence"] = "token"
    """token: all tokens of the step weigh the same. sequence: all answers do."""


class RejectionSamplingConfig(AskingConfig):
    """Everything a run of rejection sampling depends on."""

    algorithm: Literal["rejection_sampling"] = "rejection_sampling"
    """The algorithm."""
    name: str = Field("rejection-sampling", max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    loss: RejectionSamplingLossConfig = RejectionSamplingLossConfig()


def prepare(config: RejectionSamplingConfig) -> TaskInputs:
    """Check what the run reads. Raises a UserError."""
    return check_tasks(config)


def needs(config: RejectionSamplingConfig) -> RoleNeeds:
    """What the run asks of the roles."""
    return RoleNeeds(temperature=config.rollout.temperature, max_rows=config.rollout.max_rows)


def train(config: RejectionSamplingConfig, inputs: TaskInputs, roles: Roles, hooks: Hooks, state: TrainState) -> None:
    """The loop. `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
    loss = NegativeLogLikelihood(aggregation=config.loss.aggregation)
    for collected in rollout_steps(config, inputs, roles, hooks, state):
        kept = keep_good(collected.groups, config.loss)
        parts: list[dict[str, Metric]] = []
        if kept:
            parts += roles.forward_backward(pack(kept), loss)
            parts.append(roles.optim_step(learning_rate_at(config.optimizer, state.step, config.train.num_steps)))
            state.weight_version += 1
        else:
            hooks.progress.say(f"nothing learned in step {state.step + 1}: no answer reached loss.keep_from")
        state.step += 1
        roles.publish_weights(state.weight_version)
        lines = rollout_lines(collected.groups, [[0.0] * len(group.rollouts) for group in collected.groups])
        observed = {**rollout_metrics(collected), "kept": sum(len(example.branches) for example in kept)}
        hooks.after_step(state, parts, observed=observed, rollouts=lines)


def keep_good(groups: Sequence[RolloutGroup], config: RejectionSamplingLossConfig) -> list[Example]:
    """The best different answers of each group that reach the threshold; groups without one are left out."""
    kept = []
    for group in groups:
        example = example_of(group)
        ranked = sorted(example.branches, key=lambda branch: -branch.score)
        good = {branch.token_ids: branch for branch in ranked if branch.score >= config.keep_from}
        if good:
            kept.append(replace(example, branches=tuple(good.values())[: config.max_kept]))
    return kept
