"""What a run will hold in memory, phase by phase: the run itself on torch's "meta" device, which computes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from burnish.config.schema import RunConfig
from burnish.data.packing import pack, split_batch
from burnish.distributed.local import LocalRoles, build_local_roles, check_roles
from burnish.distributed.roles import RoleNeeds
from burnish.errors import ConfigError
from burnish.losses.loss import FunctionLoss
from burnish.memory.measure import held_bytes, peak_memory_bytes
from burnish.memory.trace import LiveBytes
from burnish.models.attention import SegmentAttention
from burnish.models.layout import multiplies_bfloat16
from burnish.models.load import ModelFacts
from burnish.models.policy import Policy
from burnish.records import Example, Scored, Segment, TokenBatch
from burnish.rollout.generators.cache import LaneCache
from burnish.rollout.generators.native import PREFILL_TOKENS
from burnish.training.learner import Learner, predictor_states, score
from burnish.training.optimizer import MasterOptimizer, state_bytes, step_bytes

# Python with torch, transformers and a tokenizer, before any weight: resident size on Linux. On a GPU it is elsewhere.
PROCESS_BYTES = 500_000_000

# Of the activations on a CPU: freed memory in pieces that fit no other tensor, where it is kept, and where it is
# returned (small tensors never are). Measured, see docs/guides/memory.md.
_PIECES, _SMALL_PIECES = 0.25, 0.10

SMALLEST_MICRO_BATCH = 256  # tokens: fewer leave the matrix unit idle

_ACTIVATIONS = "activations and logits"
_STEP = "while stepping"
_OFFLOADED = ("master weights", "moments", "gradients", _STEP)


@dataclass(frozen=True, slots=True)
class Generation:
    """The largest generation of a run: lanes of `width` completions each."""

    num_lanes: int
    width: int
    max_prompt: int
    max_new: int


@dataclass(frozen=True, slots=True)
class LargestStep:
    """The longest that a step of a run can become: what it learns from, and what it samples."""

    examples: Sequence[Example]
    generations: Sequence[Generation] = ()

    @property
    def longest_tokens(self) -> int:
        """Of one prompt with one branch, or with both of a pair: a micro-batch is not smaller."""
        whole = [each.num_tokens for each in self.examples if len(each.branches) <= 2]
        parts = [
            len(each.prompt_ids) + max(len(branch.token_ids) for branch in each.branches) for each in self.examples
        ]
        return max(whole + parts)

    def batch_tokens(self, config: RunConfig) -> int:
        """Of the longest batch of one optimizer step."""
        num_batches = getattr(config.train, "minibatches_per_step", 1)
        longest = sorted((each.num_tokens for each in self.examples), reverse=True)
        return sum(longest[: -(-len(longest) // num_batches)])


@dataclass(frozen=True, slots=True)
class Phase:
    """What is alive at the fullest moment of a phase, by what it is."""

    name: str
    parts: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The phases of a run, and how many weights are there to train."""

    phases: tuple[Phase, ...]
    num_trained: int

    @property
    def peak_bytes(self) -> int:
        """The fullest phase's."""
        return max(phase.num_bytes for phase in self.phases)


def plan_memory(config: RunConfig, needs: RoleNeeds, step: LargestStep) -> MemoryPlan:
    """The phases of a run with their memory, in bytes, on the device that the configuration names.

    Raises:
        UserError: the model or a setting cannot be used.
    """
    check_roles(config, needs, device=device_of(config))
    check_one_micro_batch(config, step)
    process = {} if is_on_gpu(config) else {"process": PROCESS_BYTES}
    saved = config.train.save_memory
    with LiveBytes() as live:
        # what an optimizer saves is taken off below: its steps need numbers, and here are none
        roles = build_local_roles(with_settings(config, {"train.save_memory": ()}), needs, device=torch.device("meta"))
        if "step_in_backward" in saved:
            _drop_gradients(roles)
        loaded = process | _loaded_parts(roles, live.live_bytes)
        # a base is quantised, and a copy made, when the whole model is there. Pages of the files are not counted: they
        # show in the process's size, and the system takes them back when it needs them
        phases = [Phase("load", loaded | {"while loading": live.peak_bytes - live.live_bytes})]
        loaded["moments"] = sum(_moments(learner.optimizer) for learner in roles.learners.values())
        num_trained = sum(
            master.numel() for learner in roles.learners.values() for master in learner.optimizer.masters.values()
        )
        policy = roles.learner.policy
        packed = 0 if is_on_gpu(config) or not multiplies_bfloat16() else packed_bytes(policy)
        for generation in step.generations:
            cache, rest = _generating(policy, generation, live)
            parts = {"packed weights": packed, "key-value cache": cache, _ACTIVATIONS: rest}
            phases.append(Phase(f"sample {generation.num_lanes} x {generation.width}", loaded | parts))
        for name, learner in roles.learners.items():
            prefix = f"{name} " if name else ""
            stepping = "step_in_backward" in saved
            phases += _learning(prefix, learner, step, needs, loaded, live, steps_in_backward=stepping)
    if process:
        share = _SMALL_PIECES if "return_memory" in saved else _PIECES
        passing = [sum(each.parts.get(name, 0) for name in (_ACTIVATIONS, _STEP)) for each in phases]
        phases = [
            Phase(each.name, each.parts | {"pieces": int(share * size)})
            for each, size in zip(phases, passing, strict=True)
        ]
    if "offload_optimizer" in saved:
        phases = [Phase(each.name, each.parts | dict.fromkeys(_OFFLOADED, 0)) for each in phases]
    if "offload_reference" in saved:
        phases = [
            each if each.name in ("load", "score") else Phase(each.name, each.parts | {"other models": 0})
            for each in phases
        ]
    return MemoryPlan(tuple(phases), num_trained)


