"""burnish --version, and what the version is taken from."""

import importlib.metadata
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import burnish
from burnish.cli.app import run
from burnish.reproducibility.environment import missing_of_extras

ROOT = Path(__file__).parents[2]


def test_one_line_for_a_report(capsys) -> None:
    assert run(["--version"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    torch, transformers = (importlib.metadata.version(name) for name in ("torch", "transformers"))
    python = platform.python_version()
    assert line == f"burnish {burnish.__version__} (Python {python}, torch {torch}, transformers {transformers})"


def test_it_loads_nothing_slow() -> None:
    code = "import sys; from burnish.cli.app import run; run(['--version'])"
    code += "; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/burnish/__init__.py"


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(\S+)\] - (\S+)$", text, re.MULTILINE)
    assert headings[0][0] == burnish.__version__
    for _, date in headings:
        assert date == "unreleased" or re.fullmatch(r"\d{4}-\d{2}-\d{2}", date)
    assert set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) <= {
        *("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"),
    }


def test_what_extras_lack(monkeypatch) -> None:
    asked = [
        "numpy>=2.0",
        "numpy>=2.0; extra == 'both'",
        "no-such-package[binary]>=3; extra == 'both'",
        'no-such-package; python_version >= "3.11" and extra == "lm-none"',
        "pytest>=9; extra == 'whole'",
        "no-such-package; extra == 'dev'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    assert missing_of_extras() == {"both": ["no-such-package"], "lm-none": ["no-such-package"], "whole": []}
