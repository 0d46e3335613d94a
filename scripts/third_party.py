"""Write the table of THIRD_PARTY_NOTICES.md: what burnish and its extras install, under which licence.

    .venv/bin/python scripts/third_party.py [--also .venv-clients/lib/python3.11/site-packages]

It reads the metadata of what is installed, so every extra must be: `--also` is a folder of packages to look in after
those of this environment.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NOTICES = ROOT / "THIRD_PARTY_NOTICES.md"
MARK = "<!-- The table below is written by scripts/third_party.py. -->"
BASE = "burnish"
_LONGEST_NAME = 60  # of a licence: some packages have its whole text in the field
_SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
_SENTENCES = {
    "Version 2.0, January 2004": "Apache-2.0",
    "Permission is hereby granted, free of charge": "MIT",
    "Redistribution and use in source and binary forms": "BSD",
}


def requirements() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: of the package itself, and of each extra that is not for its development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {BASE: project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(each) for each in asked] for name, asked in groups.items() if name != "dev"}


def find(folders: Iterable[str]) -> dict[str, Distribution]:
    """Every installed distribution by its canonical name; what stands in an earlier folder comes first."""
    found: dict[str, Distribution] = {}
    for folder in folders:
        for each in distributions(path=[folder]):
            found.setdefault(canonicalize_name(each.name), each)
    return found


def licence_of(distribution: Distribution) -> str:
    """The licence that its metadata states, an SPDX expression where there is one; else what its licence's file is."""
    metadata = distribution.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    stated = str(metadata.get("License") or "").strip()
    if stated and "\n" not in stated and len(stated) <= _LONGEST_NAME:
        return _SPDX.get(stated, stated)
    names = [each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier", []) if each.startswith("License ::")]
    if names:
        return " / ".join(_SPDX.get(each, each) for each in names)
    files = [each for each in distribution.files or [] if re.match(r"LICEN[CS]E", each.name)]
    text = "".join(each.read_text(encoding="utf-8") for each in files)
    return next((name for sentence, name in _SENTENCES.items() if sentence in text), "not stated")


def closure(asked: Iterable[Requirement], installed: dict[str, Distribution]) -> set[str]:
    """Names of all that is installed for these requirements here, by this Python and on this system."""
    reached: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(each.name), extra) for each in asked for extra in ("", *each.extras)]
    while waiting:
        name, extra = place = waiting.pop()
        if place in reached:
            continue
        reached.add(place)
        if name not in installed:
            sys.exit(f"third_party: {name} is not installed: install it, or give its folder by --also")
        for text in installed[name].requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(needed.name), each) for each in ("", *needed.extras)]
    return {name for name, _ in reached}


def table(installed: dict[str, Distribution]) -> str:
    """A row for each package, with what it comes with: burnish itself, or extras of it."""
    sets = {group: closure(asked, installed) for group, asked in requirements().items()}
    lines = ["| package | version | licence | comes with |", "|---|---|---|---|"]
    for name in sorted(set().union(*sets.values())):
        groups = [BASE] if name in sets[BASE] else sorted(group for group, names in sets.items() if name in names)
        version = installed[name].version.partition("+")[0]
        lines.append(f"| {name} | {version} | {licence_of(installed[name])} | {', '.join(groups)} |")
    return "\n".join(lines) + "\n"


def rows(text: str) -> dict[str, tuple[str, str, set[str]]]:
    """Version, licence and groups of each package in the table of the notices."""
    found = re.findall(r"^\| ([a-z0-9.-]+) \| (\S+) \| (.+) \| ([a-z, -]+) \|$", text.partition(MARK)[2], re.MULTILINE)
    return {name: (version, licence, set(groups.split(", "))) for name, version, licence, groups in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--also", action="append", default=[], help="a folder of packages")
    head = NOTICES.read_text(encoding="utf-8").partition(MARK)[0]
    written = table(find([*sys.path, *parser.parse_args().also]))
    NOTICES.write_text(f"{head}{MARK}\n\n{written}", encoding="utf-8")


if __name__ == "__main__":
    main()
