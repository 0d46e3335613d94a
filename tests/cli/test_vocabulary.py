"""One word per idea: what the glossary says not to say stands in no help, setting, metric, recipe or key of --json."""

import re
from pathlib import Path

import pytest

from burnish.algorithms.session import schema_of
from burnish.cli.config import OTHER_SCHEMAS
from burnish.config.loading import leaf_fields, shipped_recipes
from burnish.errors import UserError
from burnish.monitoring.catalogue import SERVING, TRAINING

from .test_command_line import ALL

DOCS = Path(__file__).parents[2] / "docs"

OTHER_SENSE = {
    *("action", "actor", "age", "arm", "base", "batch", "check", "context", "epoch", "example", "experiment", "gap"),
    *("job", "log", "objective", "output", "problem", "rating", "repeat", "results", "sample", "target", "template"),
    *("test", "weight"),
}
"""Also the word for something else: a guard's action, the age of a step, a base model, word problems ..."""


def unwanted() -> set[str]:
    """The words of the glossary's last column."""
    rows = re.findall(r"^\| .+? \| .+ \| (.+) \|$", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    return {word for words in rows for word in words.split(", ")} - {"not", "---"}


def texts() -> dict[str, str]:
    """What a user reads that is no prose, by where it stands."""
    found = {"the keys of --json": (DOCS / "command-line.md").read_text()}
    for path, command in ALL.items():
        arguments = command.assemble_argument_collection() if command.default_command is not None else ()
        words = [" ".join((*each.names, str(each.parameter.help or ""))) for each in arguments]
        found[f"burnish {' '.join(path)} --help"] = " ".join((command.help, *words))
    for schema in (*OTHER_SCHEMAS.values(), *map(schema_of, algorithms())):
        found |= {f"setting {key}": f"{key}: {field.description}" for key, field in leaf_fields(schema)}
    found |= {f"metric {each.name}": f"{each.name}: {each.meaning}" for each in (*TRAINING, *SERVING)}
    found |= {f"recipe {name}": path.read_text() for name, path in shipped_recipes().items()}
    return {place: text.replace("_", " ").lower() for place, text in found.items()}


def algorithms() -> list[str]:
    with pytest.raises(UserError) as error:
        schema_of("none")
    return str(error.value).partition("; give one of ")[2].split(", ")


def test_nothing_is_called_otherwise() -> None:
    places = {word: set[str]() for word in unwanted()}
    for place, text in texts().items():
        for word, where in places.items():
            if re.search(rf"(?<![a-z]){re.escape(word)}s?(?![a-z])", text):
                where.add(place)
    assert len(places) > 50
    assert {word: where for word, where in places.items() if where and word not in OTHER_SENSE} == {}
    assert {word for word in OTHER_SENSE if not places[word]} == set()  # what is excepted without need
