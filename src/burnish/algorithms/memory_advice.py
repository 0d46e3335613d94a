"""What a device holds, and the settings with which a run fits into it."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.algorithms.memory_plan import SMALLEST_MICRO_BATCH, LargestStep, is_on_gpu, with_settings
from burnish.config.schema import RunConfig
from burnish.errors import ConfigError, UserError
from burnish.memory.measure import available_bytes, held_bytes
from burnish.models.load import find_device

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# MiB, as nvidia-smi shows them: error correction takes its share of what is sold
_DEVICES = {
    "b200": 183359,
    "h200": 143771,
    "h100": 81559,
    "a100": 81920,
    "a100-40gb": 40960,
    "l40s": 46068,
    "l4": 23034,
    "a10": 23028,
    "t4": 15360,
    "rtx5090": 32607,
    "rtx4090": 24564,
    "rtx3090": 24576,
}

_ENOUGH_ON_A_CPU, _LARGEST_MICRO_BATCH = 4096, 65536  # tokens: on a CPU more gain nothing
_SAVED_ON_A_CPU = (("step_in_backward",), ("return_memory",), ("step_in_backward", "return_memory"))
_SAVED_ON_A_GPU = (
    ("step_in_backward",),
    ("offload_reference",),
    ("offload_optimizer",),
    ("offload_reference", "offload_optimizer"),
)
_COST_OF_SAVING = {
    "step_in_backward": "no time: nothing is clipped already",
    "return_memory": "a step takes about two fifths longer",
    "offload_reference": "the reference's weights travel twice a step",
    "offload_optimizer": "gradients and weights travel, and the CPU takes the step",
}


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that would make a run smaller, and what that costs."""

    settings: dict[str, Any]
    cost: str

    @property
    def flags(self) -> str:
        """As they are typed after `burnish train`."""
        return " ".join(f"--{key} {_typed(value)}" for key, value in self.settings.items())


def on_gpu(config: RunConfig, device: str) -> RunConfig:
    """The configuration as it would run where `device` is a GPU's name, or a size and model.device is cuda; otherwise
    the same.
    """
    if device.lower() not in _DEVICES and (device == "this" or config.model.device != "cuda"):
        return config
    dtype = "bfloat16" if config.model.compute_dtype == "auto" else config.model.compute_dtype
    return with_settings(config, {"model.device": "cuda", "model.compute_dtype": dtype})


def free_bytes(config: RunConfig) -> int:
    """What this process may hold in all where the configuration puts the model: a plan counts what it holds already."""
    device = find_device(config.model.device)
    return available_bytes(device) + held_bytes(device)


_LEAST_BYTES = 2**20  # a number without a unit that is lower was not meant to be one of bytes


def budget_of(device: str, config: RunConfig) -> int:
    """Bytes of a device: what `this` machine lets a process hold, a size such as 24GiB, or a known GPU's name.

    Raises:
        ConfigError: it is none of them.
    """
    if device == "this":
        return free_bytes(config)
    if device.lower() in _DEVICES:
        return _DEVICES[device.lower()] * 2**20
    size = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)", device)
    if size is None or size[2].upper() not in _UNITS or (not size[2] and float(size[1]) < _LEAST_BYTES):
        raise ConfigError(f"--device {device}: give this, a size such as 24GiB, or one of {', '.join(_DEVICES)}")
    return int(float(size[1]) * _UNITS[size[2].upper()])


def settled(
    config: RunConfig, budget_bytes: int, peak_of: Callable[[RunConfig], int], step: LargestStep
) -> tuple[RunConfig, int]:
    """The configuration with what is `auto` found, and its peak: the fastest that fits, or the last that was tried."""
    for settings in automatic_settings(config, step):
        tried = with_settings(config, settings)
        peak = peak_of(tried)
        if peak <= budget_bytes:
            break
    return tried, peak


