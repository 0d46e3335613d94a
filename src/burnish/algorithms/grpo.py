"""GRPO and its relatives: sample a group per prompt, compare each completion with its group, make better ones likelier.

Shao et al. 2024 (DeepSeekMath). The relatives are choices of advantage, ratio, surrogate and aggregation, not
algorithms: losses/advantages.py and losses/policy_gradient.py say which paper each name comes from, and recipes put
them together (dapo, dr_grpo, gspo, cispo, rloo, reinforce_pp).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from burnish.algorithms.asking import (
    COLUMNS,
    MEASURE,
    AskingConfig,
    TaskInputs,
    check_tasks,
    refuse_adapter,
    rollout_lines,
    rollout_metrics,
    rollout_steps,
)
from burnish.algorithms.constraints import Constraint, constrained
from burnish.algorithms.hooks import Hooks
from burnish.config.coefficients import Coefficient, check_lowest
from burnish.config.schema import NAME_PATTERN, RolloutTrainConfig, Section
from burnish.config.surrogates import AnySurrogate, Clip, Importance, Truncate
from burnish.data.packing import count_examples, example_of, pack_groups, take_groups
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.errors import ConfigError
from burnish.losses.advantages import ADVANTAGES, load_advantage
from burnish.losses.kl import KLEstimator
from burnish.losses.loss import Loss, WeightedLosses, load_loss
from burnish.losses.policy_gradient import Aggregation, ImportanceCorrection, PolicyLoss, Ratio
from burnish.losses.preference import sequence_sums
from burnish.records import RolloutGroup, TokenBatch
from burnish.training.checkpoint import TrainState
from burnish.training.coefficients import Coefficients
from burnish.training.optimizer import learning_rate_at

__all__ = ["COLUMNS", "MEASURE", "GRPOConfig", "needs", "prepare", "train"]


class GRPOLossConfig(Section):
    """The objective."""

    advantage: str = "grpo"
    """grpo, dr_grpo, rloo, maxrl, reinforce_pp, reinforce_pp_baseline, or package.module:name."""
    baseline_scope: str = "prompt"
    """What shares a baseline: prompt, or a field of the task, say a family that many prompts belong to."""
    ratio: Ratio = "token"
    """token (PPO, GRPO), sequence (GSPO), sequence_token (GSPO-token) or none (REINFORCE)."""
    surrogate: AnySurrogate = Clip()
    """clip, cispo, sapo, gmpo, dppo, or {"kind": "clip", "high": 0.28}; at one optimizer step a rollout all agree."""
    aggregation: Aggregation = "token"
    """token: all tokens of the step weigh the same. sequence: all completions do. constant: sums over max_tokens."""
    kl_coefficient: Coefficient = 0.0
    """Weight of the KL to the starting model; above 0 it costs one more forward pass, and a copy of the weights."""
    kl_estimator: KLEstimator = "k3"
    """Estimator of the KL in the loss: k1, k2 or k3."""
    kl_in: Literal["loss", "reward"] = "loss"
    """loss: a term beside the surrogate. reward: subtracted from each completion's reward (REINFORCE++, PPO)."""
    entropy_coefficient: Coefficient = 0.0
    """Weight of the entropy, which is added to what is to grow."""
    importance: Importance | None = Truncate()
    """Correction for a sampler that differs from the learner, {"mode": "truncate" | "mask"}; null leaves it out."""
    mask_truncated: bool = False
    """Cut-off completions give no gradient; they stay in the counts and in the baselines."""
    constraints: tuple[Constraint, ...] = ()
    """[{"on": "length", "below": 100}, ...]: maximise the reward while these means stay below their bounds."""
    also: dict[str, float] = Field({})
    """Further losses, package.module:name, and their weights."""

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> GRPOLossConfig:
        check_lowest(self.kl_coefficient, "loss.kl_coefficient", 0.0)
        kind = self.surrogate.kind
        if kind in ("gmpo", "dppo") and self.ratio != "token":
            raise ConfigError(f"loss.ratio={self.ratio} would be ignored: loss.surrogate={kind} brings its own")
        if self.ratio == "none" and self.surrogate != Clip():
            raise ConfigError(f"loss.surrogate={kind} would be ignored: loss.ratio=none leaves no ratio to look at")
        if self.kl_coefficient == 0 and (self.changes("kl_estimator") or self.changes("kl_in")):
            key = "kl_estimator" if self.changes("kl_estimator") else "kl_in"
            raise ConfigError(f"loss.{key} would be ignored while loss.kl_coefficient is 0: set both or neither")
        if self.advantage == "reinforce_pp" and self.changes("baseline_scope"):
            raise ConfigError(
                "loss.baseline_scope would be ignored: loss.advantage=reinforce_pp has one for the whole step"
            )
        for key in ("constraints", "kl_in"):
            if self.changes(key) and self.advantage in ("grpo", "maxrl"):
                why = "divides by the spread of a group, so in one of equal rewards a price of any size weighs the same"
                if self.advantage == "maxrl":
                    why = "divides by a mean of rewards that must not be negative, and a price makes them so"
                raise ConfigError(
                    f"loss.{key} cannot be used with loss.advantage={self.advantage}, which {why}; "
                    "take dr_grpo, rloo or reinforce_pp_baseline"
                )
        if self.kl_in == "reward" and self.changes("kl_estimator"):
            raise ConfigError("loss.kl_estimator would be ignored: a KL in the reward is estimated by k1")
        return self

    @property
    def has_reference(self) -> bool:
        """Whether something compares with the starting model."""
        return self.kl_coefficient != 0 or any(constraint.on == "kl" for constraint in self.constraints)


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
        if loss.advantage == "maxrl" and self.rollout.overlong_buffer:
            raise ConfigError(
                "rollout.overlong_buffer makes rewards negative, and loss.advantage=maxrl divides by their mean"
            )
        for key in ("surrogate", "ratio"):
            if train.minibatches_per_step == 1 and loss.changes(key) and loss.ratio != "none":
                raise ConfigError(
                    f"loss.{key} would be ignored with train.minibatches_per_step=1: with one optimizer step per "
                    "rollout the ratio is always 1; raise minibatches_per_step or leave it out"
                )
        return self


