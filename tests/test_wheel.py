"""What is in the wheel and in the source distribution, and what an installed wheel does."""

import email
import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import burnish

ROOT = Path(__file__).parents[1]
PACKAGE = runpy.run_path(str(ROOT / "scripts/package.py"))
OWN = """
import numpy as np
from burnish import loss

@loss(normalizer="sequences")
def own_loss(scored, batch):
    return -(scored.logprobs_S * batch.weights_S).sum()

def own_advantage(rewards_B, group_B):
    return np.sign(rewards_B - rewards_B.mean())

def own_reward(completion, task):
    return float(len(completion.text))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (built,) = PACKAGE["build"](ROOT, tmp_path_factory.mktemp("wheel"), ["wheel"])
    return built


def test_the_wheel_has_the_package_and_no_more(wheel: Path) -> None:
    names = set(PACKAGE["names_in"](wheel))
    assert PACKAGE["wheel_problems"](names, ROOT) == []
    assert not [name for name in names if "test" in name.split("/")[1] or name.endswith(".pyc")]
    assert {Path(name).suffix for name in names if name.startswith("burnish/")} == PACKAGE["SUFFIXES"]
    for there in PACKAGE["READ_AT_RUN_TIME"]:
        assert PACKAGE["wheel_problems"](names - {there}, ROOT) == [f"is missing: {there}"]
    assert PACKAGE["wheel_problems"](names | {"tests/test_wheel.py"}, ROOT) == [
        "does not belong there: tests/test_wheel.py"
    ]


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = f"burnish-{burnish.__version__}.dist-info"
        said = email.message_from_bytes(archive.read(f"{inside}/METADATA"))
        commands = archive.read(f"{inside}/entry_points.txt").decode()
        assert archive.read(f"{inside}/licenses/THIRD_PARTY_NOTICES.md") == (
            (ROOT / "THIRD_PARTY_NOTICES.md").read_bytes()
        )
    assert (said["Name"], said["Version"], said["License-Expression"]) == ("burnish", burnish.__version__, "Apache-2.0")
    assert said["Requires-Python"] == ">=3.11"
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(said.get_all("Classifier"))
    assert commands.split() == ["[console_scripts]", "burnish", "=", "burnish.cli:main"]


def test_dates_are_those_that_were_asked_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1600000000")
    (built,) = PACKAGE["build"](ROOT, tmp_path, ["wheel"])
    with zipfile.ZipFile(built) as archive:
        assert {each.date_time for each in archive.infolist()} == {(2020, 9, 13, 12, 26, 40)}


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no checkout of git")
def test_the_source_distribution_and_the_wheel_build_the_same_again(tmp_path: Path) -> None:
    PACKAGE["build"](ROOT, tmp_path / "dist")
    assert PACKAGE["problems"](tmp_path / "dist", ROOT) == []


def test_what_does_not_belong_into_a_source_distribution_is_named() -> None:
    folders = ("benchmarks", "docs", "examples", "scripts", "src", "tests")
    shipped = ["pyproject.toml", "Makefile", "requirements.lock", *(f"{folder}/a.py" for folder in folders)]
    kept = [*shipped, ".ci/run", ".gitignore"]
    whole = dict.fromkeys([*shipped, "PKG-INFO", ".gitignore", *PACKAGE["LICENCES"]], 10)
    assert PACKAGE["sdist_problems"](whole, kept) == []
    for name in (".venv/bin/python", "src/__pycache__/a.pyc", "runs/quickstart-1/run.json", ".ruff_cache/a"):
        assert PACKAGE["sdist_problems"]({**whole, name: 1}, kept) == [f"does not belong there: {name}"]
    assert PACKAGE["sdist_problems"]({**whole, "docs/a.py": 10**7}, kept) == ["is larger than 1000000 bytes: docs/a.py"]
    without = {name: size for name, size in whole.items() if not name.startswith("tests/")}
    assert PACKAGE["sdist_problems"](without, kept) == ["is missing: tests"]


@pytest.mark.slow
def test_the_command_from_a_wheel_with_an_empty_home(wheel: Path) -> None:
    """The packages beside it are those of this environment; `make package-check` installs them, too."""
    packages = sysconfig.get_paths()["purelib"]
    command = [sys.executable, str(ROOT / "scripts/try_wheel.py"), str(wheel), "--reuse", packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"ok: burnish {burnish.__version__} from its wheel")


@pytest.mark.slow
def test_your_own_from_a_wheel(wheel: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """A user's own loss, advantage and reward in one file, and nothing of ours touched."""

    def call(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    call(*pip, "install", "--no-deps", "--target", "installed", str(wheel))
    where = call(sys.executable, "-c", "import burnish; print(burnish.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path / "installed")

    (tmp_path / "mine.py").write_text(OWN)
    rows = [{"prompt": f"say {i}", "completion": f"word {i}", "answer": str(i)} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    burnish = [sys.executable, "-m", "burnish"]
    assert "nothing found" in call(*burnish, "check", "loss", "mine:own_loss")
    shared = [f"--model.path={tiny_folder}", "--model.compute_dtype=float32", "--train.num_steps=2"]
    shared += ["--checkpoint.every_steps=2"]
    sft = ["train", "sft", "--data.source=rows.jsonl", "--data.num_held_out=4", '--loss={"own": "mine:own_loss"}']
    assert "held-out log-likelihood" in call(*burnish, *sft, *shared)
    grpo = ["train", "grpo", "--task.source=rows.jsonl", "--task.num_held_out=4", "--task.reward=mine:own_reward"]
    grpo += ["--loss.advantage=mine:own_advantage", '--loss.also={"mine:own_loss": 0.1}', "--rollout.max_tokens=8"]
    assert "held-out accuracy" in call(*burnish, *grpo, *shared)