def automatic_settings(config: RunConfig, step: LargestStep) -> Iterator[dict[str, Any]]:
    """Values to try, the fastest first, for the settings that are `auto`; once nothing where none is."""
    train = config.train
    tokens: list[Any] = [train.micro_batch_tokens]
    if train.micro_batch_tokens == "auto":
        largest = max(2 ** math.ceil(math.log2(sum(each.num_tokens for each in step.examples))), SMALLEST_MICRO_BATCH)
        ceiling = _LARGEST_MICRO_BATCH if is_on_gpu(config) else _ENOUGH_ON_A_CPU
        tokens = [max(min(largest, ceiling), _smallest(config, step))]
        while tokens[-1] // 2 >= _smallest(config, step):
            tokens.append(tokens[-1] // 2)
    every: list[Any] = [train.recompute] if train.recompute != "auto" else [0, 4, 3, 2, 1]
    for recompute in every:
        for num_tokens in tokens:
            yield {"train.micro_batch_tokens": num_tokens, "train.recompute": recompute}


def changes_that_fit(
    config: RunConfig, budget_bytes: int, peak_of: Callable[[RunConfig], int], step: LargestStep
) -> tuple[list[Change], RunConfig] | None:
    """The cheapest settings, in the order of their cost in time, with which a run fits; None if none does. What
    `peak_of` refuses with a UserError is not proposed.
    """
    taken: list[Change] = []
    lowest = peak_of(config)
    for change in _smaller(config, step):
        changes = [each for each in taken if not each.settings.keys() & change.settings.keys()] + [change]
        peak = _peak_with(config, changes, peak_of)
        if peak >= lowest:
            continue
        taken, lowest = changes, peak
        if peak <= budget_bytes:
            break
    else:
        return None
    for change in reversed(taken[:-1]):  # a later one may have made it needless; the dearest goes first
        fewer = [each for each in taken if each is not change]
        if _peak_with(config, fewer, peak_of) <= budget_bytes:
            taken = fewer
    return taken, _with_changes(config, taken)


def _peak_with(config: RunConfig, changes: Sequence[Change], peak_of: Callable[[RunConfig], int]) -> int:
    try:
        return peak_of(_with_changes(config, changes))
    except UserError:  # of a package that is missing, or a setting that does not go with the user's
        return sys.maxsize


def _with_changes(config: RunConfig, changes: Sequence[Change]) -> RunConfig:
    return with_settings(config, {key: value for change in changes for key, value in change.settings.items()})


def _smallest(config: RunConfig, step: LargestStep) -> int:
    """The smallest micro-batch that is proposed."""
    whole = step.batch_tokens(config) if "step_in_backward" in config.train.save_memory else 0
    return max(SMALLEST_MICRO_BATCH, step.longest_tokens, whole)


def _smaller(config: RunConfig, step: LargestStep) -> Iterator[Change]:
    """What makes a run smaller, cheapest first. The costs are estimates; few of them were measured (docs/log.md)."""
    tokens = config.train.micro_batch_tokens
    while isinstance(tokens, int) and tokens // 2 >= _smallest(config, step):
        tokens //= 2
        yield Change({"train.micro_batch_tokens": tokens}, "a few per cent of the time")
    rollout = getattr(config, "rollout", None)
    if rollout is not None and rollout.max_rows > rollout.group_size:
        yield Change({"rollout.max_rows": rollout.group_size}, "sampling up to twice as slow")
    for every in (2, 1):
        if config.train.recompute in ("auto", 0) or int(config.train.recompute) > every:
            yield Change({"train.recompute": every}, f"about {30 // every} % of a step's learning")
    for names in _SAVED_ON_A_GPU if is_on_gpu(config) else _SAVED_ON_A_CPU:
        added = [name for name in names if name not in config.train.save_memory]
        if added:
            settings = {"train.save_memory": (*config.train.save_memory, *added)}
            yield Change(settings, "; ".join(_COST_OF_SAVING[name] for name in added))
    yield Change({"optimizer.kind": "adamw_8bit"}, "a coarser optimizer: a few per cent of the time")
    yield Change({"optimizer.kind": "adafactor"}, "another optimizer: the learning rate must be found anew")
    if config.model.lora is None:
        yield Change({"model.lora": {}}, "another method: adapters need about ten times the learning rate")
        yield Change({"model.lora": {"base_bits": 8}}, "and the weights are dequantised in every pass")
        yield Change({"model.lora": {"base_bits": 4}}, "and the weights are rounded to 4 bits")
    elif config.model.lora.base_bits > 4:
        for bits in (8, 4):
            yield Change({"model.lora.base_bits": bits}, f"the weights are rounded to {bits} bits")


def _typed(value: Any) -> str:
    return f"'{json.dumps(value)}'" if isinstance(value, dict | tuple) else str(value)
