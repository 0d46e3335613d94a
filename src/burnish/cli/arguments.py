"""Arguments that several commands have, and what the Tab key offers for them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext


def _recipes(context: CompletionContext) -> Iterator[str]:
    """The names of the recipes that ship; what reads them is slow to load."""
    folder = files("burnish.recipes").iterdir()
    return (path.name.removesuffix(".yaml") for path in folder if path.name.endswith(".yaml"))


def _runs(context: CompletionContext) -> Iterator[str]:
    yield "last"
    yield from _holding("run.json", context, "--runs-folder", "runs")


def _stores(context: CompletionContext) -> Iterator[str]:
    yield "last"
    yield from _holding("eval.json", context, "--evals-folder", "evals")


def _recipes_or_runs(context: CompletionContext) -> Iterator[str]:
    yield from _recipes(context)
    yield from _runs(context)


def _holding(record: str, context: CompletionContext, flag: str, otherwise: str) -> list[str]:
    """Names of the folders in the one that a flag names which hold a record."""
    given = context[flag]
    folder = Path(str(given.value)) if given.value else Path(otherwise)
    return [path.parent.name for path in sorted(folder.glob(f"*/{record}"))]


Settings = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""Flags for the settings of a recipe, as they stand."""

SettingsFile = Annotated[Path | None, Parameter(help="YAML file whose settings override the recipe's.")]
RunsFolder = Annotated[Path, Parameter(help="Folder that holds the runs.")]
EvalsFolder = Annotated[Path, Parameter(help="Folder that holds the stores.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="As JSON, one document.")]

Recipe = Annotated[
    str, Parameter(completer=_recipes, help="Name of a recipe that ships with burnish, or path of a YAML file.")
]
RecipeOrRun = Annotated[
    str, Parameter(completer=_recipes_or_runs, help="Name of a recipe, path of a YAML file, or a run.")
]
Run = Annotated[str, Parameter(completer=_runs, help="Path or name of the run, the beginning of its name, or `last`.")]
Store = Annotated[
    str,
    Parameter(completer=_stores, help="Folder of the eval store, its name, the beginning of its name, or `last`."),
]
