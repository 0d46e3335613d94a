"""PPO: a critic says what to expect after every token, and tokens that beat it are made likelier.

Schulman et al. 2017. The reward of an answer stands at its last token; a KL to the starting model is subtracted at
every token (Ziegler et al. 2019). Advantages are generalised advantage estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from burnish.algorithms.asking import (
    MEASURE,
    AskingConfig,
    TaskInputs,
    check_tasks,
    refuse_adapter,
    rollout_lines,
    rollout_metrics,
    rollout_steps,
)
from burnish.algorithms.hooks import Hooks
from burnish.config.coefficients import Coefficient, check_lowest
from burnish.config.schema import NAME_PATTERN, RolloutTrainConfig, Section
from burnish.config.surrogates import AnySurrogate, Clip, Importance, Truncate
from burnish.data.packing import count_examples, example_of, pack_groups, take_groups
from burnish.distributed.roles import CriticNeeds, RoleNeeds, Roles
from burnish.errors import ConfigError
from burnish.losses.loss import Loss, WeightedLosses, need
from burnish.losses.policy_gradient import Aggregation, ImportanceCorrection, PolicyLoss
from burnish.losses.preference import sequence_sums
from burnish.losses.value import ValueLoss, gae, whiten
from burnish.models.load import ModelFacts, inspect_model
from burnish.records import Metric, TokenBatch
from burnish.reproducibility.record import model_record
from burnish.rollout.collect import Collected
from burnish.training.checkpoint import TrainState
from burnish.training.coefficients import Coefficients
from burnish.training.optimizer import learning_rate_at

__all__ = ["COLUMNS", "MEASURE", "PPOConfig", "needs", "prepare", "train"]

COLUMNS = (
    "reward_mean",
    "reward_std",
    "held_out",
    "kl_per_completion",
    "entropy",
    "value_error",
    "completion_tokens_mean",
    "truncated_share",
    "mismatch_mean",
    "tokens_per_second",
)


class PPOLossConfig(Section):
    """The objective."""

    surrogate: AnySurrogate = Clip()
    """clip, cispo, sapo, gmpo, dppo, or {"kind": "clip", "high": 0.28}; at one optimizer step a rollout all agree."""
    aggregation: Aggregation = "token"
    """token: all tokens of the step weigh the same. sequence: all completions do. constant: sums over max_tokens."""
    kl_coefficient: Coefficient = 0.02
    """Weight of the KL to the starting model, subtracted from the reward at every token; 0 keeps no reference."""
    discount: float = Field(1.0, gt=0, le=1)
    """Discount of later rewards, for each token."""
    decay: float = Field(0.95, ge=0, le=1)
    """GAE's lambda: 1 trusts what happened, 0 trusts the critic."""
    whiten: bool = True
    """Advantages of a step get mean 0 and standard deviation 1."""
    value_clip: float | None = Field(0.2, gt=0)
    """The value may move this far from the one before the step; null is no clip."""
    entropy_coefficient: Coefficient = 0.0
    """Weight of the entropy, which is added to what is to grow."""
    importance: Importance | None = Truncate()
    """Correction for a sampler that differs from the learner, {"mode": "truncate" | "mask"}; null leaves it out."""

    @model_validator(mode="after")
    def _refuse_a_reward_for_kl(self) -> PPOLossConfig:
        check_lowest(self.kl_coefficient, "loss.kl_coefficient", 0.0)
        return self


class CriticConfig(Section):
    """The value model."""

    kind: Literal["own", "shared"] = "own"
    """own: a second model. shared: one more output of the policy's trunk."""
    path: str | None = None
    """Where an own critic starts: a reward model, or a causal LM; null is the policy's model.path."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate of an own critic."""
    coefficient: float = Field(0.5, gt=0)
    """Weight of a shared critic's loss beside the policy's."""

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> CriticConfig:
        for key, kind in (("path", "own"), ("learning_rate", "own"), ("coefficient", "shared")):
            if self.kind != kind and self.changes(key):
                raise ConfigError(f"critic.{key} would be ignored: it belongs to critic.kind={kind}")
        return self


