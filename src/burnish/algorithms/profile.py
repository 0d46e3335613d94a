"""`burnish train --profile`: where a step's time and memory go, by the roles' verbs, and a trace to look at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from burnish.distributed.local import LocalRoles
from burnish.memory.trace import LiveBytes
from burnish.models.policy import Policy
from burnish.models.quantized import QuantizedLinear
from burnish.records import TokenBatch
from burnish.reproducibility.files import write_text
from burnish.training.learner import Learner

TIMED_STEP, COUNTED_STEP = 2, 3  # the first step warms up; counting memory takes time of its own

_VERBS = ("sample", "score", "reference_logprobs", "teacher_logprobs", "forward_backward", "optim_step")
_CRITICS_VERBS = ("score", "forward_backward", "optim_step")


@dataclass(slots=True)
class Verb:
    """What one verb of the roles took in a step. `mfu` is its share of the measured rate of a large matrix product."""

    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    mfu: float = 0.0
    peak_bytes: int = 0


class Profile:
    """Watches the roles of a run: times and traces one step, counts what is alive in the next one."""

    def __init__(self, roles: LocalRoles) -> None:
        self.verbs: dict[str, Verb] = {}
        self._policy = roles.learner.policy
        self._step = 0
        self._seconds = 0.0
        self._live = LiveBytes()
        self._counting = ExitStack()
        for learner in roles.learners.values():
            for tensor in (*learner.policy.module.parameters(), *learner.optimizer.masters.values()):
                self._live.count(tensor.detach())
        self._roles = roles
        self._trace = profile(activities=_activities(), acc_events=True)
        for name in _VERBS:
            setattr(roles, name, self._watched(name, getattr(roles, name), roles.learner))
        if critic := roles.learners.get("critic"):
            for name in _CRITICS_VERBS:
                setattr(critic, name, self._watched(f"critic.{name}", getattr(critic, name), critic))

    def begin(self, step: int) -> None:
        """A step, counted from 1, is about to begin."""
        self._step = step
        if step == TIMED_STEP:
            self._trace.start()
            self._seconds = time.monotonic()
        elif step == COUNTED_STEP:
            for learner in self._roles.learners.values():
                for tensor in dict(learner.optimizer.state_tensors()).values():
                    self._live.count(tensor)
            self._counting.enter_context(self._live)

    def end(self, folder: Path) -> str | None:
        """The step is over. Writes trace and table into `folder`; after the last step that it watches, the table."""
        if self._step == TIMED_STEP:
            self._seconds = time.monotonic() - self._seconds
            self._trace.stop()
            folder.mkdir(exist_ok=True)
            self._trace.export_chrome_trace(str(folder / "trace.json.gz"))
        if self._step != COUNTED_STEP:
            return None
        self._counting.close()
        rate = matmul_flops(self._policy)
        for verb in self.verbs.values():
            verb.mfu = verb.flops / verb.seconds / rate if verb.seconds else 0.0
        found = {"seconds": self._seconds, "matmul_flops": rate}
        write_text(folder / "profile.json", json.dumps(found | {n: asdict(v) for n, v in self.verbs.items()}, indent=1))
        return self._table(rate, folder)

    def _watched(self, name: str, call: Callable[..., Any], learner: Learner) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._step == COUNTED_STEP:
                self._live.reset_peak()
            began = time.monotonic()
            with torch.profiler.record_function(f"burnish.{name}"):
                result = call(*args, **kwargs)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
            if self._step == TIMED_STEP:
                verb = self.verbs.setdefault(name, Verb())
                verb.seconds += time.monotonic() - began
                tokens, flops = _work(name.removeprefix("critic."), args, result, learner)
                verb.tokens += tokens
                verb.flops += flops
            elif self._step == COUNTED_STEP and name in self.verbs:
                verb = self.verbs[name]
                verb.peak_bytes = max(verb.peak_bytes, self._live.peak_bytes)
            return result

        return watched

    def _table(self, rate: float, folder: Path) -> str:
        lines = [f"step {TIMED_STEP} took {self._seconds:.2f} s; a large matrix product does {rate / 1e9:.0f} GFLOP/s"]
        lines.append(f"{'':<24}{'seconds':>9}{'tokens/s':>10}{'MFU':>7}{'held GB':>9}")
        for name, verb in self.verbs.items():
            per_second = f"{verb.tokens / verb.seconds:.0f}" if verb.tokens else ""
            share = f"{verb.mfu:.0%}" if verb.flops else ""
            lines.append(f"{name:<24}{verb.seconds:>9.2f}{per_second:>10}{share:>7}{verb.peak_bytes / 1e9:>9.2f}")
        other = self._seconds - sum(verb.seconds for verb in self.verbs.values())
        lines.append(f"{'everything else':<24}{other:>9.2f}")
        lines.append("held: tensors alive at the fullest moment, counted in the next step")
        lines.append(f"{folder / 'trace.json.gz'} opens in ui.perfetto.dev or chrome://tracing")
        return "\n".join(lines)


def matmul_flops(policy: Policy) -> float:
    """Operations a second of a matrix product of 2048^3 in the policy's type, where it is: the best of five."""
    size = 2048
    a, b = torch.ones(2, size, size, dtype=next(policy.module.parameters()).dtype, device=policy.device).unbind()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        product = a @ b
        float(product[0, 0])  # waits for the device
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def weights_per_token(policy: Policy) -> tuple[float, float]:
    """How many weights a token is multiplied with in the layers, and a scored one in the head.

    A layer of experts has them in one tensor and sends a token to some of them: to all, where the model's config does
    not say to how many (`num_experts_per_tok`).
    """
    head = policy.model.get_output_embeddings()
    in_layers = 0.0
    for module in policy.model.modules():
        if module is head or isinstance(module, nn.Embedding):
            continue
        if isinstance(module, QuantizedLinear):  # its codes are no parameter, and two of 4 bits share a byte
            in_layers += module.in_features * module.out_features
        for weight in module.parameters(recurse=False):
            if weight.dim() == 2:
                in_layers += weight.numel()
            elif weight.dim() == 3:
                num_experts = len(weight)
                used = getattr(policy.model.config, "num_experts_per_tok", num_experts)
                in_layers += weight.numel() * used / num_experts
    return in_layers, float(policy.head.weight_VH.numel()) if policy.has_language_head else 0.0


