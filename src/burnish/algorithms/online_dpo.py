"""On-policy preference optimisation: sample answers, score them, and prefer the best to the worst of each prompt.

Guo et al. 2024 (online DPO), with a reward in the judge's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

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
from burnish.algorithms.dpo import DPOLossConfig, adjuster, preference_loss
from burnish.algorithms.hooks import Hooks
from burnish.config.schema import NAME_PATTERN
from burnish.data.packing import example_of, pack
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.errors import ConfigError
from burnish.losses.advantages import has_signal
from burnish.losses.preference import REFERENCE_FREE
from burnish.records import Example, Metric, RolloutGroup
from burnish.training.checkpoint import TrainState
from burnish.training.coefficients import Coefficients
from burnish.training.optimizer import learning_rate_at

__all__ = ["COLUMNS", "MEASURE", "OnlineDPOConfig", "needs", "prepare", "train"]

COLUMNS = ("loss", "reward_mean", "groups_without_signal", "reward_margin", "held_out", "kl", "completion_tokens_mean")


class OnlineDPOConfig(AskingConfig):
    """Everything a run of on-policy preference optimisation depends on."""

    algorithm: Literal["online_dpo"] = "online_dpo"
    """The algorithm."""
    name: str = Field("online-dpo", max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    loss: DPOLossConfig = DPOLossConfig()

    @model_validator(mode="after")
    def _refuse_what_cannot_be(self) -> OnlineDPOConfig:
        if self.loss.likelihood_weights:
            raise ConfigError(
                "loss.likelihood_weights makes up for another model's answers: these are the policy's own"
            )
        return self


def prepare(config: OnlineDPOConfig) -> TaskInputs:
    """Check what the run reads. Raises a UserError."""
    if config.loss.own is not None:
        raise ConfigError("loss.own cannot be used with on-policy pairs yet: name losses in loss.weights")
    inputs = check_tasks(config)
    refuse_adapter(inputs.model, needs(config))
    return inputs


def needs(config: OnlineDPOConfig) -> RoleNeeds:
    """What the run asks of the roles."""
    has_reference = bool(set(config.loss.weights) - REFERENCE_FREE)
    rollout = config.rollout
    return RoleNeeds(reference=has_reference, temperature=rollout.temperature, max_rows=rollout.max_rows)


def train(config: OnlineDPOConfig, inputs: TaskInputs, roles: Roles, hooks: Hooks, state: TrainState) -> None:
    """The loop. `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
    coefficients = Coefficients(config.loss, num_steps=config.train.num_steps, controllers=state.controllers)
    for collected in rollout_steps(config, inputs, roles, hooks, state):
        values = coefficients.at(state.step)
        parts: list[dict[str, Metric]] = []
        pairs = best_against_worst(collected.groups)
        if not pairs:
            hooks.progress.say(f"nothing learned in step {state.step + 1}: the rewards of every group are equal")
        else:
            batch = pack(pairs)
            if set(config.loss.weights) - REFERENCE_FREE:
                batch = replace(batch, reference_logprobs_S=roles.reference_logprobs(batch))
            parts += roles.forward_backward(batch, preference_loss(config.loss, values, state))
            parts.append(roles.optim_step(learning_rate_at(config.optimizer, state.step, config.train.num_steps)))
            state.weight_version += 1
        state.step += 1
        roles.publish_weights(state.weight_version)
        observed: dict[str, Any] = {
            **rollout_metrics(collected),
            **coefficients.logged(state.step - 1),
            "pairs": len(pairs),
        }
        lines = rollout_lines(collected.groups, [[0.0] * len(group.rollouts) for group in collected.groups])
        adjust = adjuster(config.loss, coefficients, state) if pairs else None
        hooks.after_step(state, parts, observed=observed, rollouts=lines, adjust=adjust)


def best_against_worst(groups: Sequence[RolloutGroup]) -> list[Example]:
    """A pair of each group with a signal: the highest reward, then the lowest; of equal ones the first."""
    pairs = []
    for group in groups:
        if has_signal([rollout.reward for rollout in group.rollouts]):
            example = example_of(group)
            best = max(example.branches, key=lambda branch: branch.score)
            worst = min(example.branches, key=lambda branch: branch.score)
            pairs.append(replace(example, branches=(replace(best, label=1.0), replace(worst, label=-1.0))))
    return pairs
