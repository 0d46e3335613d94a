"""Arguments that several commands have."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Settings = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""Flags for the settings of a recipe, as they stand."""

RunsFolder = Annotated[Path, Parameter(help="Folder that holds the runs.")]
EvalsFolder = Annotated[Path, Parameter(help="Folder that holds the stores.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="As JSON.")]
