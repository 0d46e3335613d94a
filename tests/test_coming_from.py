"""docs/coming-from.md: each key of ours is in the schema with the value that is said, each of TRL's in its class."""

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from burnish.algorithms.session import schema_for
from burnish.config.loading import flat_settings

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
SAID = re.compile(r"`([a-z_.0-9]+)` = `([^`]+)`")
OURS = re.compile(r"`((?:cluster|data|evaluation|loss|model|optimizer|rollout|task|train|critic)\.[a-z_]+)`")


def sections() -> list[tuple[str, str, list[list[str]]]]:
    """(recipe, class of TRL or "", rows) of each section with a table of settings."""
    found = []
    for title, text in re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE):
        if recipe := re.search(r"`burnish train (\w+)`", title):
            peer = re.match(r"TRL: (\w+)", title)
            rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
            found.append((recipe[1], peer[1] if peer else "", rows))
    return found


SECTIONS = sections()


def test_there_is_something_to_hold() -> None:
    assert [recipe for recipe, _, _ in SECTIONS] == ["grpo", "dpo", "sft", "kto", "reward_model", "grpo", "grpo", "ppo"]
    assert sum(len(SAID.findall(row[1])) for _, _, rows in SECTIONS for row in rows) > 60


@pytest.mark.parametrize(
    ("recipe", "peer", "rows"), SECTIONS, ids=[f"{peer or index}" for index, (_, peer, _) in enumerate(SECTIONS)]
)
def test_our_values_are_those_of_the_recipe(recipe: str, peer: str, rows: list[list[str]]) -> None:
    values = flat_settings(schema_for(recipe), recipe)
    for row in rows:
        for key, said in SAID.findall(row[1]):
            assert key in values, f"{recipe} has no {key}"
            assert plain(values[key]) == json.loads(said), f"{recipe}: {key} is {values[key]}, not {said}"


def test_every_key_that_is_named_is_one() -> None:
    known = {key for recipe, _, _ in SECTIONS for key in flat_settings(schema_for(recipe), recipe)} | {"data.source"}
    ours = {key for _, _, rows in SECTIONS for row in rows for key in OURS.findall(" | ".join(row[1:]))}
    ours |= set(OURS.findall(PAGE.partition("## TRL")[0]))
    theirs = {"data.train_batch_size", "data.max_response_length"}
    assert ours - theirs - known == set()


@pytest.mark.slow
@pytest.mark.parametrize(("peer", "rows"), [(peer, rows) for _, peer, rows in SECTIONS if peer])
def test_the_values_of_trl_are_its_own(peer: str, rows: list[list[str]]) -> None:
    import trl

    fields = {field.name: field for field in dataclasses.fields(getattr(trl, peer))}
    for row in rows:
        for key, said in SAID.findall(row[0]):
            field = fields[key]
            made = field.default_factory is not dataclasses.MISSING
            value = field.default_factory() if made else field.default  # type: ignore[misc]
            assert value == ast.literal_eval(said), f"{peer}.{key} is {value!r}, not {said}"


def plain(value: Any) -> Any:
    """A default as JSON has it."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value