def prepare(config: GRPOConfig) -> TaskInputs:
    """Check what the run reads. Raises a UserError."""
    if config.loss.advantage not in ADVANTAGES:
        load_advantage(config.loss.advantage, "loss.advantage")
    for path in config.loss.also:
        load_loss(path, "loss.also")
    inputs = check_tasks(config)
    refuse_adapter(inputs.model, needs(config))
    if config.loss.baseline_scope != "prompt":
        scopes_of([prompt.task.extra for prompt in inputs.train], config.loss.baseline_scope)
    return inputs


def needs(config: GRPOConfig) -> RoleNeeds:
    """What the run asks of the roles."""
    rollout = config.rollout
    return RoleNeeds(reference=config.loss.has_reference, temperature=rollout.temperature, max_rows=rollout.max_rows)


def train(config: GRPOConfig, inputs: TaskInputs, roles: Roles, hooks: Hooks, state: TrainState) -> None:
    """The loop. `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
    coefficients = Coefficients(config.loss, num_steps=config.train.num_steps, controllers=state.controllers)
    for collected in rollout_steps(config, inputs, roles, hooks, state):
        values = coefficients.at(state.step)
        batch, advantages, observed = scored(collected.groups, roles, config, values, state)
        loss = policy_loss(config, values)
        parts = []
        batches = [with_old_logprobs(share, roles, config) for share in minibatches(batch, collected.groups, config)]
        for index, share in enumerate(batches):
            parts += roles.forward_backward(share, loss)
            optimizer_step = state.step * config.train.minibatches_per_step + index
            total = config.train.num_steps * config.train.minibatches_per_step
            parts.append(roles.optim_step(learning_rate_at(config.optimizer, optimizer_step, total)))
        if not batches:
            hooks.progress.say(f"nothing learned in step {state.step + 1}: every advantage is 0")
        state.step += 1
        state.weight_version += len(batches)
        roles.publish_weights(state.weight_version)
        observed = {**rollout_metrics(collected), **coefficients.logged(state.step - 1), **observed}
        lines = rollout_lines(collected.groups, advantages)
        hooks.after_step(state, parts, observed=observed, rollouts=lines, adjust=coefficients.after_step)


def scored(
    groups: Sequence[RolloutGroup],
    roles: Roles,
    config: GRPOConfig,
    values: Mapping[str, float],
    state: TrainState,
) -> tuple[TokenBatch, list[list[float]], dict[str, Any]]:
    """The whole step as one batch with its advantages, those by group, and what was seen on the way."""
    batch = pack_groups(groups, [[0.0] * len(group.rollouts) for group in groups])
    if config.loss.has_reference:
        batch = replace(batch, reference_logprobs_S=roles.reference_logprobs(batch))
    rewards_B = np.array([rollout.reward for group in groups for rollout in group.rollouts])
    observed: dict[str, Any] = {}
    kl_B = np.zeros(len(rewards_B))
    if batch.reference_logprobs_S is not None:
        differences_S = torch.as_tensor(batch.sampler_logprobs_S) - batch.reference_logprobs_S
        kl_B = sequence_sums(differences_S, batch).double().numpy()
        observed["kl_per_completion"] = float(kl_B.mean())
    if config.loss.kl_in == "reward":
        rewards_B = rewards_B - values["kl_coefficient"] * kl_B
        batch = replace(batch, reference_logprobs_S=None)
    if config.loss.constraints:
        rewards_B, found = constrained(config.loss.constraints, groups, rewards_B, kl_B, state.controllers)
        observed |= found
    scope_B = np.repeat(scopes(groups, config.loss.baseline_scope), [len(group.rollouts) for group in groups])
    advantages_B = load_advantage(config.loss.advantage, "loss.advantage")(rewards_B, scope_B)
    by_group = np.split(advantages_B, np.cumsum([len(group.rollouts) for group in groups])[:-1])
    advantages_S = torch.tensor(advantages_B, dtype=torch.float32)[batch.sequence_S]
    if config.loss.mask_truncated:
        finished_B = [r.completion.finish_reason != "length" for group in groups for r in group.rollouts]
        weights_S = batch.weights_S * torch.tensor(finished_B, dtype=torch.float32)[batch.sequence_S]
        batch = replace(batch, weights_S=weights_S)
    return replace(batch, advantages_S=advantages_S), [part.tolist() for part in by_group], observed


def scopes(groups: Sequence[RolloutGroup], scope: str) -> list[int]:
    """A number for each group; groups of the same number share a baseline."""
    if scope == "prompt":
        return list(range(len(groups)))
    keys = scopes_of([group.prompt.task.extra for group in groups], scope)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]


def scopes_of(extras: Sequence[Mapping[str, Any]], scope: str) -> list[str]:
    """The value of a field of each task.

    Raises:
        ConfigError: a task has no such field.
    """
    for extra in extras:
        if scope not in extra:
            known = ", ".join(sorted(extra)) or "none"
            raise ConfigError(f"loss.baseline_scope: a task has no field {scope!r}; it has {known}")
    return [str(extra[scope]) for extra in extras]


def policy_loss(config: GRPOConfig, values: Mapping[str, float]) -> Loss:
    """The loss that the configuration describes, with its scheduled coefficients' values at this step."""
    loss = config.loss
    policy = PolicyLoss(
        ratio=loss.ratio,
        aggregation=loss.aggregation,
        max_tokens=config.rollout.max_tokens,
        kl_coefficient=values["kl_coefficient"],
        kl_estimator=loss.kl_estimator,
        entropy_coefficient=values["entropy_coefficient"],
        importance=None if loss.importance is None else ImportanceCorrection(**loss.importance.model_dump()),
        **loss.surrogate.settings(),
    )
    if not loss.also:
        return policy
    losses: dict[str, Loss] = {"policy": policy, **{path: load_loss(path, "loss.also") for path in loss.also}}
    return WeightedLosses(losses, {"policy": 1.0, **loss.also})