def _moments(optimizer: MasterOptimizer) -> int:
    return sum(state_bytes(optimizer.config, name, master.shape) for name, master in optimizer.masters.items())


def _drop_gradients(roles: LocalRoles) -> None:
    for learner in roles.learners.values():
        for parameter in learner.optimizer.parameters.values():
            parameter.register_post_accumulate_grad_hook(
                lambda _, learner=learner: learner.optimizer.forget_gradients()
            )


def certainly_below(config: RunConfig, model: ModelFacts, step: LargestStep) -> int:
    """Bytes that a run stays below, from the sizes of its files alone, so that a small run need not be planned.

    The micro-batch must be a number.

    A trained weight of 2 bytes on disk costs 20 while it is trained, a second model as much again, and a token of a
    micro-batch about 50 bytes for each layer and hidden unit; all of them are taken three times.
    """
    files = sum(path.stat().st_size for path in Path(model.base or model.source).glob("*.safetensors"))
    if not files:  # a hub id: nothing is known before it is fetched
        return sys.maxsize
    from transformers import AutoConfig  # slow to import

    shape: Any = AutoConfig.from_pretrained(model.base or model.source)
    tokens = max(int(config.train.micro_batch_tokens), step.longest_tokens)  # the caller has found what was auto
    unit = int(shape.num_hidden_layers * shape.hidden_size)
    cached = max(
        (each.num_lanes * (each.max_prompt + each.width * each.max_new) for each in step.generations), default=0
    )
    return 3 * PROCESS_BYTES + 60 * files + 150 * unit * tokens + 12 * unit * cached


def _loaded_parts(roles: LocalRoles, num_bytes: int) -> dict[str, int]:
    policies = [learner.policy for learner in roles.learners.values()]
    weights = sum(_bytes_of(policy.module) for policy in policies)
    masters = sum(
        master.nbytes
        for learner in roles.learners.values()
        for name, master in learner.optimizer.masters.items()
        if master is not learner.optimizer.parameters[name]
    )
    others = num_bytes - weights - masters
    return {"weights": weights, "master weights": masters, "other models": max(0, others)}


def _bytes_of(module: nn.Module) -> int:
    tensors = {id(tensor): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensors.values())


def packed_bytes(policy: Policy) -> int:
    """Copies of the weights that decoding makes on a CPU."""
    linears = {id(module.weight): module.weight for module in policy.module.modules() if type(module) is nn.Linear}
    return sum(weight.nbytes for weight in linears.values() if weight.dtype == torch.bfloat16)


