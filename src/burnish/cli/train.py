"""`burnish train` and `burnish resume`."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from burnish.algorithms.session import prepare, resume, schema_for, train
from burnish.config.loading import resolve
from burnish.config.schema import RunConfig
from burnish.reproducibility.run_folder import RunFolder

INTERRUPTED = 130


def train_recipe(
    recipe: str, settings: Sequence[str], *, file: Path | None, is_dry_run: bool, with_profile: bool = False
) -> int:
    """Resolve the configuration, then check its inputs or train."""
    schema = schema_for(recipe, settings)
    config = resolve(schema, recipe, file=file, flags=settings, environment=os.environ).config
    if is_dry_run:
        print(f"ok: {prepare(config).summary()}")
        return 0
    return _exit_status(train(config, Console(), with_profile=with_profile))


def resume_run(run: str, runs_folder: Path) -> int:
    """Find the run and go on with the configuration it was started with."""
    folder = RunFolder.find(run, runs_folder)
    return _exit_status(resume(folder, run_config(folder), Console()))


def run_config(run: RunFolder) -> RunConfig:
    """The configuration that a run was started with."""
    recipe = str(run.path / "config.yaml")
    return resolve(schema_for(recipe), recipe, environment={}).config


def _exit_status(run: RunFolder) -> int:
    return INTERRUPTED if run.record()["status"] == "interrupted" else 0
