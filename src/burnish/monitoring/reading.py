"""YAML that a person wrote for `burnish monitor`: what is wrong with it is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from burnish.errors import ConfigError

SchemaT = TypeVar("SchemaT", bound=BaseModel)


def read_yaml(file: Path) -> Any:
    """What a file holds.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML") from error


def checked(schema: type[SchemaT], tree: Any, where: str) -> SchemaT:
    """What a file holds, as its schema has it; `where` it stands begins the message.

    Raises:
        ConfigError: it is another one.
    """
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: needs keys: {', '.join(schema.model_fields)}")
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, fault["loc"]))
        raise ConfigError(f"{where}: {key}{': ' if key else ''}{fault['msg']}") from error
