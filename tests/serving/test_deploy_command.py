"""`burnish deploy` as its users meet it: evaluations, a registry, a real server, and the lines that are printed."""

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from burnish.cli.app import run
from burnish.serving.registry import find_entry

from .test_rest import ADMIN, CHAT, Server, ended, started

Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_teacher_folder: Path) -> Path:
    """Weights `one` and `two`, with an evaluation of `two` called after it."""
    made = tmp_path_factory.mktemp("deployed")
    shutil.copytree(tiny_folder, made / "weights" / "one")
    shutil.copytree(tiny_teacher_folder, made / "weights" / "two")
    with (made / "sums.jsonl").open("w") as file:
        for number in range(8):
            file.write(json.dumps({"prompt": f"{number} + 1?", "answer": str(number + 1)}) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        task = ["--task", "sums.jsonl", "--task.right_at", "1", "--sampling.max_tokens", "4"]
        assert run(["eval", "weights/two", *task, "--name", "two", "--model.compute_dtype", "float32"]) == 0
    return made


@pytest.fixture(scope="module")
def server(folder: Path, tiny_folder: Path) -> Iterator[Server]:
    made = started(folder / "weights", tiny_folder, "--deploy.min_answers", "10", "--deploy.max_answers", "10")
    yield made
    ended(made)


@pytest.fixture
def deploy(folder: Path, monkeypatch, capsys) -> Command:
    """`burnish deploy ...` there: status and what is said, of an error its one line."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BURNISH_ADMIN_KEY", ADMIN)

    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        status = run(["deploy", *arguments])
        said = capsys.readouterr()
        assert not status or (said.err.strip().count("\n") == 0 and not said.out)
        return status, said.out + said.err

    return call


WEIGHTS = ["--weights-folder", "weights"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weights/two"], "no evaluation speaks for it: run `burnish eval` on it and give --eval STORE, or --force"),
        (["weights/one", "--eval", "two"], "is an evaluation of other weights than"),
        (["elsewhere", "--eval", "two"], "does not lie below weights"),
        (["weights/two", "--eval", "none"], "none"),
    ],
)
def test_what_is_not_registered(folder: Path, deploy: Command, arguments: list[str], message: str) -> None:
    if not (folder / "elsewhere").exists():
        shutil.copytree(folder / "weights" / "two", folder / "elsewhere")
    status, said = deploy("register", *arguments, *WEIGHTS)
    assert status == 2 and message in said


def test_an_evaluation_that_was_changed_speaks_for_nothing(folder: Path, deploy: Command) -> None:
    (store,) = (folder / "evals").glob("two-*")
    shutil.copytree(store, folder / "changed")
    samples = folder / "changed" / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"score": 0', '"score": 1'))
    status, said = deploy("register", "weights/two", "--eval", "changed", *WEIGHTS)
    assert status == 2 and "samples.jsonl" in said
    shutil.rmtree(folder / "changed")


def test_a_registry_that_cannot_be_read(tmp_path: Path) -> None:
    from burnish.errors import DataError

    assert find_entry(tmp_path, "f") is None
    (tmp_path / "registry.jsonl").write_text('{"fingerprint": "f", "n": 1}\n{"fingerprint": "f", "n": 2}\n')
    assert find_entry(tmp_path, "f") == {"fingerprint": "f", "n": 2}
    (tmp_path / "registry.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"registry\.jsonl: cannot be read"):
        find_entry(tmp_path, "f")


@pytest.mark.slow
def test_a_deployment_from_end_to_end(server: Server, deploy: Command) -> None:
    to = ["--url", f"http://127.0.0.1:{server.admin_port}"]
    assert deploy("status", "tiny", *to) == (0, "nothing is being tried\n")
    status, said = deploy("start", "tiny", "two", *to)
    assert status == 2 and "these weights are not registered" in said
    status, said = deploy("register", "weights/two", "--eval", "two", *WEIGHTS)
    assert status == 0 and re.search(
        r"^accuracy 0\.000 \[0\.000, 0\.\d+\], n 8: .*\nregistered two \(\w{16}\)$", said, re.M
    )
    status, said = deploy("start", "tiny", "two", "--share", "0.5", *to)
    assert status == 0 and "canary: version 2 from two, share 0.5" in said

    def swap(path: str) -> int:
        return server.request("/admin/models/tiny/weights", {"path": path}, port=server.admin_port, key=ADMIN)[0]

    assert swap("one") == 400  # not while something is tried
    status, said = deploy("start", "tiny", "two", *to)
    assert status == 2 and "other weights are being tried" in said
    versions = [server.request("/v1/chat/completions", CHAT)[2]["x-weight-version"] for _ in range(12)]
    assert set(versions) == {"1", "2"}
    by_user = [server.request("/v1/chat/completions", {**CHAT, "user": "u"})[2]["x-weight-version"] for _ in range(6)]
    assert len(set(by_user)) == 1
    status, said = deploy("status", "tiny", "--json", *to)
    assert json.loads(said)["trial"]["answers"] == {
        "stable": versions.count("1") + by_user.count("1"),
        "canary": versions.count("2") + by_user.count("2"),
        "shadow": 0,
    }
    status, said = deploy("rollback", "tiny", "--reason", "a look", *to)
    assert status == 0 and "rolled back: root: a look" in said
    assert {server.request("/v1/chat/completions", CHAT)[2]["x-weight-version"] for _ in range(4)} == {"1"}
    assert swap("one") == 200  # version 3: that of what was rolled back never comes again
    status, said = deploy("start", "tiny", "two", "--arm", "shadow", "--share", "1", *to)
    assert status == 0 and "shadow: version 4" in said
    assert {server.request("/v1/chat/completions", CHAT)[2]["x-weight-version"] for _ in range(4)} == {"3"}
    status, said = deploy("promote", "tiny", *to)
    assert status == 0 and "nothing is being tried" in said and "promoted: root: as told" in said
    assert server.request("/v1/chat/completions", CHAT)[2]["x-weight-version"] == "4"
    events = [json.loads(line)["event"] for line in (server.folder / "deployments.jsonl").read_text().splitlines()]
    assert events == ["canary began", "rolled back", "shadow began", "promoted"]


@pytest.mark.parametrize(
    ("arguments", "message", "expected"),
    [
        (["start", "tiny", "two", "--share", "0"], "--share 0: must be above 0 and at most 1", 2),
        (["status", "tiny", "--url", "ftp://x"], "must begin with http", 2),
        (["status", "tiny", "--key-file", "none"], "--key-file none: cannot be read as text", 2),
        (["status", "tiny", "--url", "http://127.0.0.1:1"], "no server answers there", 3),
    ],
)
def test_mistakes_are_one_line(deploy: Command, arguments: list[str], message: str, expected: int) -> None:
    status, said = deploy(*arguments)
    assert status == expected and message in said


def test_without_a_key(deploy: Command, monkeypatch) -> None:
    monkeypatch.delenv("BURNISH_ADMIN_KEY")
    assert deploy("status", "tiny") == (2, "burnish: give the admin key: --key-file FILE, or BURNISH_ADMIN_KEY\n")


def test_a_server_that_is_silent_may_be_loading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BURNISH_ADMIN_KEY", ADMIN)
    monkeypatch.setattr("burnish.config.serving.LOAD_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert run(["deploy", "start", "sums", "two", "--url", url]) == 3
    said = capsys.readouterr().err
    assert said == (
        f"burnish: {url}: no answer in 0.2 s; weights may still be loading: ask `burnish deploy status sums`\n"
    )
