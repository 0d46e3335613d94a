"""`burnish memory`."""

import os
from collections.abc import Sequence
from pathlib import Path

from burnish.algorithms.memory_advice import budget_of, changes_that_fit, on_gpu, settled
from burnish.algorithms.memory_plan import LargestStep, MemoryPlan, device_of, is_on_gpu, plan_memory, with_settings
from burnish.algorithms.session import algorithm_of, prepare, schema_for
from burnish.cli.columns import print_columns
from burnish.cli.json_output import print_json
from burnish.config.loading import resolve
from burnish.config.schema import RunConfig
from burnish.models.load import find_dtype
from burnish.monitoring.console import Waiting

_FOUND = ("micro_batch_tokens", "recompute")
"""Settings of `train` that `auto` leaves to be found."""


def print_memory(recipe: str, settings: Sequence[str], *, file: Path | None, device: str, as_json: bool) -> int:
    """Print what each phase of a run will hold, whether it fits, and what would make it fit."""
    config: RunConfig = resolve(
        schema_for(recipe, settings), recipe, file=file, flags=settings, environment=os.environ
    ).config
    config = on_gpu(config, device)
    config = with_settings(config, {"model.compute_dtype": find_dtype(config.model)})
    with Waiting("checking what the run reads"):
        inputs = prepare(config, device=None if device == "this" else device_of(config))
    budget = budget_of(device, config)
    step, needs = inputs.largest_step(), algorithm_of(config).needs(config)

    def peak_of(tried: RunConfig) -> int:
        return plan_memory(tried, needs, step).peak_bytes

    with Waiting("planning the memory") as wait:
        asked, (config, peak_bytes) = config, settled(config, budget, peak_of, step)
        plan = plan_memory(config, needs, step)
        fits = peak_bytes <= budget
        wait.doing("looking for settings with which it fits")
        found = None if fits else changes_that_fit(config, budget, peak_of, step)
    if as_json:
        print_json(
            {
                "model": config.model.path,
                "compute_dtype": config.model.compute_dtype,
                "device": "gpu" if is_on_gpu(config) else "cpu",
                "num_trained": plan.num_trained,
                "batch_tokens": step.batch_tokens(config),
                "train": {key: getattr(config.train, key) for key in _FOUND},
                "phases": [
                    {"name": each.name, "num_bytes": each.num_bytes, "parts_bytes": each.parts} for each in plan.phases
                ],
                "peak_bytes": peak_bytes,
                "budget_bytes": budget,
                "fits": fits,
                "changes": None if found is None else [{"flags": each.flags, "cost": each.cost} for each in found[0]],
                "peak_bytes_with_changes": None if found is None else peak_of(found[1]),
            }
        )
        return 0 if fits else 1
    _print_plan(asked, config, plan, step)
    peak = f"peak {peak_bytes / 1e9:.2f} GB"
    print(f"{peak}: {'fits' if fits else 'does not fit'} into {budget / 1e9:.2f} GB")
    if fits:
        return 0
    if found is None:
        print("no setting makes it fit: take a smaller model, shorter sequences, or a larger device")
        return 1
    changes, smaller = found
    print(f"it fits, with a peak of {peak_of(smaller) / 1e9:.2f} GB, with")
    print_columns([(f"  {change.flags}", change.cost) for change in changes])
    return 1


def _print_plan(asked: RunConfig, config: RunConfig, plan: MemoryPlan, step: LargestStep) -> None:
    longest, micro = step.batch_tokens(config), config.train.micro_batch_tokens
    print(
        f"{config.model.path} in {config.model.compute_dtype} on a {'GPU' if is_on_gpu(config) else 'CPU'}, "
        f"{plan.num_trained / 1e6:.1f} million weights to train; a batch of up to {longest:,} tokens, "
        f"in micro-batches of {micro:,}"
    )
    _print_phases(plan)
    for key in _FOUND:
        if getattr(asked.train, key) == "auto":
            print(f"train.{key}: auto is {getattr(config.train, key)} here")
    if config.cluster.learners > 1:
        print(f"this is one process with all weights, before {config.cluster.learners} learners share them")


def _print_phases(plan: MemoryPlan) -> None:
    rows = [("phase", "GB", "of which")]
    for phase in plan.phases:
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in phase.parts.items() if size >= 5_000_000)
        rows.append((phase.name, f"{phase.num_bytes / 1e9:.2f}", parts))
    print_columns(rows)
