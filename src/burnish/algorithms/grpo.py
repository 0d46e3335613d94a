"""GRPO: sample a group per prompt, compare each completion with its group, make the better ones likelier.

Shao et al. 2024 (DeepSeekMath), with the choices of DAPO (Yu et al. 2025) and Dr. GRPO (Liu et al. 2025) as settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from burnish.algorithms.asking import (
    COLUMNS,
    MEASURE,
    AskingConfig,
    TaskInputs,
    check_tasks,
    report_failures,
    rollout_lines,
    rollout_metrics,
)
from burnish.algorithms.hooks import Hooks
from burnish.config.schema import NAME_PATTERN, RolloutTrainConfig, Section
from burnish.data.order import EndlessOrder
from burnish.data.packing import count_examples, example_of, pack_groups
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.errors import ConfigError
from burnish.losses.advantages import AdvantageScale, group_advantages, has_signal
from burnish.losses.kl import KLEstimator
from burnish.losses.policy_gradient import Aggregation, ClippedPolicyLoss
from burnish.records import RolloutGroup, TokenBatch
from burnish.training.checkpoint import TrainState
from burnish.training.optimizer import learning_rate_at

__all__ = ["COLUMNS", "MEASURE", "GRPOConfig", "needs", "prepare", "train"]


class GRPOLossConfig(Section):
    """The objective."""

    clip_low: float = Field(0.2, gt=0, lt=1)
    """The ratio to the old policy counts down to 1 - clip_low."""
    clip_high: float = Field(0.2, gt=0)
    """The ratio counts up to 1 + clip_high; DAPO uses 0.28."""
    aggregation: Aggregation = "token"
    """token: all tokens of the step weigh the same. sequence: all completions do. constant: sums over max_tokens."""
    advantage_scale: AdvantageScale = "std"
    """std: divide by the group's sample standard deviation. none: only subtract the mean."""
    kl_coefficient: float = Field(0.0, ge=0)
    """Weight of the KL to the starting model; above 0 it costs one more forward pass, and a copy of the weights."""
    kl_estimator: KLEstimator = "k3"
    """Estimator of the KL in the loss: k1, k2 or k3."""
    max_importance_weight: float | None = Field(2.0, gt=0)
    """Truncation of the correction for a sampler that differs from the learner; null leaves the correction out."""


