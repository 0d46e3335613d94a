"""All roles in one process, on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from burnish.config.schema import ModelConfig, OptimizerConfig, RunConfig
from burnish.distributed.roles import CriticNeeds, RoleNeeds
from burnish.errors import ConfigError
from burnish.losses.loss import Loss
from burnish.memory.recompute import recompute
from burnish.models.load import find_device, load_policy, with_value_head
from burnish.models.policy import Policy
from burnish.records import Completion, GenerationRequest, Metric, Scored, TokenBatch
from burnish.reproducibility.seeds import seed_for
from burnish.rollout.generators.base import Generator
from burnish.rollout.generators.native import NativeGenerator
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer, check_installed


class LocalRoles:
    """The generator reads the learner's own parameters, so publishing copies nothing; it only counts.

    `keeps_reference` holds what `reference_logprobs` needs: the adapters switched off under LoRA, otherwise a second
    copy of the weights. Create it before the policy is trained or restored.
    """

    def __init__(
        self,
        learner: Learner,
        generator: Generator | None,
        *,
        keeps_reference: bool,
        critic: Learner | None = None,
        offloads_reference: bool = False,
    ) -> None:
        self.learner = learner
        self._critic = critic
        self.generator = generator
        self.weight_version = 0
        self._reference = _reference_of(learner) if keeps_reference else None
        self._offloads_reference = offloads_reference and not learner.policy.is_adapted
        if self._reference is not None and self._offloads_reference:
            self._reference.policy.module.to("cpu")

    @property
    def learners(self) -> dict[str, Learner]:
        """Everything that is trained, by the subfolder of a checkpoint that holds it."""
        return {"": self.learner} if self._critic is None else {"": self.learner, "critic": self._critic}

    @property
    def critic(self) -> Learner:
        """See Roles."""
        if self._critic is None:
            raise ValueError("these roles were made without a critic")
        return self._critic

    def sample(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """See Roles."""
        if self.generator is None:
            raise ValueError("these roles were made without a sampler")
        return self.generator.generate(requests)

    def score(self, batch: TokenBatch, *, with_collisions: bool = False) -> Scored:
        """See Roles."""
        return self.learner.score(batch, with_collisions=with_collisions)

    def reference_logprobs(self, batch: TokenBatch) -> Tensor:
        """See Roles."""
        if self._reference is None:
            raise ValueError("these roles were made without a reference")
        policy = self._reference.policy
        if self._offloads_reference:  # there for as long as it scores
            policy.module.to(self.learner.policy.device)
            logprobs_S = self._reference.score(batch).logprobs_S
            policy.module.to("cpu")
            return logprobs_S
        if not policy.is_adapted:
            return self._reference.score(batch).logprobs_S
        adapted: Any = policy.module  # a PeftModel
        with adapted.disable_adapter():
            return self._reference.score(batch).logprobs_S

    def forward_backward(self, batch: TokenBatch, loss: Loss) -> list[dict[str, Metric]]:
        """See Roles."""
        return self.learner.forward_backward(batch, loss)

    def optim_step(self, learning_rate: float) -> dict[str, Metric]:
        """See Roles."""
        return self.learner.optim_step(learning_rate)

    def teacher_logprobs(self, batch: TokenBatch, teacher: int) -> Tensor:
        """See Roles."""
        return replace_policy(self.learner, self.learner.teachers[teacher]).score(batch).logprobs_S

    def publish_weights(self, version: int) -> None:
        """See Roles."""
        self.weight_version = version


def check_roles(config: RunConfig, needs: RoleNeeds) -> None:
    """Refuse what could not be built, or would have no effect, before any weight is loaded.

    Raises:
        ConfigError: a setting, or a package that is missing.
    """
    check_installed(config.optimizer)
    on_cpu = find_device(config.model.device).type == "cpu"
    for name in config.train.save_memory:
        if name.startswith("offload") and on_cpu:
            raise ConfigError(f"train.save_memory: {name} would do nothing: the model is on the CPU already")
    if "step_in_backward" in config.train.save_memory and needs.divergence is not None and len(needs.teachers) > 1:
        raise ConfigError(
            "train.save_memory: step_in_backward needs one backward pass a step, and each teacher has its own"
        )
    has_adapters_only = config.model.lora is not None and needs.kind == "language" and needs.critic is None
    if config.optimizer.kind == "muon" and has_adapters_only and config.optimizer.changes("betas"):
        raise ConfigError(
            "optimizer.betas would be ignored: with model.lora optimizer.kind=muon leaves nothing to AdamW"
        )


def build_local_roles(config: RunConfig, needs: RoleNeeds, *, device: torch.device | None = None) -> LocalRoles:
    """Load the weights and put learner and sampler on them; see `load_policy` for the device."""
    policy = load_policy(config.model, seed=seed_for(config.seed, "adapter"), kind=needs.kind, device=device)
    if needs.critic == "shared":
        policy = with_value_head(policy)
    learner = Learner(
        policy,
        build_optimizer(policy, config, config.optimizer),
        micro_batch_tokens=_settled(config.train.micro_batch_tokens),
        temperature=needs.temperature,
        teachers=[load_teacher(config.model, path, device=device) for path in needs.teachers],
        divergence=needs.divergence,
    )
    generator = NativeGenerator(policy, max_rows=needs.max_rows) if needs.max_rows else None
    critic = build_critic(config, needs.critic, device=device) if isinstance(needs.critic, CriticNeeds) else None
    roles = LocalRoles(
        learner,
        generator,
        keeps_reference=needs.reference,
        critic=critic,
        offloads_reference="offload_reference" in config.train.save_memory,
    )
    for trained in roles.learners.values() if config.train.recompute else ():
        recompute(trained.policy.model, every=_settled(config.train.recompute))
    return roles


def _settled(setting: int | Literal["auto"]) -> int:
    if setting == "auto":
        raise ValueError("a setting that is found before the run begins is still auto")
    return setting


def build_critic(config: RunConfig, needs: CriticNeeds, *, device: torch.device | None = None) -> Learner:
    """A value model with its own optimizer."""
    model = config.model.model_copy(update={"path": needs.path or config.model.path})
    policy = load_policy(model, seed=seed_for(config.seed, "critic adapter"), kind="value", device=device)
    optimizer = config.optimizer.model_copy(update={"learning_rate": needs.learning_rate})
    return Learner(
        policy, build_optimizer(policy, config, optimizer), micro_batch_tokens=_settled(config.train.micro_batch_tokens)
    )


def build_optimizer(policy: Policy, config: RunConfig, settings: OptimizerConfig) -> MasterOptimizer:
    """The optimizer of everything that is trained in a policy."""
    saved = config.train.save_memory
    return MasterOptimizer(
        policy.trainable(),
        settings,
        device=torch.device("cpu") if "offload_optimizer" in saved else None,
        steps_in_backward="step_in_backward" in saved,
    )


def load_teacher(config: ModelConfig, path: str, *, device: torch.device | None = None) -> Policy:
    """A model to learn from, in the student's compute type, which nothing trains."""
    teacher = load_policy(config.model_copy(update={"path": path, "lora": None}), seed=0, device=device)
    teacher.module.requires_grad_(False)
    return teacher


def _reference_of(learner: Learner) -> Learner:
    policy = learner.policy
    if policy.is_adapted:
        return learner
    frozen = copy.deepcopy(policy.model).requires_grad_(False)
    return replace_policy(learner, replace(policy, module=frozen, model=frozen))


def replace_policy(learner: Learner, policy: Policy) -> Learner:
    """A learner that scores as this one does, with another policy; it is not for training."""
    return Learner(
        policy, learner.optimizer, micro_batch_tokens=learner.micro_batch_tokens, temperature=learner.temperature
    )
