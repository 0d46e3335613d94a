"""`burnish train` and `burnish resume`."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from burnish.algorithms.grpo import GRPOConfig
from burnish.algorithms.session import check_inputs, resume, train
from burnish.config.loading import resolve
from burnish.reproducibility.run_folder import RunFolder

INTERRUPTED = 130


def train_recipe(recipe: str, settings: Sequence[str], *, file: Path | None, is_dry_run: bool) -> int:
    """Resolve the configuration, then check its inputs or train."""
    config = resolve(GRPOConfig, recipe, file=file, flags=settings, environment=os.environ).config
    if is_dry_run:
        inputs = check_inputs(config)
        longest = max(len(prompt.token_ids) for prompt in (*inputs.train, *inputs.held_out))
        print(
            f"ok: {len(inputs.train)} questions to train on, {len(inputs.held_out)} held out, longest prompt {longest} "
            f"tokens, model {inputs.model.source}, {config.train.num_steps} steps of {config.rollout.num_prompts} x "
            f"{config.rollout.group_size} completions"
        )
        print(f"the first prompt, as the model reads it:\n{inputs.train[0].text}")
        return 0
    return _exit_status(train(config, Console()))


def resume_run(run: str, runs_folder: Path) -> int:
    """Find the run and go on with the configuration it was started with."""
    folder = RunFolder.find(run, runs_folder)
    return _exit_status(resume(folder, run_config(folder), Console()))


def run_config(run: RunFolder) -> GRPOConfig:
    """The configuration that a run was started with."""
    return resolve(GRPOConfig, str(run.path / "config.yaml"), environment={}).config


def _exit_status(run: RunFolder) -> int:
    return INTERRUPTED if run.record()["status"] == "interrupted" else 0
