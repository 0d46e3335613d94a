"""Off-policy distillation: learn a teacher's distributions on given conversations (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field

from burnish.algorithms.hooks import Hooks
from burnish.algorithms.learning import Learning, LearningConfig, batches, check_examples, seen
from burnish.algorithms.sft import ConversationReader
from burnish.algorithms.teaching import DivergenceConfig, TeacherConfig, check_teachers, teachers_record
from burnish.config.schema import NAME_PATTERN
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.errors import ConfigError
from burnish.evaluation.held_out import Item
from burnish.losses.distillation import DistillationLoss
from burnish.losses.loss import need
from burnish.losses.preference import sequence_sums
from burnish.models.load import ModelFacts
from burnish.records import TokenBatch
from burnish.training.checkpoint import TrainState
from burnish.training.optimizer import learning_rate_at

MEASURE = "minus divergence per token"
COLUMNS = ("loss", "divergence", "held_out", "entropy", "grad_norm", "tokens_per_second")


class OffPolicyDistillationConfig(LearningConfig):
    """Everything an off-policy distillation depends on."""

    algorithm: Literal["off_policy_distillation"] = "off_policy_distillation"
    """The algorithm."""
    name: str = Field("off-policy-distillation", max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    turns: Literal["all", "last"] = "all"
    """all: learn every turn of the assistant. last: only the last one of a conversation."""
    teachers: tuple[TeacherConfig, ...]
    """[{"path": ..., "weight": 1}, ...]; the divergences from several teachers are averaged."""
    loss: DivergenceConfig = DivergenceConfig()


@dataclass(slots=True, kw_only=True)
class OffPolicyDistillationInputs(Learning):
    """What a run reads."""

    config: OffPolicyDistillationConfig
    teachers: Sequence[ModelFacts]

    def record(self) -> dict[str, Any]:
        """Fingerprints."""
        # not super(): a dataclass with slots is another class than the one that its methods were made in
        return Learning.record(self) | {"teachers": teachers_record(self.teachers)}

    def start(self, roles: Roles, say: Callable[[str], None]) -> None:
        """See Inputs: nothing is needed of the starting weights."""

    def taught(self, batch: TokenBatch) -> list[TokenBatch]:
        """The batch once for each teacher, weighted so that the weights sum to 1."""
        total = sum(teacher.weight for teacher in self.config.teachers)
        shares = [teacher.weight / total for teacher in self.config.teachers]
        return [replace(batch, teacher=index, weights_S=share * batch.weights_S) for index, share in enumerate(shares)]

    def evaluate(self, roles: Roles) -> list[Item]:
        """Minus the mean divergence from the teachers over each held-out conversation's scored tokens."""
        batch = self.held_out_batch()
        lengths_B = torch.bincount(batch.sequence_S)
        means_B = torch.zeros(len(lengths_B))
        for part in self.taught(batch):
            divergence_S = need(roles.score(part).divergence_S, "divergence_S") * part.weights_S
            means_B = means_B + sequence_sums(divergence_S, batch) / lengths_B
        return [
            {"id": example.id, "score": -mean}
            for example, mean in zip(self.examples.held_out, means_B.tolist(), strict=True)
        ]


def prepare(config: OffPolicyDistillationConfig) -> OffPolicyDistillationInputs:
    """Check what the run reads. Raises a UserError."""
    reader = ConversationReader(system_prompt=config.data.system_prompt, only_last=config.turns == "last")
    model, examples = check_examples(config, reader.example)
    if any(teacher.where for teacher in config.teachers):
        raise ConfigError("teachers.where would be ignored: here every teacher teaches every conversation")
    teachers = check_teachers(model, config.teachers, config.loss.top_k)
    return OffPolicyDistillationInputs(config=config, model=model, examples=examples, teachers=teachers)


def needs(config: OffPolicyDistillationConfig) -> RoleNeeds:
    """What the run asks of the roles."""
    teachers = tuple(teacher.path for teacher in config.teachers)
    return RoleNeeds(teachers=teachers, divergence=config.loss.divergence())


def train(
    config: OffPolicyDistillationConfig,
    inputs: OffPolicyDistillationInputs,
    roles: Roles,
    hooks: Hooks,
    state: TrainState,
) -> None:
    """The loop. `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
    for indices in batches(config, inputs, hooks, state):
        batch = inputs.batch(indices)
        parts = [part for taught in inputs.taught(batch) for part in roles.forward_backward(taught, DistillationLoss())]
        parts.append(roles.optim_step(learning_rate_at(config.optimizer, state.step, config.train.num_steps)))
        state.step += 1
        state.weight_version += 1
        roles.publish_weights(state.weight_version)
        hooks.after_step(state, parts, observed=seen(batch))