@torch.no_grad()
def _generating(policy: Policy, generation: Generation, live: LiveBytes) -> tuple[int, int]:
    """Bytes of the cache, and of what prefill or a decoding step needs beside it."""
    before = live.live_bytes
    cache = LaneCache(
        policy,
        num_lanes=generation.num_lanes,
        width=generation.width,
        max_prompt=generation.max_prompt,
        max_new=generation.max_new,
    )
    rows = [(lane, member) for lane in range(generation.num_lanes) for member in range(generation.width)]
    live.reset_peak()
    lengths = [generation.max_prompt] * min(generation.num_lanes, max(1, PREFILL_TOKENS // generation.max_prompt))
    lanes = list(range(generation.num_lanes))

    def store(layer: int, key: Tensor, value: Tensor) -> None:
        cache.store_prompts(layer, lanes[: len(lengths)], lengths, key, value)

    plan = SegmentAttention([Segment(length, ()) for length in lengths], on_key_value=store)
    _hidden(policy, sum(lengths), plan)
    cache_bytes = cache.num_bytes
    cache.open_lanes(lanes, [generation.max_prompt] * generation.num_lanes)
    cache.own_lengths = [generation.max_new - 1] * generation.num_lanes
    cache.begin(rows)
    _hidden(policy, len(rows), cache)
    # a draw's logits in the type that computes, then in float32: log-probabilities, their exponentials, and masses
    logits = len(rows) * policy.head.weight_VH.shape[0] * (policy.head.weight_VH.element_size() + 4 * 4)
    return cache_bytes, max(live.peak_bytes - before - cache_bytes, logits)


def _hidden(policy: Policy, num_tokens: int, plan: Any) -> Tensor:
    ids_T = torch.zeros(num_tokens, dtype=torch.long, device=policy.device)
    return policy.hidden_states(ids_T, ids_T, plan)


def _learning(
    name: str,
    learner: Learner,
    step: LargestStep,
    needs: RoleNeeds,
    loaded: dict[str, int],
    live: LiveBytes,
    *,
    steps_in_backward: bool,
) -> Iterator[Phase]:
    micros, loss = _micro_batches(learner, step, needs)
    largest = max(micros, key=_num_tokens)
    before = live.live_bytes
    live.reset_peak()
    with torch.no_grad():
        on_device = largest.to(learner.policy.device)
        score(learner.policy, on_device, predictor_states(learner.policy, on_device), learner.temperature)
    yield Phase(f"{name}score", loaded | {_ACTIVATIONS: live.peak_bytes - before})
    live.reset_peak()
    for _ in micros[:2]:  # the second time there are gradients already
        learner.forward_backward(largest, loss)
    beside = live.peak_bytes - before
    masters = learner.optimizer.masters
    held = live.bytes_at_peak(master.grad for master in masters.values() if master.grad is not None)
    weights = {master.shape: each for each, master in masters.items()}
    stepping = max(step_bytes(learner.optimizer.config, each, shape) for shape, each in weights.items())
    among = {_STEP: stepping} if steps_in_backward else {}
    yield Phase(f"{name}learn", loaded | {"gradients": held, _ACTIVATIONS: beside - held} | among)
    if not steps_in_backward:
        yield Phase(f"{name}step", loaded | {"gradients": _gradient_bytes(learner), _STEP: stepping})
    learner.forget()


def probe(roles: LocalRoles, needs: RoleNeeds, step: LargestStep, budget_bytes: int) -> int:
    """Tokens of a micro-batch that fit, by trying the largest one: those that were planned, or fewer.

    `budget_bytes` is what the process may hold in all. Nothing is left of the trial but that size, in every learner.
    """
    for learner in roles.learners.values():
        if learner.optimizer.steps_in_backward:  # its batch cannot be parted
            continue
        is_offloaded = any(master.device != learner.policy.device for master in learner.optimizer.masters.values())
        later = 0 if is_offloaded else _moments(learner.optimizer)  # the first step makes them
        fixed = held_bytes(learner.policy.device) + _gradient_bytes(learner)  # whatever the micro-batch
        micros, loss = _micro_batches(learner, step, needs)
        learner.forward_backward(max(micros, key=_num_tokens), loss)
        learner.forget()
        growing = max(0, peak_memory_bytes() - fixed)
        smallest = max(SMALLEST_MICRO_BATCH, step.longest_tokens)
        while fixed + later + growing > budget_bytes and learner.micro_batch_tokens // 2 >= smallest:
            growing //= 2
            learner.micro_batch_tokens //= 2
    found = min(learner.micro_batch_tokens for learner in roles.learners.values())
    for learner in roles.learners.values():
        learner.micro_batch_tokens = found
    return found


def _micro_batches(learner: Learner, step: LargestStep, needs: RoleNeeds) -> tuple[list[TokenBatch], FunctionLoss]:
    """Of a step, with a loss that needs a gradient of all of it."""
    whole_groups = {len(example.branches) for example in step.examples} == {2}
    batch = pack(step.examples)
    if needs.divergence is not None:
        batch = replace(batch, teacher=0)
    micros = list(split_batch(batch, learner.micro_batch_tokens, keep_groups=whole_groups))
    return micros, FunctionLoss(_everything, needs_whole_groups=whole_groups)


def _gradient_bytes(learner: Learner) -> int:
    return sum(master.numel() * 4 for master in learner.optimizer.masters.values())


def _num_tokens(batch: TokenBatch) -> int:
    return len(batch.token_ids_T)


def _everything(scored: Scored, batch: TokenBatch) -> Tensor:
    """A loss that needs a gradient of all that is scored."""
    values = [scored.logprobs_S, scored.values_S, scored.divergence_S]
    return torch.stack([value.sum() for value in values if value is not None]).sum()


def device_of(config: RunConfig) -> torch.device:
    """Where the model will be, whatever this machine has."""
    return torch.device("cuda" if is_on_gpu(config) else "cpu")


def check_one_micro_batch(config: RunConfig, step: LargestStep) -> None:
    """Refuse to step in the backward pass where a batch would need a second one.

    Raises:
        ConfigError: it would.
    """
    tokens, longest = config.train.micro_batch_tokens, step.batch_tokens(config)
    if "step_in_backward" in config.train.save_memory and tokens != "auto" and tokens < longest:
        raise ConfigError(
            "train.save_memory: step_in_backward needs one micro-batch a step: raise train.micro_batch_tokens="
            f"{tokens} to the {longest} tokens that a batch of this run can have, or leave it out"
        )


def with_settings(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """The configuration with some settings changed, by dotted key."""
    tree = config.model_dump()
    for key, value in settings.items():
        *sections, name = key.split(".")
        section = tree
        for part in sections:
            section = section[part]
        section[name] = value
    return type(config).model_validate(tree)


def is_on_gpu(config: RunConfig) -> bool:
    """Whether the model will be on a GPU."""
    return config.model.device == "cuda" or (config.model.device == "auto" and torch.cuda.is_available())
