"""Direct preference optimisation: make preferred answers likelier than rejected ones, near a reference.

Rafailov et al. 2023, and the losses of its family by name and weight; losses/preference.py has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from burnish.algorithms.hooks import Hooks
from burnish.algorithms.learning import Learning, LearningConfig, batches, check_examples, learn, seen
from burnish.config.coefficients import Coefficient, check_lowest
from burnish.config.schema import NAME_PATTERN, Section
from burnish.data.preferences import PreferenceReader
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.errors import ConfigError
from burnish.evaluation.held_out import Item
from burnish.losses.loss import Loss, Normalizer, load_loss, need
from burnish.losses.preference import (
    NAMED,
    REFERENCE_FREE,
    USED_BY,
    PreferenceLoss,
    kl_metrics,
    pair_metrics,
    pairs_of,
    right,
    sequence_sums,
)
from burnish.records import LossOutput, Scored, TokenBatch
from burnish.training.checkpoint import TrainState
from burnish.training.coefficients import Coefficients

MEASURE = "preference accuracy"
COLUMNS = ("loss", "reward_margin", "reward_accuracy", "held_out", "kl", "drift_chosen", "drift_rejected", "grad_norm")
_SHIFT = "reward_shift"
_SHIFT_DECAY = 0.9


class DPOLossConfig(Section):
    """The objective."""

    weights: dict[str, float] = Field({"sigmoid": 1.0})
    """Named losses and their weights, say {"sigmoid": 1, "nll": 0.1}; docs/losses.md lists them."""
    beta: Coefficient = 0.1
    """How strongly the policy is held to the reference: the scale of the implicit reward."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels that are taken to be wrong; cdpo, robust and exo use it."""
    margin: float = Field(0.0, ge=0)
    """Difference that simpo asks for."""
    tau: float = Field(0.05, gt=0)
    """Temperature of discopop."""
    score_margin: float = Field(0.0, ge=0)
    """Margin for each point of difference between the grades of the two answers (ODPO)."""
    likelihood_weights: bool = False
    """Weigh a pair by how likely the policy is to say it (WPO)."""
    own: str | None = None
    """package.module:name of a loss to use instead."""

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> DPOLossConfig:
        check_lowest(self.beta, "loss.beta", 0.0, may_equal=False)
        names = set(self.weights)
        if unknown := names - set(NAMED):
            raise ConfigError(f"loss.weights: no loss is named {sorted(unknown)[0]!r}; known: {', '.join(NAMED)}")
        if not names:
            raise ConfigError("loss.weights: name at least one loss")
        if self.own is not None and any(self.changes(key) for key in type(self).model_fields if key != "own"):
            raise ConfigError("loss.own is used instead of the named losses: leave the other settings of loss out")
        for key in ("beta", "label_smoothing", "margin", "tau", "score_margin"):
            if self.changes(key) and not names & USED_BY[key]:
                users = ", ".join(sorted(USED_BY[key]))
                raise ConfigError(f"loss.{key} would be ignored: of the named losses only {users} use it")
        if "exo" in names and self.label_smoothing == 0:
            raise ConfigError("loss.label_smoothing must be above 0 for exo: it takes its logarithm")
        return self


@dataclass(frozen=True, slots=True)
class WithPairMetrics:
    """A user's loss, beside which the same is logged as beside the named ones; rewards are log-ratios, beta is 1."""

    loss: Loss

    @property
    def needs_whole_groups(self) -> bool:
        """Both sides of a pair."""
        return True

    @property
    def normalizer(self) -> Normalizer:
        """See Loss."""
        return self.loss.normalizer

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """See Loss."""
        output = self.loss(scored, batch)
        pairs = pairs_of(scored, batch, has_reference=True)
        return replace(output, metrics={**pair_metrics(pairs, 1.0), **kl_metrics(scored, batch), **output.metrics})


