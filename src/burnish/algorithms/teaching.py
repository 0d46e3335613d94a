"""What the two ways of distillation share: teachers, and the divergence from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from burnish.config.schema import Section
from burnish.errors import ConfigError
from burnish.models.divergence import Divergence
from burnish.models.load import ModelFacts, inspect_model
from burnish.reproducibility.record import model_record


class TeacherConfig(Section):
    """A model to learn from. It must have the student's vocabulary."""

    path: str = Field(min_length=1)
    """A Hugging Face folder, a hub id, or a name that `burnish model get` knows."""
    weight: float = Field(1.0, gt=0)
    """Weight beside the other teachers of the same task."""
    where: dict[str, Any] = Field({})
    """Fields of a task, and the values they must have for this teacher to teach it; empty for every task."""


class DivergenceConfig(Section):
    """The objective."""

    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """forward_kl: cover what the teacher says. reverse_kl: say only what the teacher would. jsd: between them."""
    top_k: int | None = Field(None, ge=1)
    """Compare the teacher's k likeliest tokens and the rest as one; null compares the whole vocabulary."""

    def divergence(self) -> Divergence:
        """What the learner computes."""
        return Divergence(kind=self.kind, top_k=self.top_k)


class SampledDivergenceConfig(Section):
    """The objective."""

    kind: Literal["sampled", "forward_kl", "reverse_kl", "jsd"] = "sampled"
    """sampled: reverse KL by policy gradient on the sampled tokens. The others compare whole distributions."""
    top_k: int | None = Field(None, ge=1)
    """Compare the teacher's k likeliest tokens and the rest as one; null compares the whole vocabulary."""

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> SampledDivergenceConfig:
        if self.kind == "sampled" and self.top_k is not None:
            raise ConfigError("loss.top_k would be ignored with loss.kind=sampled: only the sampled token is looked at")
        return self

    def divergence(self) -> Divergence | None:
        """What the learner computes; None where the sampled tokens suffice."""
        return None if self.kind == "sampled" else Divergence(kind=self.kind, top_k=self.top_k)


def check_teachers(student: ModelFacts, teachers: Sequence[TeacherConfig], top_k: int | None) -> list[ModelFacts]:
    """Find every teacher and compare its vocabulary with the student's.

    Raises:
        ConfigError: a teacher's tokens are not the student's.
        ModelError: there is no such model.
    """
    if not teachers:
        raise ConfigError("teachers: name at least one")
    vocabulary = student.tokenizer.get_vocab()
    if top_k is not None and top_k >= len(vocabulary):
        raise ConfigError(f"loss.top_k={top_k} is no less than the {len(vocabulary)} tokens there are: leave it out")
    found = [inspect_model(teacher.path) for teacher in teachers]
    for facts in found:
        if facts.tokenizer.get_vocab() != vocabulary:
            raise ConfigError(
                f"teachers: the vocabulary of {facts.source} is not that of {student.source}: their "
                "distributions cannot be compared token by token"
            )
    return found


def teachers_record(teachers: Sequence[ModelFacts]) -> list[dict[str, Any]]:
    """Fingerprints of the teachers."""
    return [model_record(facts.source, base=facts.base, commit=facts.commit) for facts in teachers]
