"""Every command that stands in an example, or in the list of them, does what it says; on the tiny model."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.cli.app import run
from burnish.rewards.scripted_judge import ScriptedJudge

EXAMPLES = Path(__file__).parents[1] / "examples"
README = (EXAMPLES / "README.md").read_text()
FILES = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.*") if path.name != "README.md")
RUNS_FOR_HOURS = "three_arms.yaml"


@pytest.fixture
def copied(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the folder, with the tiny model and a judge that likes everything a little. The model has room for the
    description of tools, which is long in bytes.
    """
    folder, model = tmp_path / "examples", tmp_path / "tiny"
    shutil.copytree(tiny_folder, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    settings = {"MODEL__PATH": model, "MODEL__COMPUTE_DTYPE": "float32", "TRAIN__NUM_STEPS": 1}
    for name, value in {**settings, "CACHE": tmp_path / "cache"}.items():
        monkeypatch.setenv(f"BURNISH_{name}", str(value))
    with ScriptedJudge(lambda question: "It is brief.\nScore: 7") as judge:
        monkeypatch.setenv("JUDGE_URL", judge.url)
        yield folder


def commands_of(text: str) -> list[str]:
    """The lines of a header that are commands."""
    found = re.findall(r"^#? {4,5}(burnish .*)$", text.replace("\\\n", " "), re.MULTILINE)
    assert found
    return found


def status_of(command: str) -> int:
    return run(shlex.split(command)[1:])


def test_the_list_has_every_example() -> None:
    assert sorted(re.findall(r"^\| \[(.*?)\]\(\1\)", README, re.MULTILINE)) == FILES


@pytest.mark.parametrize("command", re.findall(r"\| `(burnish .*?)` \|$", README, re.MULTILINE))
def test_a_command_of_the_list(command: str, copied: Path) -> None:
    assert status_of(command) == 0


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".py", ".yaml")) and name != RUNS_FOR_HOURS])
def test_the_commands_of_an_example(name: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands_of((EXAMPLES / name).read_text()):
        command, _, file = command.partition(" > ")
        capsys.readouterr()
        assert status_of(command) == 0, command
        if file:
            (copied / file).write_text(capsys.readouterr().out)
            subprocess.run(["bash", "-n", file], check=True)
    if name == "cluster.yaml":
        script = (copied / "train.sh").read_text()
        assert "#SBATCH --nodes=2" in script and "burnish train cluster.yaml" in script


def test_a_spoiled_example_does_not_pass(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (copied / "reward.py").read_text()
    (copied / "spoiled.py").write_text(
        text.replace("= last_number(completion, task)", "= task.answer in completion.text")
    )
    assert status_of("burnish check reward spoiled:score data/questions.jsonl") == 1
    assert "it is gained by listing guesses" in capsys.readouterr().out
