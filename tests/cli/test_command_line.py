"""The command line as one thing: examples, mistakes, exit statuses, completion, colours."""

import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from burnish import cli
from burnish.cli.app import app, run

BOXES = set("╭╮╰╯│─┃━┏┓┗┛┡┩└┘├┤")


def commands(parent: App = app, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    """Every command and group of commands, with the words that name it."""
    yield path, parent
    for name in parent:
        if not name.startswith("-"):
            yield from commands(parent[name], (*path, name))


ALL = dict(commands())


def examples(text: str) -> list[list[str]]:
    """The words of each example of a help text, up to where it redirects."""
    found = [" ".join(each.split()) for each in re.findall(r"Example: (.+?)(?=\n\s*\n|\s*$)", text, re.DOTALL)]
    return [shlex.split(each.partition(" > ")[0]) for each in found]


def test_all_commands_are_walked() -> None:
    assert {("power", "items"), ("eval", "show"), ("eval",), ("completion",), ()} <= set(ALL)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_has_an_example_that_can_be_typed(path: tuple[str, ...], capsys) -> None:
    assert run([*path, "--help"]) == 0
    out = capsys.readouterr().out
    shown = examples(ALL[path].help)
    assert shown and out.count("Example: ") == len(shown)
    for program, *words in shown:
        assert program == "burnish" and tuple(words[: len(path)]) == path
        command, _, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        assert command.__name__ != "help_print", words


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("trian", 'Unknown command "trian". Did you mean "train"?'),
        ("power itms", 'Did you mean "items"? Available commands: items, seeds, samples. See: burnish power --help'),
        ("show last --stp 3", "Unknown option: --stp. Did you mean --step? See: burnish show --help"),
        ("runs --jsn", "Did you mean --json?"),
        ("show", "show: RUN is missing. See: burnish show --help"),
        ("show a b", "show: 'b' is one word too many. See: burnish show --help"),
        ("show last --step", "show: --step needs a value. See: burnish show --help"),
        ("show last --step x", 'Invalid value for --step: unable to convert "x" into int.'),
        ("power items --design foo", 'Choose from: "paired", "independent", "fixed". See: burnish power items --help'),
        ("eval shwo last", "did you mean: burnish eval show last"),
        ("monitor runbook trainingsilent", "did you mean TrainingSilent?"),
        ("check loss own_losses.focal", "is not of the form package.module:name, such as own_losses:focal"),
        ("check loss own_loses:focal", "did you mean own_losses:focal?"),
        ("check loss own_losses.py:focal", "write own_losses:focal"),
        ("check loss own_losses:focl", "did you mean own_losses:focal?"),
        ("train quickstart --train a:b", "--train '{...}' as JSON"),
        ("train sft --data.source x.jsonl --loss own_losses:focal", '--loss \'{"own": "own_losses:focal"}\' as JSON'),
        ("train grpo --optimizer.lr 1e-4", "did you mean 'optimizer.learning_rate'?"),
        ("show last", "there is no run in runs yet; `burnish train quickstart` makes one"),
        ("eval show last", "there is no eval store in evals yet; `burnish eval MODEL --task TASK` makes one"),
        ("compare m000 m001", "an eval store is given by its folder, as evals/NAME"),
        ("train quickstart --stop-aftr 3", "did you mean '--stop-after'?"),
        ("train quickstart --stop-aftr=3", "did you mean '--stop-after'?"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    words: str, says: str, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_losses.py").write_text("def focal(scored, batch): ...\n")
    assert run(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err


def test_no_words_show_the_commands(capsys) -> None:
    assert run([]) == 0
    assert "Example: burnish train quickstart" in capsys.readouterr().out


def test_each_status_has_one_meaning(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["runs"]) == 0
    (tmp_path / "generous_rewards.py").write_text("def score(completion, task):\n    return 1.0\n")
    assert run(["check", "reward", "generous_rewards:score"]) == 1
    assert run(["show", "nothing"]) == 2
    monkeypatch.setenv("BURNISH_ADMIN_KEY", "key")
    assert run(["deploy", "status", "sums", "--url", "http://127.0.0.1:9"]) == 3

    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("burnish.cli.runs.print_runs", interrupted)
    assert run(["runs"]) == 130

    def faulty(*_: object, **__: object) -> int:
        raise ZeroDivisionError

    capsys.readouterr()
    monkeypatch.setattr("burnish.cli.runs.print_runs", faulty)
    monkeypatch.setattr(sys, "argv", ["burnish", "runs"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert ended.value.code == 4 and "ZeroDivisionError" in err and "fault of burnish itself" in err


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell that finds `burnish`."""
    program = tmp_path / "bin" / "burnish"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m burnish "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


_ASK = """
source <(burnish completion bash)
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
$(complete -p burnish | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ex"], {"experiment", "export"}),
        (["power", ""], {"items", "seeds", "samples"}),
        (["power", "items", "--ba"], {"--baseline"}),
        (["power", "items", "--design", ""], {"paired", "independent", "fixed"}),
        (["train", "quick"], {"quickstart"}),
        (["show", ""], {"last", "plain-1a2b3c", "clipped-4d5e6f"}),
        (["show", "--runs-folder", "elsewhere", ""], {"last", "old-7a8b9c"}),
        (["eval", "show", "pl"], {"plain-store"}),
    ],
)
def test_bash_completes(words: list[str], offered: set[str], shell: dict[str, str], tmp_path: Path) -> None:
    for folder, record in (
        ("runs/plain-1a2b3c", "run.json"),
        ("runs/clipped-4d5e6f", "run.json"),
        ("runs/no-run", "other.json"),
        ("elsewhere/old-7a8b9c", "run.json"),
        ("evals/plain-store", "eval.json"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / record).write_text("{}")
    command = ["bash", "-c", _ASK, "bash", "burnish", *words]
    done = subprocess.run(command, env=shell, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_completion_script_stands_alone(name: str, capsys, shell: dict[str, str]) -> None:
    assert run(["completion", name]) == 0
    script, err = capsys.readouterr()
    assert err == "" and "quickstart" not in script  # names are looked up when Tab is pressed
    for word in ("experiment", "runs-folder", "paired"):
        assert word in script
    program = next((each for each in os.get_exec_path() if (Path(each) / name).is_file()), None)
    if program is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([name, "-n"], input=script, capture_output=True, text=True, timeout=60, env=shell)
    assert (done.returncode, done.stderr) == (0, "")


def on_terminal(words: list[str], **variables: str) -> str:
    """What a command prints where standard output is a terminal."""
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment = {**clean, "TERM": "xterm-256color", "COLUMNS": "80", **variables}
    command = [sys.executable, "-m", "burnish", *words]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        while chunk := _read(ours):
            said += chunk
        process.wait(60)
    os.close(ours)
    return said.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux says so at the end of a terminal
        return b""


def test_colours_are_for_terminals_that_want_them() -> None:
    colour = re.compile(r"\x1b\[[\d;]*3\d")
    shown = on_terminal(["power", "--help"])
    assert colour.search(shown) and "╭" in shown
    assert not colour.search(on_terminal(["power", "--help"], NO_COLOR="1"))
    assert "\x1b" not in on_terminal(["power", "--help"], TERM="dumb")


def test_a_pipe_gets_whole_lines_without_boxes() -> None:
    def piped(**variables: str) -> str:
        clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        command = [sys.executable, "-m", "burnish", "--help"]
        environment = {**clean, **variables}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment).stdout

    plain = piped()
    assert not BOXES & set(plain) and "\x1b" not in plain
    assert (
        "  compare: Compare what two or more models, checkpoints, runs or methods score on the same items.\n" in plain
    )
    assert "\x1b" in piped(FORCE_COLOR="1")