class PPOTrainConfig(RolloutTrainConfig):
    """How long, and how the step is cut."""

    epochs_per_step: int = Field(1, ge=1)
    """Times that a step's rollouts are gone through."""


class PPOConfig(AskingConfig):
    """Everything a PPO run depends on."""

    algorithm: Literal["ppo"] = "ppo"
    """The algorithm."""
    name: str = Field("ppo", max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    loss: PPOLossConfig = PPOLossConfig()
    critic: CriticConfig = CriticConfig()
    train: PPOTrainConfig = PPOTrainConfig()

    @model_validator(mode="after")
    def _refuse_what_cannot_be(self) -> PPOConfig:
        train = self.train
        if train.minibatches_per_step > self.rollout.num_prompts:
            raise ConfigError(
                f"train.minibatches_per_step={train.minibatches_per_step} exceeds rollout.num_prompts="
                f"{self.rollout.num_prompts}: a group is never divided between optimizer steps"
            )
        if self.loss.surrogate.kind == "gmpo":
            raise ConfigError(
                "loss.surrogate=gmpo has one ratio a sequence, and a critic gives each token its own advantage"
            )
        if train.minibatches_per_step * train.epochs_per_step == 1 and self.loss.changes("surrogate"):
            raise ConfigError("loss.surrogate would be ignored: with one optimizer step per rollout the ratio is 1")
        if self.critic.kind == "shared" and self.model.lora is not None:
            raise ConfigError("critic.kind=shared would train the trunk's adapters alone for both: use critic.kind=own")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOInputs(TaskInputs):
    """What a run reads. `critic` is the model that a critic of another origin than the policy starts from."""

    critic: ModelFacts | None

    def record(self) -> dict[str, Any]:
        """Fingerprints."""
        # not super(): a dataclass with slots is another class than the one that its methods were made in
        found = TaskInputs.record(self)
        if self.critic is not None:
            found["critic"] = model_record(self.critic.source, base=self.critic.base, commit=self.critic.commit)
        return found


def prepare(config: PPOConfig) -> PPOInputs:
    """Check what the run reads. Raises a UserError."""
    tasks = check_tasks(config)
    refuse_adapter(tasks.model, needs(config))
    critic = None
    if config.critic.path is not None:
        critic = inspect_model(config.critic.path)
        if critic.tokenizer.get_vocab() != tasks.model.tokenizer.get_vocab():
            raise ConfigError(f"critic.path={critic.source} has another vocabulary than {tasks.model.source}")
    return PPOInputs(config=config, critic=critic, **tasks.shared())


def needs(config: PPOConfig) -> RoleNeeds:
    """What the run asks of the roles."""
    own = CriticNeeds(path=config.critic.path, learning_rate=config.critic.learning_rate)
    return RoleNeeds(
        reference=config.loss.kl_coefficient != 0,
        temperature=config.rollout.temperature,
        max_rows=config.rollout.max_rows,
        critic=own if config.critic.kind == "own" else "shared",
    )


def train(config: PPOConfig, inputs: PPOInputs, roles: Roles, hooks: Hooks, state: TrainState) -> None:
    """The loop. `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
    coefficients = Coefficients(config.loss, num_steps=config.train.num_steps, controllers=state.controllers)
    steps_per_rollout = config.train.minibatches_per_step * config.train.epochs_per_step
    total = config.train.num_steps * steps_per_rollout
    for collected in rollout_steps(config, inputs, roles, hooks, state):
        values = coefficients.at(state.step)
        batch, observed = scored(collected, roles, config, values)
        parts: list[dict[str, Metric]] = []
        steps_taken = 0
        for index in range(steps_per_rollout):
            share = minibatch(batch, collected, index % config.train.minibatches_per_step, config)
            if share is None:
                continue
            steps_taken += 1
            rate = learning_rate_at(config.optimizer, state.step * steps_per_rollout + index, total)
            parts += learn(share, roles, config, values, rate)
        state.step += 1
        state.weight_version += steps_taken
        roles.publish_weights(state.weight_version)
        observed = {**rollout_metrics(collected), **coefficients.logged(state.step - 1), **observed}
        advantages_B = sequence_sums(torch.as_tensor(batch.advantages_S), batch) / torch.bincount(batch.sequence_S)
        by_group = np.split(advantages_B.numpy(), np.cumsum([len(g.rollouts) for g in collected.groups])[:-1])
        lines = rollout_lines(collected.groups, [part.tolist() for part in by_group])
        hooks.after_step(state, parts, observed=observed, rollouts=lines, adjust=coefficients.after_step)


def scored(
    collected: Collected, roles: Roles, config: PPOConfig, values: Mapping[str, float]
) -> tuple[TokenBatch, dict[str, Any]]:
    """The step as one batch with old values, returns and advantages, and what was seen on the way."""
    groups = collected.groups
    batch = pack_groups(groups, [[0.0] * len(group.rollouts) for group in groups])
    sampler_S = need(batch.sampler_logprobs_S, "sampler_logprobs_S")
    observed: dict[str, Any] = {}
    rewards_S = torch.zeros(len(sampler_S))
    if config.loss.kl_coefficient != 0:
        differences_S = sampler_S - roles.reference_logprobs(batch)
        rewards_S = -values["kl_coefficient"] * differences_S
        observed["kl_per_completion"] = float(sequence_sums(differences_S, batch).mean())
    ends_B = torch.bincount(batch.sequence_S).cumsum(0) - 1
    rewards_S[ends_B] += torch.tensor([rollout.reward for group in groups for rollout in group.rollouts])
    is_shared = config.critic.kind == "shared"
    is_single_step = config.train.minibatches_per_step * config.train.epochs_per_step == 1
    said = roles.score(batch) if is_shared or not is_single_step else None
    values_S = roles.critic.score(batch).values_S if said is None or not is_shared else said.values_S
    old_values_S = need(values_S, "values_S")
    advantages_S, returns_S = gae(
        rewards_S, old_values_S, batch.sequence_S, discount=config.loss.discount, decay=config.loss.decay
    )
    unexplained, variance = (returns_S - old_values_S).var(), returns_S.var()
    observed["explained_variance"] = float(1 - unexplained / variance) if variance > 0 else None
    if config.loss.whiten:
        advantages_S = whiten(advantages_S)
    return replace(
        batch,
        old_logprobs_S=None if said is None or is_single_step else said.logprobs_S,
        old_values_S=old_values_S,
        returns_S=returns_S,
        advantages_S=advantages_S,
    ), observed


def minibatch(batch: TokenBatch, collected: Collected, index: int, config: PPOConfig) -> TokenBatch | None:
    """The groups of one optimizer step; None where so many groups were lost that none is left for it."""
    indices = np.array_split(np.arange(len(collected.groups)), config.train.minibatches_per_step)[index].tolist()
    if not indices:
        return None
    counts = count_examples([example_of(collected.groups[each]) for each in indices])
    return replace(take_groups(batch, indices), counts=counts)


def learn(
    share: TokenBatch, roles: Roles, config: PPOConfig, values: Mapping[str, float], learning_rate: float
) -> list[dict[str, Metric]]:
    """One optimizer step of the policy and of the critic."""
    loss = config.loss
    policy = PolicyLoss(
        aggregation=loss.aggregation,
        max_tokens=config.rollout.max_tokens,
        entropy_coefficient=values["entropy_coefficient"],
        importance=None if loss.importance is None else ImportanceCorrection(**loss.importance.model_dump()),
        **loss.surrogate.settings(),
    )
    value = ValueLoss(clip=loss.value_clip)
    if config.critic.kind == "shared":
        both: Loss = WeightedLosses(
            {"policy": policy, "value": value}, {"policy": 1.0, "value": config.critic.coefficient}
        )
        return [*roles.forward_backward(share, both), roles.optim_step(learning_rate)]
    parts = [*roles.forward_backward(share, policy), roles.optim_step(learning_rate)]
    critic_rate = learning_rate / config.optimizer.learning_rate * config.critic.learning_rate  # the same schedule
    of_critic = [*roles.critic.forward_backward(share, value), roles.critic.optim_step(critic_rate)]
    own = ("value_mean", "value_clip_fraction", "value_error")
    return parts + [
        {name if name in own else f"critic.{name}": metric for name, metric in part.items()} for part in of_critic
    ]