class GRPOConfig(AskingConfig):
    """Everything a GRPO run depends on."""

    algorithm: Literal["grpo"] = "grpo"
    """The algorithm."""
    name: str = Field("grpo", max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    loss: GRPOLossConfig = GRPOLossConfig()
    train: RolloutTrainConfig = RolloutTrainConfig()

    @model_validator(mode="after")
    def _refuse_what_cannot_be(self) -> GRPOConfig:
        train, loss = self.train, self.loss
        if train.minibatches_per_step > self.rollout.num_prompts:
            raise ConfigError(
                f"train.minibatches_per_step={train.minibatches_per_step} exceeds rollout.num_prompts="
                f"{self.rollout.num_prompts}: a group is never divided between optimizer steps"
            )
        if self.rollout.max_rows < self.rollout.group_size:
            raise ConfigError(
                f"rollout.max_rows={self.rollout.max_rows} is less than rollout.group_size={self.rollout.group_size}: "
                "a group is decoded together"
            )
        if loss.kl_coefficient == 0 and loss.changes("kl_estimator"):
            raise ConfigError("loss.kl_estimator would be ignored while loss.kl_coefficient is 0: set both or neither")
        for key in ("clip_low", "clip_high"):
            if train.minibatches_per_step == 1 and loss.changes(key):
                raise ConfigError(
                    f"loss.{key} would be ignored with train.minibatches_per_step=1: with one optimizer step per "
                    "rollout the ratio is always 1; raise minibatches_per_step or leave the clip out"
                )
        return self


def prepare(config: GRPOConfig) -> TaskInputs:
    """Check what the run reads. Raises a UserError."""
    inputs = check_tasks(config)
    if inputs.model.base is not None and config.loss.kl_coefficient > 0:
        raise ConfigError(
            "loss.kl_coefficient cannot be used when model.path is an adapter: the starting model could only be had by "
            "switching the adapter off, and would be its base; merge the adapter into its base first"
        )
    return inputs


def needs(config: GRPOConfig) -> RoleNeeds:
    """What the run asks of the roles."""
    rollout = config.rollout
    reference = config.loss.kl_coefficient > 0
    return RoleNeeds(reference=reference, temperature=rollout.temperature, max_rows=rollout.max_rows)


def train(config: GRPOConfig, inputs: TaskInputs, roles: Roles, hooks: Hooks, state: TrainState) -> None:
    """The loop. `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
    loss = policy_loss(config)
    prompts = EndlessOrder(inputs.train, seed=config.seed, position=state.data_position)
    collect = inputs.collector()
    hooks.before_steps()
    while state.step < config.train.num_steps and not hooks.should_stop:
        asked = prompts.next(config.rollout.num_prompts)
        collected = collect(roles.sample, asked, step=state.step, weight_version=state.weight_version)
        report_failures(hooks, state.step + 1, collected)
        parts = []
        batches = [with_logprobs(batch, roles, config) for batch in minibatches(collected.groups, config)]
        for index, batch in enumerate(batches):
            parts += roles.forward_backward(batch, loss)
            optimizer_step = state.step * config.train.minibatches_per_step + index
            total = config.train.num_steps * config.train.minibatches_per_step
            parts.append(roles.optim_step(learning_rate_at(config.optimizer, optimizer_step, total)))
        if not batches:
            hooks.progress.say(f"nothing learned in step {state.step + 1}: the rewards inside each group are equal")
        state.step += 1
        state.weight_version += len(batches)
        state.data_position = prompts.position
        roles.publish_weights(state.weight_version)
        lines = rollout_lines(collected.groups, advantages_of(collected.groups, config))
        hooks.after_step(state, parts, observed=rollout_metrics(collected), rollouts=lines)


def policy_loss(config: GRPOConfig) -> ClippedPolicyLoss:
    """The loss that the configuration describes."""
    return ClippedPolicyLoss(
        clip_low=config.loss.clip_low,
        clip_high=config.loss.clip_high,
        aggregation=config.loss.aggregation,
        max_tokens=config.rollout.max_tokens,
        kl_coefficient=config.loss.kl_coefficient,
        kl_estimator=config.loss.kl_estimator,
        max_importance_weight=config.loss.max_importance_weight,
    )


def advantages_of(groups: Sequence[RolloutGroup], config: GRPOConfig) -> list[Sequence[float]]:
    """The advantages of each group."""
    rewards = ([rollout.reward for rollout in group.rollouts] for group in groups)
    return [group_advantages(rewards_G, scale=config.loss.advantage_scale).tolist() for rewards_G in rewards]


def minibatches(groups: Sequence[RolloutGroup], config: GRPOConfig) -> Iterator[TokenBatch]:
    """One batch per optimizer step.

    Without a KL term a group without signal adds nothing to the gradient. It is left out of the computation but not
    of the counts, so the gradient is the same; entropy, mismatch and clip metrics then describe the groups with
    signal. A share without any signal makes no optimizer step.
    """
    for indices in np.array_split(np.arange(len(groups)), config.train.minibatches_per_step):
        share = [groups[index] for index in indices]
        kept = share
        if config.loss.kl_coefficient == 0:
            kept = [group for group in share if has_signal([rollout.reward for rollout in group.rollouts])]
        if kept:
            yield replace(
                pack_groups(kept, advantages_of(kept, config)),
                counts=count_examples([example_of(group) for group in share]),
            )


def with_logprobs(batch: TokenBatch, roles: Roles, config: GRPOConfig) -> TokenBatch:
    """Add the log-probabilities that the loss compares with, where it needs them."""
    if config.train.minibatches_per_step > 1:
        batch = replace(batch, old_logprobs_S=roles.score(batch).logprobs_S)
    if config.loss.kl_coefficient > 0:
        batch = replace(batch, reference_logprobs_S=roles.reference_logprobs(batch))
    return batch