def minibatches(batch: TokenBatch, groups: Sequence[RolloutGroup], config: GRPOConfig) -> Iterator[TokenBatch]:
    """One batch per optimizer step.

    Without another term in the loss a group whose advantages are all 0 adds nothing to the gradient. It is left out of
    the computation but not of the counts, so the gradient is the same; entropy, mismatch and clip metrics then describe
    the groups that teach. A share that teaches nothing makes no optimizer step.
    """
    loss = config.loss
    has_kl = loss.kl_coefficient != 0 and loss.kl_in == "loss"
    has_other_terms = has_kl or loss.entropy_coefficient != 0 or bool(loss.also)
    examples = [example_of(group) for group in groups]
    pull_S = torch.as_tensor(batch.advantages_S) * batch.weights_S
    for indices in np.array_split(np.arange(len(groups)), config.train.minibatches_per_step):
        teaches = [
            has_other_terms or bool((pull_S[batch.group_B[batch.sequence_S] == index] != 0).any()) for index in indices
        ]
        kept = [int(index) for index, does in zip(indices, teaches, strict=True) if does]
        if kept:
            yield replace(take_groups(batch, kept), counts=count_examples([examples[index] for index in indices]))


def with_old_logprobs(batch: TokenBatch, roles: Roles, config: GRPOConfig) -> TokenBatch:
    """Add the log-probabilities before the first of several optimizer steps."""
    if config.train.minibatches_per_step > 1:
        return replace(batch, old_logprobs_S=roles.score(batch).logprobs_S)
    return batch
