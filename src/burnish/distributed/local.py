"""All roles in one process, on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from burnish.config.schema import ModelConfig, OptimizerConfig, RunConfig
from burnish.distributed.roles import CriticNeeds, RoleNeeds, T
from burnish.errors import ConfigError, MachineError
from burnish.losses.loss import Loss
from burnish.memory.allocator import allocator
from burnish.memory.measure import explained
from burnish.memory.recompute import recompute
from burnish.models.load import (
    ModelKind,
    compute_repeatably,
    find_device,
    find_dtype,
    load_policy,
    require_peft,
    with_value_head,
)
from burnish.models.policy import Policy
from burnish.records import Completion, GenerationRequest, Metric, Scored, TokenBatch
from burnish.reproducibility.seeds import seed_for
from burnish.rollout.generators.base import Generator
from burnish.rollout.generators.native import NativeGenerator
from burnish.rollout.play import Sample
from burnish.training.checkpoint import TrainState, checkpoint_bytes, load_checkpoint, save_checkpoint
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer, check_installed

if TYPE_CHECKING:
    from burnish.distributed.sharding import Sharding  # slow to import, and alone needs nothing of it


class LocalRoles:
    """The generator reads the learner's own parameters, so publishing copies nothing; it only counts.

    `reference` is what `reference_logprobs` needs: the policy itself under LoRA, whose adapters are then switched off,
    otherwise a second copy of the weights.
    """

    def __init__(
        self,
        learner: Learner,
        generator: Generator | None,
        *,
        reference: Policy | None = None,
        critic: Learner | None = None,
        offloads_reference: bool = False,
    ) -> None:
        self.learner = learner
        self._critic = critic
        self.generator = generator
        self.weight_version = 0
        self.notice: Callable[[str], None] = lambda text: None
        self._reference = None if reference is None else replace_policy(learner, reference)
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
        with explained("sampling"):
            return self.generator.generate(requests)

    def aside(self, job: Callable[[Sample], T]) -> Future[T]:
        """See Roles: here it is done at once, for there is one process and one set of weights."""
        done: Future[T] = Future()
        done.set_result(job(self.sample))
        return done

    def score(self, batch: TokenBatch, *, with_collisions: bool = False) -> Scored:
        """See Roles."""
        return self.learner.score(batch, with_collisions=with_collisions)

    def reference_logprobs(self, batch: TokenBatch) -> Tensor:
        """See Roles."""
        if self._reference is None:
            raise ValueError("these roles were made without a reference")
        policy = self._reference.policy
        if self._offloads_reference:  # there for as long as it scores
            with explained("fetching the reference"):
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

    def save(self, folder: Path, state: TrainState, *, keep_last: int) -> Path:
        """See Backend."""
        return save_checkpoint(folder, self.learners, state, keep_last=keep_last)

    def load(self, checkpoint: Path) -> TrainState:
        """See Backend."""
        return load_checkpoint(checkpoint, self.learners)

    def checkpoint_bytes(self) -> int:
        """See Backend."""
        return checkpoint_bytes(self.learners)

    def observed(self) -> dict[str, float]:
        """See Backend: there is nothing to tell."""
        return {}

    def restart(self) -> None:
        """See Backend. What is lost of one process is the process."""
        raise MachineError("a run in one process is resumed, not restarted")


def prepare_process(config: RunConfig) -> None:
    """Settings of torch and of the allocator, before the weights load."""
    allocator.choose(returns_freed="return_memory" in config.train.save_memory)
    compute_repeatably(config.model.num_threads)


def check_roles(config: RunConfig, needs: RoleNeeds, *, device: torch.device | None = None) -> None:
    """Refuse what could not be built, or would have no effect, before any weight is loaded. `device` is where the
    model will be, if that is not this machine's.

    Raises:
        ConfigError: a setting, or a package that is missing.
    """
    check_installed(config.optimizer)
    if config.model.lora is not None:
        require_peft()
    device = find_device(config.model.device) if device is None else device
    for name in config.train.save_memory:
        if name.startswith("offload") and device.type == "cpu":
            raise ConfigError(f"train.save_memory: {name} would do nothing: the model is on the CPU already")
        if name == "return_memory" and device.type != "cpu":
            raise ConfigError(f"train.save_memory: {name} would do nothing: the model is on the GPU, not on the CPU")
    if "step_in_backward" in config.train.save_memory and needs.divergence is not None and len(needs.teachers) > 1:
        raise ConfigError(
            "train.save_memory: step_in_backward needs one backward pass a step, and each teacher has its own"
        )
    has_adapters_only = config.model.lora is not None and needs.kind == "language" and needs.critic is None
    if config.optimizer.kind == "muon" and has_adapters_only and config.optimizer.changes("betas"):
        raise ConfigError(
            "optimizer.betas would be ignored: with model.lora optimizer.kind=muon leaves nothing to AdamW"
        )


def build_local_roles(
    config: RunConfig, needs: RoleNeeds, *, device: torch.device | None = None, sharding: Sharding | None = None
) -> LocalRoles:
    """Load the weights and put learner and sampler on them; see `load_policy` for the device.

    With a `sharding` this is one of several processes that build the same, and the weights are spread over them: they
    load in main memory, and go to the sharding's device a layer at a time, for whole they may not fit there.
    """
    build = _Build(config, device if sharding is None else torch.device("cpu"), sharding)
    policy = build.policy(config.model, seed=seed_for(config.seed, "adapter"), kind=needs.kind)
    if needs.critic == "shared":
        policy = with_value_head(policy)
    reference = None
    if needs.reference:
        reference = policy if policy.is_adapted else build.frozen(policy)
    learner = build.learner(
        policy,
        config.optimizer,
        temperature=needs.temperature,
        teachers=[build.teacher(path) for path in needs.teachers],
        divergence=needs.divergence,
    )
    generator = NativeGenerator(policy, max_rows=needs.max_rows) if needs.max_rows and sharding is None else None
    critic = build.critic(needs.critic) if isinstance(needs.critic, CriticNeeds) else None
    return LocalRoles(
        learner,
        generator,
        reference=learner.policy if reference is policy else reference,
        critic=critic,
        offloads_reference="offload_reference" in config.train.save_memory,
    )


@dataclass(frozen=True, slots=True)
class _Build:
    """The models of a run, where they belong."""

    config: RunConfig
    device: torch.device | None
    sharding: Sharding | None

    def policy(self, model: ModelConfig, *, seed: int, kind: ModelKind) -> Policy:
        """Trained weights, whole. What is to be spread is kept in float32, and computes in the model's type."""
        if self.sharding is not None:
            model = model.model_copy(update={"compute_dtype": "float32"})
        return load_policy(model, seed=seed, kind=kind, device=self.device)

    def learner(self, policy: Policy, settings: OptimizerConfig, **options: Any) -> Learner:
        """A policy with its optimizer."""
        train = self.config.train
        if train.recompute:
            recompute(policy.model, every=_settled(train.recompute))
        if self.sharding is not None:
            policy = self.sharding.spread(policy, self._dtype)
        optimizer = MasterOptimizer(
            policy.trainable(),
            settings,
            device=torch.device("cpu") if "offload_optimizer" in train.save_memory else None,
            steps_in_backward="step_in_backward" in train.save_memory,
            complete_gradients=None if self.sharding is None else self.sharding.complete_gradients,
        )
        tokens = _settled(train.micro_batch_tokens)
        return Learner(policy, optimizer, micro_batch_tokens=tokens, may_halve=self.sharding is None, **options)

    def critic(self, needs: CriticNeeds) -> Learner:
        """A value model with its own optimizer."""
        model = self.config.model.model_copy(update={"path": needs.path or self.config.model.path})
        policy = self.policy(model, seed=seed_for(self.config.seed, "critic adapter"), kind="value")
        return self.learner(policy, self.config.optimizer.model_copy(update={"learning_rate": needs.learning_rate}))

    def teacher(self, path: str) -> Policy:
        """A model to learn from, in the student's compute type, which nothing trains."""
        return self._spread(load_teacher(self.config.model, path, device=self.device))

    def frozen(self, policy: Policy) -> Policy:
        """A copy of the weights as they are, in the type that computes."""
        model = copy.deepcopy(policy.model).requires_grad_(False)
        for parameter in model.parameters():  # and no buffer: rotary frequencies are float32 in every model
            parameter.data = parameter.data.to(self._dtype)
        return self._spread(replace(policy, module=model, model=model))

    def _spread(self, policy: Policy) -> Policy:
        return policy if self.sharding is None else self.sharding.spread(policy, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, find_dtype(self.config.model))
        return dtype


def _settled(setting: int | Literal["auto"]) -> int:
    if setting == "auto":
        raise ValueError("a setting that is found before the run begins is still auto")
    return setting


def load_teacher(config: ModelConfig, path: str, *, device: torch.device | None = None) -> Policy:
    """A model to learn from, in the student's compute type, which nothing trains."""
    teacher = load_policy(config.model_copy(update={"path": path, "lora": None}), seed=0, device=device)
    teacher.module.requires_grad_(False)
    return teacher


def replace_policy(learner: Learner, policy: Policy) -> Learner:
    """A learner that scores as this one does, with another policy; it is not for training."""
    return Learner(
        policy,
        learner.optimizer,
        micro_batch_tokens=learner.micro_batch_tokens,
        temperature=learner.temperature,
        may_halve=learner.may_halve,
    )
