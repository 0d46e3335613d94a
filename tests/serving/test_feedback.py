"""From what people say of answers to what a model is trained on: by hand, and through the real server."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.cli.app import run
from burnish.serving.answers import Answered, Asked
from burnish.serving.asks import Weights
from burnish.serving.database import open_to_read
from burnish.serving.export import feedback_examples, feedback_pairs
from burnish.serving.journal import Feedback, Journal

from .test_rest import ADMIN, CHAT, KEY, Server, ended, started


@pytest.fixture
def keep(tmp_path: Path, load_tiny: Callable[..., Weights]) -> Iterator[Callable[..., None]]:
    """Writes a request with its answers, each (text, ending, what is said of it)."""
    journal = Journal(str(tmp_path / "store.db"), keep_days=30, redact=())
    weights, count = load_tiny(3), itertools.count()

    def write(
        asked: str | None, *answers: tuple[str, str, dict[str, Any]], owner: str = "ann", at: float = 0.0
    ) -> None:
        messages = None if asked is None else [{"role": "user", "content": asked}]
        request = Asked(owner=owner, messages=messages, at=at or 1e12 + next(count))
        for number, (text, ending, said) in enumerate(answers):
            facts: dict[str, Any] = {"text": text, "ending": ending, "prompt_ids": (70,), "max_tokens": 5}
            journal.answered(Answered(request=request, number=number, weights=weights, **facts))
            if said:
                journal.tell(Feedback(request_id=request.id, number=number, owner=owner, **said)).result(30)
        journal.tell(Feedback(request_id="none", number=0, owner=owner)).result(30)  # after all that was written

    yield write
    journal.close()


def pairs(folder: Path, **wanted: Any) -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected)."""
    database = open_to_read(str(folder / "store.db"))
    rows = list(feedback_pairs(database, **wanted))
    database.close()
    assert all(row["rejected_version"] == 3 for row in rows)
    return [(row["prompt"][-1]["content"], row["chosen"], row["rejected"]) for row in rows]


def examples(folder: Path) -> list[tuple[str, str]]:
    database = open_to_read(str(folder / "store.db"))
    rows = list(feedback_examples(database))
    database.close()
    return [(row["prompt"][-1]["content"], row["completion"]) for row in rows]


GOOD, BAD, BEST = {"rating": "good"}, {"rating": "bad"}, {"is_preferred": True}


def test_a_correction_is_better_than_what_it_corrects(keep, tmp_path: Path) -> None:
    keep("1 + 1?", ("3", "stop", {"correction": "2"}), ("1", "stop", {}))
    keep("2 + 2?", ("4", "stop", {"correction": "4"}))  # which says nothing
    assert pairs(tmp_path) == [("1 + 1?", "2", "3")]
    assert sorted(examples(tmp_path)) == [("1 + 1?", "2"), ("2 + 2?", "4")]


def test_the_best_is_better_than_the_others_of_its_request(keep, tmp_path: Path) -> None:
    keep("a?", ("x", "stop", {}), ("y", "stop", BEST), ("z", "length", {}))
    keep("a?", ("w", "stop", {}))  # another request for the same
    assert pairs(tmp_path) == [("a?", "y", "x"), ("a?", "y", "z")]
    assert examples(tmp_path) == [("a?", "y")]


def test_good_is_better_than_bad_over_one_prompt(keep, tmp_path: Path) -> None:
    keep("a?", ("good 1", "stop", GOOD))
    keep("a?", ("bad 1", "stop", BAD), owner="bob")
    keep("a?", ("bad 2", "length", BAD), ("good 2", "stop", GOOD))
    keep("b?", ("bad 3", "stop", BAD))  # to another prompt
    assert sorted(pairs(tmp_path)) == sorted(
        ("a?", good, bad) for good in ("good 1", "good 2") for bad in ("bad 1", "bad 2")
    )
    assert sorted(examples(tmp_path)) == [("a?", "good 1"), ("a?", "good 2")]


def test_what_was_cut_off_is_never_chosen(keep, tmp_path: Path) -> None:
    keep("a?", ("cut", "length", {**GOOD, **BEST}), ("bad", "stop", BAD))
    keep("c?", ("cut", "length", {"correction": "whole"}))
    assert pairs(tmp_path) == [("c?", "whole", "cut")] and examples(tmp_path) == [("c?", "whole")]


def test_what_is_said_twice_is_there_once(keep, tmp_path: Path) -> None:
    for owner in ("ann", "bob"):
        keep("a?", ("x", "stop", {}), ("y", "stop", BEST), owner=owner)
    keep("a?", ("y", "stop", GOOD), ("x", "stop", BAD))
    assert pairs(tmp_path) == [("a?", "y", "x")] and examples(tmp_path) == [("a?", "y")]


@pytest.mark.parametrize("ending", ["failed", "late", "cancelled"])
def test_what_is_left_out(keep, tmp_path: Path, ending: str) -> None:
    """Raw completions, answers that are none, and those without words, which training does not take."""
    keep(None, ("x", "stop", BEST), ("y", "stop", {}))
    keep("a?", ("x", ending, GOOD), ("y", "stop", BAD))
    keep("b?", ("", "stop", BEST), (" ", "stop", {"correction": " \n"}), ("z", "stop", {}))
    keep(" ", ("x", "stop", BEST), ("y", "stop", {}))
    assert pairs(tmp_path) == [] and examples(tmp_path) == []


def test_what_is_of_another_model_or_older(keep, tmp_path: Path) -> None:
    keep("a?", ("x", "stop", {}), ("y", "stop", BEST), at=1000.0)
    assert pairs(tmp_path, model="tiny", since=1000.0) == [("a?", "y", "x")]
    assert pairs(tmp_path, model="other") == pairs(tmp_path, since=1000.5) == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fed")
    made = started(folder, tiny_folder, "--store.url", str(folder / "store.db"))
    yield made
    ended(made)


