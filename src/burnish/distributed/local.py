"""All roles in one process, on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from burnish.models.policy import Policy
from burnish.records import Completion, GenerationRequest, Metric, TokenBatch
from burnish.rollout.generators.base import Generator
from burnish.training.learner import Learner, Loss


class LocalRoles:
    """The generator reads the learner's own parameters, so publishing copies nothing; it only counts.

    `keeps_reference` holds what `reference_logprobs` needs: the adapters switched off under LoRA, otherwise a second
    copy of the weights. Create it before the policy is trained or restored.
    """

    def __init__(self, learner: Learner, generator: Generator, *, keeps_reference: bool) -> None:
        self.learner = learner
        self.generator = generator
        self.weight_version = 0
        self._reference = _reference_of(learner) if keeps_reference else None

    def sample(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """See Roles."""
        return self.generator.generate(requests)

    def logprobs(self, batch: TokenBatch) -> Tensor:
        """See Roles."""
        return self.learner.logprobs(batch)

    def reference_logprobs(self, batch: TokenBatch) -> Tensor:
        """See Roles."""
        if self._reference is None:
            raise ValueError("these roles were made without a reference")
        policy = self._reference.policy
        if not policy.is_adapted:
            return self._reference.logprobs(batch)
        adapted: Any = policy.module  # a PeftModel
        with adapted.disable_adapter():
            return self._reference.logprobs(batch)

    def forward_backward(self, batch: TokenBatch, loss: Loss) -> list[dict[str, Metric]]:
        """See Roles."""
        return self.learner.forward_backward(batch, loss)

    def optim_step(self, learning_rate: float) -> dict[str, Metric]:
        """See Roles."""
        return self.learner.optim_step(learning_rate)

    def publish_weights(self, version: int) -> None:
        """See Roles."""
        self.weight_version = version


def _reference_of(learner: Learner) -> Learner:
    policy = learner.policy
    if policy.is_adapted:
        return learner
    frozen = copy.deepcopy(policy.causal_lm).requires_grad_(False)
    reference = Policy(module=frozen, causal_lm=frozen, tokenizer=policy.tokenizer, source=policy.source)
    return Learner(
        reference,
        learner.optimizer,
        micro_batch_tokens=learner.micro_batch_tokens,
        temperature=learner.temperature,
    )
