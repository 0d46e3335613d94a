"""`burnish config show | diff | schema`."""

import json
import os
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from burnish.algorithms.session import schema_for, schema_of
from burnish.cli.columns import print_columns
from burnish.cli.json_output import print_json
from burnish.config.evaluation import EvalConfig
from burnish.config.loading import config_hash, flat_settings, leaf_fields, resolve, shipped_recipes, visible_settings
from burnish.config.serving import ServeConfig
from burnish.errors import ConfigError, UserError
from burnish.monitoring.alertmanager import Receivers
from burnish.reproducibility.run_folder import RunFolder

OTHER_SCHEMAS: dict[str, type[BaseModel]] = {"eval": EvalConfig, "receivers": Receivers, "serve": ServeConfig}


def show_config(recipe: str, settings: Sequence[str], file: Path | None, runs_folder: Path, *, as_json: bool) -> int:
    """Print every setting with its value and origin."""
    recipe = _recipe_of(recipe, runs_folder)
    schema = schema_for(recipe, settings)
    resolved = resolve(schema, recipe, file=file, flags=settings, environment=os.environ)
    values, sha256 = visible_settings(resolved.config), config_hash(resolved.config)
    if as_json:
        settings_found = {key: {"value": value, "origin": resolved.origin(key)} for key, value in values.items()}
        print_json({"settings": settings_found, "sha256": sha256})
        return 0
    print_columns([(key, _text(value), resolved.origin(key)) for key, value in values.items()])
    print(f"sha256 {sha256}")
    return 0


def diff_configs(recipe: str, other: str, runs_folder: Path, *, as_json: bool) -> int:
    """Print the settings in which two recipes or runs differ."""
    recipes = [_recipe_of(each, runs_folder) for each in (recipe, other)]
    first, second = (flat_settings(schema_for(each), each) for each in recipes)
    keys = [key for key in {**first, **second} if _text(first.get(key)) != _text(second.get(key))]
    if as_json:
        found = {key: [_plain(each.get(key)) for each in (first, second)] for key in keys}
        print_json({"recipes": [recipe, other], "differences": found})
    elif keys:
        print_columns(
            [("setting", recipe, other), *((key, _text(first.get(key)), _text(second.get(key))) for key in keys)]
        )
    else:
        print("no difference")
    return 0


def print_schema(algorithm: str, as_json: bool) -> int:
    """Print the settings of an algorithm, of `eval`, `receivers` or `serve`, as text or as JSON schema."""
    schema: type[BaseModel] = OTHER_SCHEMAS.get(algorithm) or schema_of(algorithm)
    if as_json:
        print_json(schema.model_json_schema())
        return 0
    for key, field in leaf_fields(schema):
        print(f"{key}  ({type_name(field.annotation)}, {default_of(field)})")
        print(textwrap.indent(field.description, "    "))
        for choice in choices_of(field.annotation):
            parts = (f"{name} ({default_of(each)})" for name, each in choice.model_fields.items())
            print(f"    {{{', '.join(parts)}}}")
    return 0


def _recipe_of(name: str, runs_folder: Path) -> str:
    """A recipe's name, or a file's path, as it is; the configuration of a run for the name of a run."""
    if name in shipped_recipes() or name.endswith((".yaml", ".yml")):
        return name
    try:
        return str(RunFolder.find(name, runs_folder).path / "config.yaml")
    except UserError as error:
        raise ConfigError(f"no recipe {name!r} ({', '.join(shipped_recipes())}), and {error}") from error


def _text(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(default: Any) -> Any:
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json")
    return str(default) if isinstance(default, Path) else default


def default_of(field: Any) -> str:
    """The default of a setting in words, or that it has none."""
    return "required" if field.is_required() else f"default {json.dumps(_plain(field.default))}"


def choices_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a setting chooses among."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = [choice for each in typing.get_args(annotation) for choice in choices_of(each)]
    return found if len(found) > 1 else []


def type_name(annotation: Any) -> str:
    """A type in words: those of YAML, not of Python."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        return " | ".join(dict.fromkeys(map(type_name, arguments)))
    if origin is tuple:
        return f"list of {type_name(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    words = {str: "text", int: "integer", float: "number", bool: "true | false", Path: "path", type(None): "null"}
    return words.get(annotation, "mapping")
