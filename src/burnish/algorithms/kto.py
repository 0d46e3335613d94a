"""KTO: learn from answers that are each good or bad, without pairs (Ethayarajh et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from burnish.algorithms.hooks import Hooks
from burnish.algorithms.learning import Learning, LearningConfig, batches, check_examples, learn, seen
from burnish.config.coefficients import Coefficient, check_lowest
from burnish.config.schema import NAME_PATTERN, Section
from burnish.data.packing import pack
from burnish.data.preferences import PreferenceReader
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.errors import DataError
from burnish.evaluation.held_out import Item
from burnish.losses.loss import need
from burnish.losses.preference import KTOLoss, right, sequence_sums
from burnish.records import Example, TokenBatch
from burnish.reproducibility.seeds import seed_for
from burnish.training.checkpoint import TrainState
from burnish.training.coefficients import Coefficients

MEASURE = "label accuracy"
COLUMNS = ("loss", "reward_chosen", "reward_rejected", "kl_baseline", "held_out", "grad_norm", "tokens_per_second")


class KTOLossConfig(Section):
    """The objective."""

    beta: Coefficient = 0.1
    """How strongly the policy is held to the reference: the scale of the implicit reward."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of good answers."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of bad answers; the paper keeps weight x count of the two sides within a factor of 4/3."""

    @model_validator(mode="after")
    def _refuse_no_reward(self) -> KTOLossConfig:
        check_lowest(self.beta, "loss.beta", 0.0, may_equal=False)
        return self


class KTOConfig(LearningConfig):
    """Everything a KTO run depends on."""

    algorithm: Literal["kto"] = "kto"
    """The algorithm."""
    name: str = Field("kto", max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    loss: KTOLossConfig = KTOLossConfig()


@dataclass(slots=True, kw_only=True)
class KTOInputs(Learning):
    """What a run reads."""

    config: KTOConfig

    def start(self, roles: Roles, say: Callable[[str], None]) -> None:
        """See Inputs."""
        self.compute_reference(roles, say, also=self.mismatched)

    def mismatched(self, index: int) -> Example:
        """A training example's prompt with the first answer of another prompt's example."""
        examples, seed = self.examples.train, seed_for(self.config.seed, "mismatch", index)
        own = examples[index]
        other = next(
            example
            for example in (examples[(seed + offset) % len(examples)] for offset in range(len(examples)))
            if example.id != own.id
        )
        return replace(own, branches=other.branches[:1])

    def kl_batch(self, indices: Sequence[int]) -> TokenBatch:
        """The mismatched examples of a step, with the reference's log-probabilities."""
        places = self.places(indices) + len(self.visited) + len(self.examples.held_out)
        batch = pack([self.mismatched(index) for index in indices])
        return replace(batch, reference_logprobs_S=self.kept_reference.of(places))

    def evaluate(self, roles: Roles) -> list[Item]:
        """Whether each held-out example's log-ratios are in the order of its labels.

        Where an example has good and bad answers, their means are compared; a single answer is compared with the
        median of all held-out answers under the same weights.
        """
        batch = self.held_out_batch()
        logratios_B = logratios(roles, batch)
        median = logratios_B.quantile(0.5)
        items: list[Item] = []
        start = 0
        for example in self.examples.held_out:
            own = slice(start, start + len(example.branches))
            start = own.stop
            labels, ratios = batch.labels_B[own], logratios_B[own]
            both = bool((labels > 0).any() and (labels < 0).any())
            margin = ratios[labels > 0].mean() - ratios[labels < 0].mean() if both else labels[0] * (ratios[0] - median)
            items.append({"id": example.id, "score": float(right(margin)), "margin": float(margin)})
        return items


def prepare(config: KTOConfig) -> KTOInputs:
    """Check what the run reads. Raises a UserError."""
    reader = PreferenceReader(system_prompt=config.data.system_prompt)
    model, examples = check_examples(config, reader.labelled)
    first = examples.train[0]
    if all(example.id == first.id for example in examples.train):
        raise DataError("data.source: KTO needs at least two different prompts: its baseline pairs one with another's")
    label = first.branches[0].label
    if all(branch.label == label for example in examples.train for branch in example.branches):
        raise DataError("data.source: all labels are the same: KTO needs good and bad answers")
    return KTOInputs(config=config, model=model, examples=examples)


def needs(config: KTOConfig) -> RoleNeeds:
    """What the run asks of the roles. The reference is scored before training, so no second copy is kept."""
    return RoleNeeds()


def train(config: KTOConfig, inputs: KTOInputs, roles: Roles, hooks: Hooks, state: TrainState) -> None:
    """The loop. `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
    coefficients = Coefficients(config.loss, num_steps=config.train.num_steps, controllers=state.controllers)
    for indices in batches(config, inputs, hooks, state):
        values = coefficients.at(state.step)
        baseline = max(0.0, float(logratios(roles, inputs.kl_batch(indices)).mean()))  # section 4.1 of the paper
        batch = inputs.batch(indices)
        parts = learn(config, roles, state, batch, KTOLoss(kl_baseline=baseline, **values))
        observed = {**seen(batch), **coefficients.logged(state.step - 1), "kl_baseline": baseline}
        hooks.after_step(state, parts, observed=observed, adjust=coefficients.after_step)


def logratios(roles: Roles, batch: TokenBatch) -> Tensor:
    """Log-ratio of policy to reference, summed over each sequence, [B]."""
    reference_logprobs_S = need(batch.reference_logprobs_S, "reference_logprobs_S")
    return sequence_sums(roles.score(batch).logprobs_S - reference_logprobs_S, batch)
