"""Reward model: a value head on the model's last token, trained to put better answers above worse ones.

Bradley-Terry on pairs or on several graded answers to a prompt (Ouyang et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from burnish.algorithms.hooks import Hooks
from burnish.algorithms.learning import Learning, LearningConfig, batches, check_examples, learn, seen
from burnish.config.schema import NAME_PATTERN, Section
from burnish.data.packing import ends_only
from burnish.data.preferences import PreferenceReader
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.errors import ConfigError
from burnish.evaluation.held_out import Item
from burnish.losses.loss import Loss, load_loss, need
from burnish.losses.preference import RewardModelLoss
from burnish.training.checkpoint import TrainState

MEASURE = "preference accuracy"
COLUMNS = ("loss", "reward_margin", "reward_accuracy", "held_out", "grad_norm", "tokens_per_second")


class RewardModelLossConfig(Section):
    """The objective."""

    margin_scale: float = Field(0.0, ge=0)
    """Margin for each point of difference between the grades."""
    centering: float = Field(0.0, ge=0)
    """Weight of the squared sum of a pair's rewards, which keeps rewards around 0; 0.01 is usual."""
    own: str | None = None
    """package.module:name of a loss to use instead."""

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> RewardModelLossConfig:
        if self.own is not None and (self.changes("margin_scale") or self.changes("centering")):
            raise ConfigError("loss.own is used instead: leave margin_scale and centering out")
        return self


class RewardModelConfig(LearningConfig):
    """Everything a reward model's run depends on."""

    algorithm: Literal["reward_model"] = "reward_model"
    """The algorithm."""
    name: str = Field("reward-model", max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    loss: RewardModelLossConfig = RewardModelLossConfig()


@dataclass(slots=True, kw_only=True)
class RewardModelInputs(Learning):
    """What a run reads."""

    loss: Loss

    def start(self, roles: Roles, say: Callable[[str], None]) -> None:
        """See Inputs: nothing is needed of the starting weights."""

    def evaluate(self, roles: Roles) -> list[Item]:
        """The share of each held-out prompt's pairs that the rewards put in the right order; a tie is half right."""
        rewards = need(roles.score(ends_only(self.held_out_batch())).values_S, "values_S").tolist()
        items: list[Item] = []
        for example in self.examples.held_out:
            found, rewards = rewards[: len(example.branches)], rewards[len(example.branches) :]
            graded = [(branch.score, reward) for branch, reward in zip(example.branches, found, strict=True)]
            margins = [better - worse for high, better in graded for low, worse in graded if high > low]
            score = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)
            items.append({"id": example.id, "score": score, "rewards": found})
        return items


def prepare(config: RewardModelConfig) -> RewardModelInputs:
    """Check what the run reads. Raises a UserError."""
    loss: Loss = RewardModelLoss(margin_scale=config.loss.margin_scale, centering=config.loss.centering)
    if config.loss.own is not None:
        loss = load_loss(config.loss.own, "loss.own")
    reader = PreferenceReader(system_prompt=config.data.system_prompt, needs_grades=config.loss.margin_scale > 0)
    model, examples = check_examples(config, reader.graded)
    return RewardModelInputs(config=config, model=model, examples=examples, loss=loss)


def needs(config: RewardModelConfig) -> RoleNeeds:
    """What the run asks of the roles: a model with a value head."""
    return RoleNeeds(kind="value")


def train(config: RewardModelConfig, inputs: RewardModelInputs, roles: Roles, hooks: Hooks, state: TrainState) -> None:
    """The loop. `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
    for indices in batches(config, inputs, hooks, state):
        batch = ends_only(inputs.batch(indices))
        parts = learn(config, roles, state, batch, inputs.loss)
        hooks.after_step(state, parts, observed=seen(batch))
