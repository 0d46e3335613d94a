"""Every block of the tutorial and of every guide runs as written: all on the tiny model; on SmolLM2 the first training
of a guide, and the whole tutorial, in a shell.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from burnish.cli.app import run
from burnish.models.fetch import cache_folder

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
TUTORIAL = DOCS / "tutorial.md"
REAL_MODEL = cache_folder() / "models" / "smollm2-135m"
BLOCK = re.compile(r"```(\w+)( fails)?\n(.*?)```", re.DOTALL)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch) -> Callable[..., None]:
    """Sets what keeps a guide short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def set_them(**values: object) -> None:
        for name, value in {"TRAIN__NUM_STEPS": 2, **values}.items():
            monkeypatch.setenv(f"BURNISH_{name}", str(value))

    return set_them


@pytest.mark.slow
@pytest.mark.parametrize("guide", [TUTORIAL, *GUIDES], ids=lambda path: path.stem)
def test_a_guide(guide: Path, tiny_folder: Path, tmp_path: Path, settings, capsys) -> None:
    settings(MODEL__PATH=tiny_folder, MODEL__COMPUTE_DTYPE="float32", CACHE=tmp_path / "cache")
    put_model(tiny_folder, tmp_path / "cache")
    commands = 0
    with ExitStack() as at_the_end:
        for line, fails in lines_of(guide, tmp_path):
            commands += 1
            if line.endswith(" &"):
                at_the_end.enter_context(beside(line.removesuffix(" &"), tmp_path / f"beside-{commands}.log"))
                continue
            status = follow(line)
            shown = capsys.readouterr()
            assert (status != 0) == fails, f"{line}\n{shown.out}{shown.err}"
            assert status in (0, 1, 2), f"{line}\n{shown.err}"
    assert commands >= 4


@pytest.mark.slow
@pytest.mark.skipif(not REAL_MODEL.is_dir(), reason="the model is not here: burnish model get smollm2-135m")
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_first_training_of_a_guide_on_the_real_model(guide: Path, tmp_path: Path, settings, capsys) -> None:
    settings(MODEL__PATH=REAL_MODEL, CACHE=tmp_path / "cache")  # what is cached besides the model stays here
    put_model(REAL_MODEL, tmp_path / "cache")
    for line, fails in lines_of(guide, tmp_path):
        assert (follow(line) != 0) == fails, line
        if line.startswith("burnish train") and "--dry-run" not in line:
            assert "held-out" in capsys.readouterr().out
            return
    pytest.fail("the guide trains nothing")


@pytest.mark.slow
@pytest.mark.skipif(not REAL_MODEL.is_dir(), reason="the model is not here: burnish model get smollm2-135m")
def test_the_tutorial_on_the_real_model(tmp_path: Path) -> None:
    """As a reader does it: one shell, an empty folder, a home in which nothing is but the model."""
    put_model(REAL_MODEL, tmp_path / "home" / ".cache" / "burnish")
    folder = tmp_path / "desk"
    folder.mkdir()
    shown: dict[str, str] = {}
    with Shell(folder, tmp_path / "home", tmp_path / "log") as shell:
        for line, fails in lines_of(TUTORIAL, folder):
            status, shown[line] = shell.follow(line)
            assert (status != 0) == fails, f"{line}\n{shown[line]}"
    events = [json.loads(line) for line in (folder / "runs" / "deployments.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["canary began", "promoted", "canary began", "rolled back"]
    assert events[-1]["reason"].startswith("ratings that are good")
    assert "ServingRolledBack" in shown["python alerts.py"]


def put_model(folder: Path, cache: Path) -> None:
    """Where `smollm2-135m` is looked for."""
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "smollm2-135m").symlink_to(folder)


def lines_of(guide: Path, folder: Path) -> Iterator[tuple[str, bool]]:
    """The commands of a guide, and whether they must fail; files are written when their block is met."""
    for language, fails, text in BLOCK.findall(guide.read_text()):
        if language == "text":
            continue  # what was seen
        if language in ("python", "yaml"):
            name = re.match(r"# (\w+\.(py|yaml))\n", text)
            assert name, f"{guide.name}: a block names no file"
            (folder / name[1]).write_text(text)
            continue
        assert language == "sh", language
        for line in text.strip().splitlines():
            yield line, bool(fails)


class Shell:
    """A bash that is given one line after the other, as whoever copies them from a page gives them."""

    def __init__(self, folder: Path, home: Path, log: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BURNISH_", "XDG_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                ["bash"],
                cwd=folder,
                env={**kept, "HOME": str(home), "PATH": path},
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *_: object) -> None:
        """End it and whatever it has started, and wait for all of them: others want their ports."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        for sent, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 30)):
            until = time.monotonic() + seconds
            try:
                os.killpg(self.process.pid, sent)
                while time.monotonic() < until:
                    self.process.poll()
                    os.killpg(self.process.pid, 0)
                    time.sleep(0.05)
            except ProcessLookupError:
                return

    def follow(self, line: str) -> tuple[int, str]:
        """Give a line: the status of what it did, and what was shown meanwhile. After one that ends with ` &`, wait
        until it says where it answers.
        """
        before = len(self.log.read_bytes())
        if line.endswith(" &"):
            return 0, self._after(line, before, "http://")
        shown = self._after(f"{line}\nprintf '\\nover: %s\\n' $?", before, r"^over: [0-9]+\n")
        text, _, rest = shown.rpartition("\nover: ")
        return int(rest.split()[0]), text

    def _after(self, given: str, before: int, pattern: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{given}\n".encode())
        self.process.stdin.flush()
        until = time.monotonic() + 900
        while time.monotonic() < until and self.process.poll() is None:
            shown = self.log.read_bytes()[before:].decode(errors="replace")
            if re.search(pattern, shown, re.MULTILINE):
                return shown
            time.sleep(0.05)
        pytest.fail(f"{given}: was not over in time\n{self.log.read_text(errors='replace')[-4000:]}")


@contextmanager
def beside(line: str, log: Path) -> Iterator[None]:
    """A command that does not end by itself, which a guide starts with ` &`: until the guide is over, from when the
    process says where it answers, as whoever types the next command would wait for it.
    """
    if line.startswith("burnish monitor up") and shutil.which("prometheus") is None:
        pytest.skip("no prometheus is here: apt-get install prometheus prometheus-alertmanager")
    program, *arguments = shlex.split(line)
    assert program == "burnish", line
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "burnish", *arguments], stdout=out, stderr=out)
    try:
        until = time.monotonic() + 120
        while "http://" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, f"{line}\n{log.read_text()}"
            time.sleep(0.1)
        yield
        assert process.poll() in (None, 0), f"{line}\n{log.read_text()}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


def follow(line: str) -> int:
    """Run a command, burnish and Python in this process; its exit status."""
    program, *arguments = shlex.split(line)
    if program == "python":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", arguments)
            runpy.run_path(arguments[0], run_name="__main__")
        return 0
    if program != "burnish":
        return subprocess.run(["bash", "-c", line], timeout=60, check=False).returncode
    return run(arguments)