def _forward(policy: Policy, num_tokens: int, num_scored: int) -> float:
    """Operations of a forward pass's products with weights: 2 a weight and token."""
    in_layers, in_head = weights_per_token(policy)
    return 2.0 * (in_layers * num_tokens + in_head * num_scored)


def _work(name: str, args: tuple[Any, ...], result: Any, learner: Learner) -> tuple[int, float]:
    """Tokens, and operations of the products with weights, of a call of a learner's or the roles' verb."""
    if name == "optim_step":
        return 0, 0.0
    policy = learner.policy
    if name == "sample":
        prompts = sum(len(request.token_ids) for request in args[0])
        sampled = sum(len(completion.token_ids) for group in result for completion in group)
        return sampled, _forward(policy, prompts + sampled, sampled)
    batch: TokenBatch = args[0]
    sizes = len(batch.token_ids_T), len(batch.target_ids_S)
    if name == "teacher_logprobs":
        return sizes[0], _forward(learner.teachers[args[1]], *sizes)
    backward = 1.0 if policy.is_adapted else 2.0  # frozen weights have no gradient of their own
    flops = _forward(policy, *sizes) * (1.0 + backward if name == "forward_backward" else 1.0)
    if batch.teacher is not None and learner.divergence is not None:
        flops += _forward(learner.teachers[batch.teacher], *sizes)
    return sizes[0], flops


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
