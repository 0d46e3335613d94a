"""Every block of every guide runs as it is written, on the tiny model and two steps."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from burnish.cli.app import run

GUIDES = sorted((Path(__file__).parents[1] / "docs" / "guides").glob("*.md"))
BLOCK = re.compile(r"```(\w+)( fails)?\n(.*?)```", re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide(guide: Path, tiny_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"MODEL__PATH": tiny_folder, "MODEL__COMPUTE_DTYPE": "float32", "TRAIN__NUM_STEPS": 2}
    for name, value in {**settings, "CACHE": tmp_path / "cache"}.items():
        monkeypatch.setenv(f"BURNISH_{name}", str(value))
    commands = 0
    before = set(sys.modules)
    for language, fails, text in BLOCK.findall(guide.read_text()):
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name, f"{guide.name}: a block names no file"
            (tmp_path / name[1]).write_text(text)
            continue
        assert language == "sh", language
        for line in text.strip().splitlines():
            program, *arguments = shlex.split(line)
            commands += 1
            if program == "python":
                runpy.run_path(arguments[0], run_name="__main__")
                continue
            assert program == "burnish", line
            status = run(arguments)
            shown = capsys.readouterr()
            assert (status != 0) == bool(fails), f"{line}\n{shown.out}{shown.err}"
            assert status in (0, 1), f"{line}\n{shown.err}"
    assert commands >= 4
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").is_file():
            del sys.modules[name]
