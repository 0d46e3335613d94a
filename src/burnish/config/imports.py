"""Finding a user's object by `package.module:name`."""

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from burnish.errors import ConfigError


def import_by_path(path: str, key: str, *, arguments: Sequence[str]) -> Any:
    """Import something that can be called with `arguments`; modules of the working directory are found too.

    `key` is the setting that named it.

    Raises:
        ConfigError: the path is malformed, or leads to nothing of that kind.
    """
    found = import_object(path, key)
    check_arguments(found, path, key, arguments)
    return found


def import_object(path: str, key: str) -> Any:
    """Import anything by its path.

    Raises:
        ConfigError: the path is malformed, or there is no such thing.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{key}: {path!r} is not of the form package.module:name")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the user's module, which may raise anything
        raise ConfigError(f"{key}: cannot import {path!r}: {type(error).__name__}: {error}") from error
    return found


def check_arguments(found: Any, path: str, key: str, arguments: Sequence[str]) -> None:
    """Raise a ConfigError unless something can be called with these arguments."""
    try:
        inspect.signature(found).bind(*[None] * len(arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {path!r} must take ({', '.join(arguments)}): {error}") from error
