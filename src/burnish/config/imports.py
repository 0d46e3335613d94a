"""Finding a user's object by `package.module:name`."""

import difflib
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
        package, _, last = path.removesuffix(".py").replace("/", ".").rpartition(".")
        example = f", such as {package}:{last}" if package and last else ""
        raise ConfigError(f"{key}: {path!r} is not of the form package.module:name{example}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the user's module, which may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key}: cannot import {path!r}: {reason}{_hint(module_name, name, error)}") from error
    return found


def _hint(module_name: str, name: str, error: Exception) -> str:
    """What may have been meant: a module of the working directory, or another name of the module."""
    if isinstance(error, ModuleNotFoundError):
        if module_name.endswith(".py"):
            return f"; write {module_name.removesuffix('.py').replace('/', '.')}:{name}"
        close = difflib.get_close_matches(module_name, [file.stem for file in Path.cwd().glob("*.py")], n=1)
        return f"; did you mean {close[0]}:{name}?" if close else ""
    module = sys.modules.get(module_name)
    if isinstance(error, AttributeError) and module is not None:
        close = difflib.get_close_matches(name, [each for each in vars(module) if not each.startswith("_")], n=1)
        return f"; did you mean {module_name}:{close[0]}?" if close else ""
    return ""


def check_arguments(found: Any, path: str, key: str, arguments: Sequence[str]) -> None:
    """Raise a ConfigError unless something can be called with these arguments."""
    try:
        inspect.signature(found).bind(*[None] * len(arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {path!r} must take ({', '.join(arguments)}): {error}") from error
