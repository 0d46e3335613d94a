"""`burnish memory`."""

import os
from collections.abc import Sequence
from pathlib import Path

from burnish.algorithms.memory_plan import MemoryPlan, budget_of, changes_that_fit, on_gpu, plan_memory
from burnish.algorithms.session import algorithm_of, prepare, schema_for
from burnish.cli.columns import print_columns
from burnish.config.loading import resolve
from burnish.config.schema import RunConfig


def print_memory(recipe: str, settings: Sequence[str], *, file: Path | None, device: str) -> int:
    """Print what each phase of a run will hold, whether it fits, and what would make it fit."""
    config: RunConfig = resolve(
        schema_for(recipe, settings), recipe, file=file, flags=settings, environment=os.environ
    ).config
    budget = budget_of(device)
    inputs = prepare(config)
    config = on_gpu(config, device)
    step, needs = inputs.largest_step(), algorithm_of(config).needs(config)
    plan = plan_memory(config, needs, step)
    _print_phases(plan)
    peak = f"peak {plan.peak_bytes / 1e9:.2f} GB"
    if plan.peak_bytes <= budget:
        print(f"{peak}: fits into {budget / 1e9:.2f} GB")
        return 0
    print(f"{peak}: does not fit into {budget / 1e9:.2f} GB")
    found = changes_that_fit(
        config, budget, lambda tried: plan_memory(tried, needs, step).peak_bytes, step.longest_tokens
    )
    if found is None:
        print("no setting makes it fit: take a smaller model, shorter sequences, or a larger device")
        return 1
    changes, smaller = found
    print(f"it fits, with a peak of {plan_memory(smaller, needs, step).peak_bytes / 1e9:.2f} GB, with")
    print_columns([(f"  {change.flags}", change.cost) for change in changes])
    return 1


def _print_phases(plan: MemoryPlan) -> None:
    rows = [("phase", "GB", "of which")]
    for phase in plan.phases:
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in phase.parts.items() if size >= 5_000_000)
        rows.append((phase.name, f"{phase.num_bytes / 1e9:.2f}", parts))
    print_columns(rows)
