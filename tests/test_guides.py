"""Every block of every page runs as written: all on the tiny model; on SmolLM2 the whole tutorial, in a shell,
and the first training of what it does not have.
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

import markdown
import pytest

from burnish.algorithms.session import schema_for
from burnish.cli.app import app, run
from burnish.cli.config import OTHER_SCHEMAS
from burnish.config.loading import leaf_fields, shipped_recipes
from burnish.models.fetch import cache_folder

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
START = DOCS / "start.md"
WITH_COMMANDS = [path for path in PAGES if "```sh" in path.read_text(encoding="utf-8")]
FOR_REAL = [DOCS / "guides" / name for name in ("environments.md", "memory.md")]  # the tutorial has the other kinds
TUTORIAL = DOCS / "tutorial.md"
REAL_MODEL = cache_folder() / "models" / "smollm2-135m"
OPTIONS = {
    name: set(re.findall(r"--[a-z-]+", text))
    for name, text in re.findall(
        r"^#+ (burnish[a-z -]*)\n(.*?)(?=^#|\Z)", app.generate_docs(), flags=re.DOTALL | re.MULTILINE
    )
}
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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_block_is_run_or_is_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("```sh fails\n", "```sh\n")
    made = markdown.markdown(text, extensions=["fenced_code", "tables", "def_list", "sane_lists"])
    kinds = re.findall(r"<pre><code(?: class=\"language-(\w+)\")?>", made)  # an indented block has no class
    assert set(kinds) <= {"sh", "python", "yaml", "text"}, kinds
    assert len(kinds) == len(BLOCK.findall(text))


def test_every_command_that_a_page_names_is_one() -> None:
    schemas = [*(schema_for(recipe) for recipe in shipped_recipes()), *OTHER_SCHEMAS.values()]
    keys = {key for schema in schemas for key, _ in leaf_fields(schema)}
    sections = {key.rpartition(".")[0] for key in keys} - {""}
    parents = keys | {"section"}  # what stands in a mapping is no key of its own
    wrong = []
    for page in [*PAGES, ROOT / "README.md"]:
        text = page.read_text(encoding="utf-8")
        code = "\n".join(block for _, _, block in BLOCK.findall(text))
        lines = re.findall(r"`(burnish [a-z][^`\n]*)`", text) + re.findall(r"^burnish [a-z].*", code, re.MULTILINE)
        for line in lines + re.findall(r"^    (burnish [a-z].*)", text, re.MULTILINE):
            words = re.match(r"burnish( [a-z_]+){0,2}", line)[0].split()  # type: ignore[index]
            flags = OPTIONS.get(" ".join(words)) or OPTIONS.get(" ".join(words[:2]))
            given = re.findall(r"(?<= )--([a-z][a-z_.-]*[a-z_])", line)
            known = flags is not None and all(
                f"--{each}" in flags or each in keys | sections or each.rpartition(".")[0] in parents for each in given
            )
            if not known:
                wrong.append(f"{page.name}: {line}")
    assert wrong == []


@pytest.mark.slow
def test_the_start_in_a_shell(tiny_folder: Path, tmp_path: Path, settings) -> None:
    """As a stranger types it, but that the environment is there already, and what `make` would fetch."""
    settings(MODEL__PATH=tiny_folder, MODEL__COMPUTE_DTYPE="float32", CACHE=tmp_path / "cache", TASK__NUM_HELD_OUT=8)
    put_model(tiny_folder, tmp_path / "cache")
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    activate = f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"\n'
    (tmp_path / ".venv" / "bin" / "activate").write_text(activate)
    (tmp_path / ".venv" / ".done").touch()
    script = ""
    for language, _, text in BLOCK.findall(START.read_text(encoding="utf-8")):
        if language == "python":
            script += f"cat > {name_of(text)} <<'END'\n{text}END\n"
        elif language == "sh":
            script += text
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("held-out accuracy") >= 3, done.stdout + done.stderr  # of two runs, and shown again
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("guide", [path for path in WITH_COMMANDS if path != START], ids=lambda path: path.stem)
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
    assert commands


@pytest.mark.slow
@pytest.mark.skipif(not REAL_MODEL.is_dir(), reason="the model is not here: burnish model get smollm2-135m")
@pytest.mark.parametrize("guide", FOR_REAL, ids=lambda path: path.stem)
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
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus is here: make monitor-packages")
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
    told = [event["event"] for event in events]
    assert told[:3] == ["canary began", "promoted", "canary began"]
    # whether 120 customers are enough to tell the wrong weights hangs on how good training has made the others
    assert told[3:] in ([], ["rolled back"])
    if told[3:]:
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
            (folder / name_of(text)).write_text(text)
            continue
        assert language == "sh", language
        for line in text.strip().splitlines():
            yield line, bool(fails)


def name_of(text: str) -> str:
    """The file that a block is, by its first line."""
    found = re.match(r"# (\w+\.(py|yaml))\n", text)
    assert found, f"a block names no file: {text}"
    return found[1]


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