def test_feedback_over_http(server: Server) -> None:
    chat = server.request("/v1/chat/completions", {**CHAT, "n": 2})[1]
    said = {"response_id": chat["id"], "index": 1, "rating": "good", "best": True, "comment": "fine"}
    assert server.request("/v1/feedback", said)[:2] == (200, {"status": "kept"})
    metrics = server.request("/metrics", key=ADMIN)[1].splitlines()
    for kind in ("good", "best"):
        (line,) = [each for each in metrics if each.startswith("burnish_serve_feedback_total{") and f'"{kind}"' in each]
        assert '"tiny"' in line and '"stable"' in line and line.endswith(" 1.0")
    for change in ({"response_id": "chatcmpl-none"}, {"index": 2}):
        status, found, _ = server.request("/v1/feedback", said | change)
        assert status == 404 and found["error"]["param"] == "response_id"
    # the admin has a key of his own, and so has other answers
    assert server.request("/v1/feedback", said, key=ADMIN)[0] == 404
    for change, parameter in (
        ({"rating": "so so"}, "rating"),
        ({"index": -1}, "index"),
        ({"correction": ""}, "correction"),
        ({"comment": "x" * 10_001}, "comment"),
        ({"stars": 5}, "stars"),
    ):
        status, found, _ = server.request("/v1/feedback", said | change)
        assert status == 400 and found["error"]["param"] == parameter
    status, found, _ = server.request("/v1/feedback", {"response_id": chat["id"]})
    assert status == 400 and "give a rating, best, a correction or a comment" in found["error"]["message"]


def test_feedback_without_a_store_is_one_line(tmp_path: Path, tiny_folder: Path) -> None:
    server = started(tmp_path, tiny_folder)
    status, found, _ = server.request("/v1/feedback", {"response_id": "x", "rating": "good"})
    assert status == 400
    assert found["error"]["message"] == "this server keeps no answers: it was started without store.url"
    ended(server)


@pytest.mark.slow
def test_training_takes_what_was_said(server: Server, tiny_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """As it is, for dpo and for sft, with what people send: developers, names, two systems."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": f"What is {number} + 1?", "name": "Ann"},
        ]
        body = {**CHAT, "messages": messages, "max_tokens": 4, "ignore_eos": True}
        chat = server.request("/v1/chat/completions", body)[1]
        said = {"response_id": chat["id"], "correction": f"It is {number + 1}."}
        assert server.request("/v1/feedback", said)[0] == 200
    store = str(server.folder / "store.db")
    trained = ["--model.path", str(tiny_folder), "--model.compute_dtype", "float32", "--train.num_steps", "2"]
    for kind, algorithm in (("pairs", "dpo"), ("sft", "sft")):
        assert run(["feedback", "export", f"{kind}.jsonl", "--store", store, "--kind", kind, "--model", "tiny"]) == 0
        said = capsys.readouterr().out
        assert f"burnish train {algorithm} --data.source {kind}.jsonl" in said
        rows = (tmp_path / f"{kind}.jsonl").read_text().splitlines()
        assert sum("What is" in row for row in rows) == 12  # the others are of other tests
        command = ["train", algorithm, "--data.source", f"{kind}.jsonl", "--data.num_held_out", "4", *trained]
        assert run(command) == 0, capsys.readouterr().err
    for arguments, message in (
        (["--store", "none.db"], "there is no such store"),
        (["--store", store, "--since", "soon"], "is no time"),
        (["--store", store, "--since", "2999-01-01"], "holds no feedback that makes pairs"),
    ):
        assert run(["feedback", "export", "out.jsonl", *arguments]) == 2
        said = capsys.readouterr().err.strip()
        assert message in said and "\n" not in said and not Path("out.jsonl").exists()


def test_the_answer_that_a_client_leaves_is_kept_as_such(server: Server) -> None:
    import socket

    from .conftest import wait_for

    def kept() -> list[dict[str, Any]]:
        database = open_to_read(str(server.folder / "store.db"))
        found = database.run("SELECT ending FROM answers WHERE ending = 'cancelled'")
        database.close()
        return found

    raw = json.dumps({**CHAT, "max_tokens": 450, "ignore_eos": True, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        wait_for(lambda: server.request("/progress")[1]["running"] > 0)
    wait_for(lambda: len(kept()) == 1)


@pytest.mark.slow
def test_an_answer_is_given_while_the_store_is_locked(server: Server) -> None:
    """And counted as lost; a rating, which is nothing but stored, is refused with 503."""
    import sqlite3

    from .conftest import wait_for

    def unstored() -> float:
        metrics = server.request("/metrics", key=ADMIN)[1].splitlines()
        return sum(float(each.split()[-1]) for each in metrics if each.startswith("burnish_serve_unstored_total"))

    chat = server.request("/v1/chat/completions", CHAT)[1]
    said = {"response_id": chat["id"], "rating": "good"}
    assert server.request("/v1/feedback", said)[0] == 200 and unstored() == 0
    locking = sqlite3.connect(server.folder / "store.db", isolation_level=None)
    locking.execute("BEGIN IMMEDIATE")
    assert server.request("/v1/chat/completions", CHAT)[0] == 200
    wait_for(lambda: unstored() == 1, 30)
    status, found, headers = server.request("/v1/feedback", said)
    assert status == 503 and "the store does not answer" in found["error"]["message"] and "retry-after" in headers
    locking.execute("ROLLBACK")
    locking.close()
    assert server.request("/v1/feedback", said)[0] == 200
