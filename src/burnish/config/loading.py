"""From defaults, recipe, file, environment and flags to one checked configuration; each value knows its origin."""

import difflib
import hashlib
import json
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from burnish.config.schema import Section
from burnish.errors import ConfigError, UnknownSettingError

ENVIRONMENT_PREFIX = "BURNISH_"
RESERVED_ENVIRONMENT = {"BURNISH_CACHE", "BURNISH_ADMIN_KEY"}  # names of the prefix that are not settings

ConfigT = TypeVar("ConfigT", bound=Section)


@dataclass(frozen=True, slots=True)
class Resolved(typing.Generic[ConfigT]):
    """A checked configuration and, for each dotted key that was set, where from."""

    config: ConfigT
    origins: Mapping[str, str]

    def origin(self, key: str) -> str:
        """Where the value of a dotted key comes from."""
        return self.origins.get(key, "default")


def resolve(
    schema: type[ConfigT],
    recipe: str,
    *,
    file: Path | None = None,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> Resolved[ConfigT]:
    """Later wins: default < recipe < file < environment (`BURNISH_TRAIN__NUM_STEPS=5`) < flag (`--train.num_steps 5`).

    Raises:
        ConfigError: naming the key, the value, where it came from, and what to do.
    """
    layers = [(f"recipe {recipe}", read_recipe(recipe))]
    if file is not None:
        layers.append((f"file {file}", _read_yaml(file)))
    return resolve_layers(schema, layers, flags=flags, environment=environment)


def resolve_layers(
    schema: type[ConfigT],
    given: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> Resolved[ConfigT]:
    """`given` are settings with where they come from, the later ones winning; environment and flags come after them.

    Raises:
        ConfigError: as `resolve`.
    """
    layers = [*given, ("environment", dict(_from_environment(environment))), ("flag", read_flags(flags))]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    keys = dict(leaf_fields(schema))
    for origin, layer in layers:
        for key, value in _flatten(layer, keys):
            _check_known(key, keys, origin)
            if key not in keys and _inside_mapping(key, keys):  # one entry of a mapping, say task.options.max_terms
                key, _, entry = key.rpartition(".")
                value = {**values.get(key, {}), entry: yaml.safe_load(value) if isinstance(value, str) else value}
            # A whole section set to null, or set again, replaces what an earlier layer said of its parts.
            for earlier in [name for name in values if name.startswith(key + ".") or key.startswith(name + ".")]:
                del values[earlier], origins[earlier]
            values[key], origins[key] = value, origin
    required = [name for name, info in schema.model_fields.items() if info.is_required()]
    tree: dict[str, Any] = {name: {} for name in required}  # so that a missing key is named, not its whole section
    tree |= _nest(values)
    return Resolved(_validate(schema, tree, origins), origins)


def _validate(schema: type[ConfigT], tree: Mapping[str, Any], origins: Mapping[str, str]) -> ConfigT:
    """Check a nested mapping against the schema; the first fault becomes a one-line ConfigError."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        key = _key_of(fault["loc"])
        if fault["type"] == "missing":
            raise ConfigError(f"{key}: is not set and has no default; add --{key} VALUE") from error
        if fault["type"] == "extra_forbidden":
            _check_known(key, dict(leaf_fields(schema)), origins.get(key, "the configuration"))
        message = fault["msg"].removeprefix("Value error, ")
        for other in error.errors()[1:]:  # what else a union takes
            if other["type"] == "literal_error" and _key_of(other["loc"]) == key:
                message += f", or {other['ctx']['expected']}"
        if fault["type"] == "tuple_type":
            message = f"needs a list: --{key} '[...]' as JSON"
        if fault["type"] == "model_type":
            is_path = ":" in str(fault["input"]) and f"{key}.own" in dict(leaf_fields(schema))
            own = json.dumps({"own": str(fault["input"])}) if is_path else "{...}"
            message = f"is a section: --{key} '{own}' as JSON, see `burnish config schema ALGORITHM`"
        place = f" (from {origins[key]})" if key in origins else ""
        raise ConfigError(f"{key}={fault['input']!r}{place}: {message[0].lower()}{message[1:]}") from error


def _key_of(place: tuple[int | str, ...]) -> str:
    """The setting at a fault's place, without what pydantic adds of its own: members of a union, validators."""
    return ".".join(str(part) for part in place if not re.match(r"(function|constrained)-|literal\[", str(part)))


def read_recipe(recipe: str) -> dict[str, Any]:
    """A recipe that ships with burnish by its name, or a YAML file by its path."""
    shipped = shipped_recipes()
    if recipe in shipped:
        return _parse_yaml(shipped[recipe].read_text(encoding="utf-8"), recipe)
    if recipe.endswith((".yaml", ".yml")):
        return _read_yaml(Path(recipe))
    raise ConfigError(
        f"recipe {recipe!r} is not known: {_suggest(recipe, shipped)}give one of {', '.join(sorted(shipped))}, "
        "or the path of a .yaml file"
    )


def read_algorithm(recipe: str, flags: Sequence[str] = ()) -> str:
    """The algorithm that a recipe names, which decides what else may stand in it.

    Raises:
        ConfigError: it names none.
    """
    algorithm = read_flags(flags).get("algorithm", read_recipe(recipe).get("algorithm"))
    if not isinstance(algorithm, str):
        raise ConfigError(f"recipe {recipe}: names no algorithm; add a line such as `algorithm: grpo`")
    return algorithm


def read_flags(flags: Sequence[str]) -> dict[str, Any]:
    """Settings by their keys, as `--section.key VALUE` or `--section.key=VALUE` gives them.

    Raises:
        ConfigError: a word is no flag, or a flag has no value.
    """
    tree: dict[str, Any] = {}
    remaining = list(flags)
    while remaining:
        flag = remaining.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"unexpected argument {flag!r}: settings are given as --section.key VALUE")
        key, equals, value = flag.removeprefix("--").partition("=")
        if not equals:
            if not remaining:
                raise ConfigError(f"--{key} needs a value")
            value = remaining.pop(0)
        tree[key.replace("-", "_")] = _parse_text(value)
    return tree


def shipped_recipes() -> dict[str, Traversable]:
    """The recipes that come with burnish, by name."""
    folder = files("burnish.recipes").iterdir()
    return {path.name.removesuffix(".yaml"): path for path in sorted(folder, key=str) if path.name.endswith(".yaml")}


def flat_settings(schema: type[Section], recipe: str) -> dict[str, Any]:
    """Every setting that a recipe has by itself, checked or not: its own, then the defaults; required ones may lack."""
    keys = dict(leaf_fields(schema))
    defaults = {key: info.default for key, info in keys.items() if not info.is_required()}
    return defaults | dict(_flatten(read_recipe(recipe), keys))


def leaf_fields(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every settable dotted key with its field, depth first, in the order of the schema."""
    for name, info in schema.model_fields.items():
        section = _section_type(info.annotation)
        if section is None or typing.get_args(info.annotation):  # an optional section can itself be set to null
            yield prefix + name, info
        if section is not None:
            yield from leaf_fields(section, f"{prefix}{name}.")


def visible_settings(config: BaseModel) -> dict[str, Any]:
    """Every setting by its dotted key; a section that is null is one of them."""
    tree = config.model_dump(mode="json")
    values: dict[str, Any] = {}
    for key, _ in leaf_fields(type(config)):
        *sections, name = key.split(".")
        section: Any = tree
        for part in sections:
            section = None if section is None else section[part]
        if section is not None:
            values[key] = section[name]
    return values


def changed_settings(config: BaseModel) -> dict[str, Any]:
    """The settings that are not their default, by dotted key; required ones are among them."""
    defaults = {key: _as_json(info.default) for key, info in leaf_fields(type(config)) if not info.is_required()}
    return {
        key: value for key, value in visible_settings(config).items() if key not in defaults or value != defaults[key]
    }


def _as_json(default: Any) -> Any:
    return TypeAdapter(Any).dump_python(default, mode="json")


def config_hash(config: BaseModel) -> str:
    """sha256 of the canonical JSON: sorted keys, every default written out."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _check_known(key: str, keys: Mapping[str, Any], origin: str) -> None:
    if key not in keys and not any(name.startswith(key + ".") for name in keys) and not _inside_mapping(key, keys):
        message = f"unknown setting {key!r} (from {origin}): {_suggest(key, keys)}see `burnish config schema ALGORITHM`"
        raise UnknownSettingError(message, key)


def _inside_mapping(key: str, keys: Mapping[str, Any]) -> bool:
    parent = key.rpartition(".")[0]
    return parent in keys and typing.get_origin(keys[parent].annotation) is dict


def _suggest(word: str, known: Iterable[str]) -> str:
    """The key of the same section whose initials these are (`optimizer.lr`); the nearest; or the key whose last part is
    nearest, which is the right name in the wrong section.
    """
    known = list(known)
    section, _, name = word.rpartition(".")
    for key in known:
        of, _, leaf = key.rpartition(".")
        if of == section and name == "".join(part[0] for part in leaf.split("_") if part):
            return f"did you mean {key!r}? "
    by_last_part = {key.rpartition(".")[2]: key for key in known}
    whole = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    last = difflib.get_close_matches(word.rpartition(".")[2], by_last_part, n=1, cutoff=0.7)
    close = whole or [by_last_part[name] for name in last]
    return f"did you mean {close[0]!r}? " if close else ""


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in RESERVED_ENVIRONMENT:
            yield name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), _parse_text(environment[name])


def _parse_text(text: str) -> Any:
    """Lists, mappings and null are written as JSON; anything else stays text, and the schema converts it."""
    if text == "null" or text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{text!r} is not valid JSON: {error}") from error
    return text


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: it is not UTF-8") from error


def _parse_yaml(text: str, place: str) -> dict[str, Any]:
    try:
        tree = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{place}: must be a mapping of settings, got {type(tree).__name__}")
    return tree


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, but a key that stands twice is an error and not silently the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{repeated!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _flatten(tree: Mapping[str, Any], keys: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        is_section = isinstance(value, Mapping) and any(known.startswith(key + ".") for known in keys)
        switches_on = key in keys and not value  # an optional section with all its defaults
        if is_section and not switches_on:
            yield from _flatten(value, keys, key + ".")
        else:
            yield key, value


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return tree


def _section_type(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds; None where it holds a value, or a choice among sections."""
    candidates = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    sections = [each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)]
    return sections[0] if len(sections) == 1 else None
