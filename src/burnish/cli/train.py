"""`burnish train` and `burnish resume`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from burnish.algorithms.memory_advice import free_bytes
from burnish.algorithms.session import fitted, prepare, resume, schema_for, train
from burnish.cli.json_output import print_json
from burnish.config.loading import read_flags, read_recipe, resolve
from burnish.config.schema import ClusterConfig, RunConfig
from burnish.errors import ConfigError
from burnish.monitoring.console import standard_console
from burnish.reproducibility.run_folder import RunFolder

INTERRUPTED = 130


def train_recipe(
    recipe: str,
    settings: Sequence[str],
    *,
    file: Path | None,
    is_dry_run: bool,
    as_json: bool = False,
    with_profile: bool = False,
    stop_after: int | None = None,
) -> int:
    """Resolve the configuration, then check its inputs or train."""
    schema = schema_for(recipe, settings)
    config = resolve(schema, recipe, file=file, flags=settings, environment=os.environ).config
    if is_dry_run:
        inputs = prepare(config)
        fitted(config, inputs, free_bytes(config))
        if as_json:
            print_json({"passes": True, "model": inputs.model.source, "summary": inputs.summary()})
        else:
            print(f"ok: {inputs.summary()}")
        return 0
    return _exit_status(train(config, standard_console(), with_profile=with_profile, stop_after=stop_after))


def resume_run(
    run: str,
    settings: Sequence[str],
    runs_folder: Path,
    *,
    stop_after: int | None = None,
    allow_changed: bool = False,
) -> int:
    """Find the run and go on with the configuration it was started with; `settings` say where, if elsewhere."""
    for setting in settings:
        if setting.startswith("--") and not setting.startswith("--cluster."):
            raise ConfigError(f"{setting}: a run is resumed with its own settings; only those of --cluster may change")
    folder = RunFolder.find(run, runs_folder)
    own = read_recipe(str(folder.path / "config.yaml")).get("cluster", {}).get("kind", "local")
    if read_flags(settings).get("cluster.kind", own) != own:  # what was meant for another kind does not linger
        defaults = {key: field.default for key, field in ClusterConfig.model_fields.items()}
        typed = {key: each if isinstance(each, str) else json.dumps(each) for key, each in defaults.items()}
        settings = [*(f"--cluster.{key}={value}" for key, value in typed.items()), *settings]
    config = run_config(folder, settings)
    return _exit_status(resume(folder, config, standard_console(), stop_after=stop_after, allow_changed=allow_changed))


def run_config(run: RunFolder, settings: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run was started with, changed by `settings`."""
    recipe = str(run.path / "config.yaml")
    return resolve(schema_for(recipe), recipe, flags=settings, environment={}).config


def _exit_status(run: RunFolder) -> int:
    return INTERRUPTED if run.record()["status"] == "interrupted" else 0