class DPOConfig(LearningConfig):
    """Everything a run of the DPO family depends on."""

    algorithm: Literal["dpo"] = "dpo"
    """The algorithm."""
    name: str = Field("dpo", max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    loss: DPOLossConfig = DPOLossConfig()


@dataclass(slots=True, kw_only=True)
class DPOInputs(Learning):
    """What a run reads. `own_loss` takes the place of the named ones."""

    config: DPOConfig
    own_loss: Loss | None

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with the starting weights."""
        return self.own_loss is not None or bool(set(self.config.loss.weights) - REFERENCE_FREE)

    def start(self, roles: Roles, say: Callable[[str], None]) -> None:
        """See Inputs."""
        if self.has_reference:
            self.compute_reference(roles, say)

    def evaluate(self, roles: Roles) -> list[Item]:
        """Whether the implicit reward of each held-out pair's preferred answer is the higher one."""
        batch = self.held_out_batch()
        pairs = pairs_of(roles.score(batch), batch, has_reference=self.has_reference)
        margins_G = pairs.chosen_logratios_G - pairs.rejected_logratios_G
        if not self.has_reference:
            margins_G = pairs.mean_chosen_logprobs_G - pairs.mean_rejected_logprobs_G
        rows = zip(self.examples.held_out, margins_G.tolist(), right(margins_G).tolist(), strict=True)
        return [{"id": example.id, "score": score, "margin": margin} for example, margin, score in rows]


def prepare(config: DPOConfig) -> DPOInputs:
    """Check what the run reads. Raises a UserError."""
    own = None
    if config.loss.own is not None:
        declared = load_loss(config.loss.own, "loss.own")
        if not declared.needs_whole_groups:
            raise ConfigError(
                f"loss.own: {config.loss.own} does not say that it needs both sides of a pair: decorate it with "
                '@loss(normalizer="groups", needs_whole_groups=True)'
            )
        own = WithPairMetrics(declared)
    reader = PreferenceReader(system_prompt=config.data.system_prompt, needs_grades=config.loss.score_margin > 0)
    model, examples = check_examples(config, reader.pair)
    return DPOInputs(config=config, model=model, examples=examples, own_loss=own)


def needs(config: DPOConfig) -> RoleNeeds:
    """What the run asks of the roles. The reference is scored before training, so no second copy is kept."""
    return RoleNeeds()


def train(config: DPOConfig, inputs: DPOInputs, roles: Roles, hooks: Hooks, state: TrainState) -> None:
    """The loop. `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
    coefficients = Coefficients(config.loss, num_steps=config.train.num_steps, controllers=state.controllers)
    adjust = adjuster(config.loss, coefficients, state)
    for indices in batches(config, inputs, hooks, state):
        batch = inputs.batch(indices)
        if config.loss.likelihood_weights:
            batch = with_likelihood_weights(batch, roles)
        values = coefficients.at(state.step)
        loss = inputs.own_loss or preference_loss(config.loss, values, state)
        parts = learn(config, roles, state, batch, loss)
        hooks.after_step(state, parts, observed={**seen(batch), **coefficients.logged(state.step - 1)}, adjust=adjust)


def adjuster(
    config: DPOLossConfig, coefficients: Coefficients, state: TrainState
) -> Callable[[Mapping[str, Any]], list[str]]:
    """What moves with a step's metrics: closed loops and bco's threshold."""

    def adjust(metrics: Mapping[str, Any]) -> list[str]:
        move_reward_shift(config, state, metrics)
        return coefficients.after_step(metrics)

    return adjust


def preference_loss(config: DPOLossConfig, values: Mapping[str, float], state: TrainState) -> PreferenceLoss:
    """The loss that the configuration describes, with its scheduled coefficients' values at this step."""
    names = ("beta", "label_smoothing", "margin", "tau", "score_margin")
    settings = {name: values[name] for name in names}
    return PreferenceLoss(weights=config.weights, reward_shift=state.controllers.get(_SHIFT, 0.0), **settings)


def move_reward_shift(config: DPOLossConfig, state: TrainState, metrics: Mapping[str, Any]) -> None:
    """Keep the moving average of both sides' rewards that bco takes as its threshold (Jung et al. 2024, eq. 9)."""
    if "bco" in config.weights:
        now = (metrics["reward_chosen"] + metrics["reward_rejected"]) / 2
        past = state.controllers.get(_SHIFT, now)
        state.controllers[_SHIFT] = _SHIFT_DECAY * past + (1 - _SHIFT_DECAY) * now


def with_likelihood_weights(batch: TokenBatch, roles: Roles) -> TokenBatch:
    """Multiply a pair's weight by how likely the policy is to have said both answers: WPO (Zhou et al. 2024).

    An answer's weight is exp(mean of log p - log(sum of p^2 over the vocabulary)): eq. 2 with the sampled alignment of
    section 3.2, so that an answer that the policy samples by itself has about weight 1. No gradient flows through it.
    """
    scored = roles.score(batch, with_collisions=True)
    aligned_S = scored.logprobs_S - need(scored.log_collision_S, "log_collision_S")
    weights_B = (sequence_sums(aligned_S, batch) / torch.bincount(batch.sequence_S)).exp()
    pair_weights_B = (weights_B[0::2] * weights_B[1::2]).repeat_interleave(2)
    return replace(batch, weights_S=batch.weights_S * pair_weights_B[batch.sequence_S])
