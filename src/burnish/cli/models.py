"""What commands that take a model and have settings of their own share."""

import os
from pathlib import Path

from pydantic import BaseModel

from burnish.config.loading import ENVIRONMENT_PREFIX
from burnish.config.schema import RunConfig
from burnish.errors import UserError
from burnish.reproducibility.run_folder import RunFolder


def model_path(model: str, runs_folder: Path) -> str:
    """A run by its name as its path; anything else as it is.

    Raises:
        UserError: the run has no checkpoint.
    """
    if (Path(model) / "run.json").is_file():
        path = Path(model)
    elif Path(model).exists():
        return model
    elif model == "last" or any(run.path.name.startswith(model) for run in RunFolder.all(runs_folder)):
        path = RunFolder.find(model, runs_folder).path
    else:
        return model
    if not any((path / "checkpoints").glob("step-*")):
        raise UserError(f"run {path.name} has no checkpoint yet: there is no model in it")
    return str(path)


def environment_for(schema: type[BaseModel]) -> dict[str, str]:
    """The environment without what is set for training alone, whose sections a schema does not have."""
    of_training = {*RunConfig.model_fields, "rollout", "data", "loss"} - set(schema.model_fields)
    sections = tuple(f"{ENVIRONMENT_PREFIX}{name.upper()}__" for name in of_training)
    scalars = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in of_training}
    return {name: value for name, value in os.environ.items() if not name.startswith(sections) and name not in scalars}


def whole(word: str) -> str:
    """A server's setting in full: `--engine vllm` is `--engine.kind vllm`."""
    name, equals, value = word.partition("=")
    return f"--engine.kind{equals}{value}" if name == "--engine" else word
