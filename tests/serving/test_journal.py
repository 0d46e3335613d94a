"""The store: SQLite as it is, and PostgreSQL as a server of its own that the test starts."""

import math
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.errors import ConfigError, MachineError, UserError
from burnish.serving.answers import Answered, Asked
from burnish.serving.asks import Arm, Token, Weights
from burnish.serving.database import Database, open_to_read
from burnish.serving.journal import Feedback, Journal, Rated
from burnish.serving.redaction import redacted

from .conftest import wait_for
from .test_rest import free_port

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
MakeAnswered = Callable[..., Answered]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Makes an empty database on a cluster of its own; its URL."""
    if not PROGRAMS:
        pytest.skip("there is no PostgreSQL: apt-get install postgresql")
    psycopg = pytest.importorskip("psycopg")
    programs, folder, port = PROGRAMS[-1].parent, tmp_path_factory.mktemp("postgres"), free_port()
    as_nobody: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses root
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        for each in (folder, *folder.parents):
            if each.stat().st_uid == 0 and each != Path("/") and each != Path("/tmp"):
                each.chmod(each.stat().st_mode | 0o011)
        shutil.chown(folder, 65534, 65534)
    made = subprocess.run(
        [*as_nobody, str(programs / "initdb"), "-D", str(folder / "data"), "-U", "burnish", "-A", "trust", "-N"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    assert made.returncode == 0, made.stderr
    options = ["-h", "127.0.0.1", "-p", str(port), "-k", "", "-c", "fsync=off"]
    command = [*as_nobody, str(programs / "postgres"), "-D", str(folder / "data"), *options]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True, cwd=folder)

        def is_ready() -> bool:
            try:
                psycopg.connect(f"postgresql://burnish@127.0.0.1:{port}/postgres", connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        wait_for(is_ready, 60)
        return process

    running = [start()]
    count = 0

    def make(*, anew: bool = False) -> str:
        nonlocal count
        if anew:  # the server ends at once and comes back
            running[0].send_signal(signal.SIGQUIT)
            running[0].wait(60)
            running[0] = start()
        else:
            count += 1
            with psycopg.connect(f"postgresql://burnish@127.0.0.1:{port}/postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE store{count}")
        return f"postgresql://burnish@127.0.0.1:{port}/store{count}"

    yield make
    running[0].send_signal(signal.SIGINT)
    try:
        running[0].wait(30)
    finally:
        running[0].kill()
        running[0].wait()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "folder" / "store.db")
    made: str = request.getfixturevalue("postgres")()
    return made


@pytest.fixture
def answered_of(load_tiny: Callable[..., Weights]) -> MakeAnswered:
    weights = load_tiny(7)

    def make(
        text: str = "Fine.", *, asked: str = "How are you?", owner: str = "ann", number: int = 0, **settings: Any
    ) -> Answered:
        arm: Arm = settings.pop("arm", "stable")
        request = settings.pop("request", None) or Asked(
            owner=owner, messages=[{"role": "user", "content": asked}], settings={"max_tokens": 5}
        )
        facts: dict[str, Any] = {"ending": "stop", "prompt_ids": (70, 71), "max_tokens": 5, "seconds": 2.5}
        own = Weights(name="tiny", version=7, fingerprint="f" * 64, policy=weights.policy, arm=arm)
        return Answered(request=request, number=number, weights=own, text=text, **(facts | settings))

    return make


def journal_of(url: str, **settings: Any) -> Journal:
    return Journal(url, **({"keep_days": 30, "redact": ("email", "card", "phone")} | settings))


def rows_of(url: str, table: str) -> list[dict[str, Any]]:
    database = open_to_read(url)
    found = database.run(f"SELECT * FROM {table}")
    database.close()
    return found


def told(journal: Journal, answered: Answered, *, owner: str = "ann", **said: Any) -> Rated | None:
    feedback = Feedback(request_id=answered.request.id, number=answered.number, owner=owner, **said)
    return journal.tell(feedback).result(30)


def test_what_is_kept(url: str, answered_of: MakeAnswered) -> None:
    answered = answered_of(token_ids=[5, 6], logprobs=[-1.0, -2.0], first_seconds=0.5)
    journal = journal_of(url)
    journal.answered(answered)
    journal.answered(answered_of(arm="shadow"))  # which nobody asked for
    raw = answered_of(request=Asked(owner="bob"), ending="cancelled")
    journal.answered(raw)
    journal.close()
    first, second = sorted(rows_of(url, "requests"), key=lambda row: str(row["owner"]))
    assert (first["id"], first["owner"], first["model"]) == (answered.request.id, "ann", "tiny")
    assert first["messages"] == '[{"role": "user", "content": "How are you?"}]' and first["settings"] == (
        '{"max_tokens": 5}'
    )
    assert first["asked"] == answered.request.at and second["messages"] is None
    by_request = {row["request_id"]: row for row in rows_of(url, "answers")}
    assert by_request[answered.request.id] == {
        "request_id": answered.request.id,
        "number": 0,
        "prompt": None,
        "text": "Fine.",
        "ending": "stop",
        "arm": "stable",
        "version": 7,
        "fingerprint": "f" * 64,
        "prompt_tokens": 2,
        "answer_tokens": 2,
        "mean_logprob": -1.5,
        "first_token_seconds": 0.5,
        "seconds": 2.5,
    }
    tokenizer = raw.weights.policy.tokenizer
    assert by_request[raw.request.id]["prompt"] == tokenizer.decode([70, 71])
    assert by_request[raw.request.id]["ending"] == "cancelled" and len(by_request) == 2


def test_log_probabilities_that_are_not_known_are_left_out(tmp_path: Path, answered_of: MakeAnswered) -> None:
    """As those of an answer with a form that vLLM made."""
    unknown, known = answered_of(), answered_of(number=1)
    for answered, logprob in ((unknown, math.nan), (known, -0.5)):
        answered.take(Token(5, "a", logprob))
        answered.take(Token(6, "b", logprob))
    assert (unknown.token_ids, unknown.logprobs, known.logprobs) == ([5, 6], [], [-0.5, -0.5])
    journal = journal_of(url := str(tmp_path / "store.db"))
    journal.answered(unknown)
    journal.answered(known)
    journal.close()
    assert {row["number"]: row["mean_logprob"] for row in rows_of(url, "answers")} == {0: None, 1: -0.5}


def test_feedback_is_of_ones_own_answers_and_can_be_added_to(url: str, answered_of: MakeAnswered) -> None:
    journal = journal_of(url)
    first = answered_of()
    second = answered_of("Not so bad.", number=1, request=first.request)
    journal.answered(first)
    journal.answered(second)
    found = told(journal, first, rating="bad", is_preferred=True)
    assert found is not None and (found.model, found.arm, found.fingerprint) == ("tiny", "stable", "f" * 64)
    assert found.asked == first.request.at
    assert told(journal, first, owner="bob", rating="good") is None  # it is ann's
    assert told(journal, answered_of(number=5, request=first.request), rating="good") is None
    assert told(journal, answered_of(), rating="good") is None  # never written
    told(journal, first, rating="good", comment="on reflection")
    told(journal, first, correction="Well, thank you.")  # the rating and the comment stay
    told(journal, second, is_preferred=True)  # one is the best
    journal.close()
    rows = {row["number"]: row for row in rows_of(url, "feedback")}
    assert len(rows) == 2
    kept = {name: rows[0][name] for name in ("owner", "rating", "is_preferred", "correction", "comment")}
    assert kept == {
        "owner": "ann",
        "rating": "good",
        "is_preferred": 0,
        "correction": "Well, thank you.",
        "comment": "on reflection",
    }
    assert rows[1]["is_preferred"] == 1 and rows[1]["rating"] is None


def test_what_is_older_is_removed_with_what_was_said_of_it(url: str, answered_of: MakeAnswered) -> None:
    now = time.time()
    old = answered_of(request=Asked(owner="ann", messages=[], at=now - 3 * 86400))
    young = answered_of(request=Asked(owner="ann", messages=[], at=now - 1 * 86400))
    journal = journal_of(url, keep_days=30)
    for each in (old, young):
        journal.answered(each)
        told(journal, each, rating="good")
    journal.close()
    journal = journal_of(url, keep_days=2)
    wait_for(lambda: len(rows_of(url, "requests")) == 1)  # without that anybody asks
    journal.close()
    assert [row["id"] for row in rows_of(url, "requests")] == [young.request.id]
    assert [row["request_id"] for row in rows_of(url, "answers")] == [young.request.id]
    assert [row["request_id"] for row in rows_of(url, "feedback")] == [young.request.id]


def test_texts_that_a_database_cannot_hold(url: str, answered_of: MakeAnswered) -> None:
    journal, lost = journal_of(url), list[int]()
    journal.on_lost = lambda: lost.append(1)
    strange = "a\x00b\ud800c\U0001f600"
    answered = answered_of(strange, asked=strange)
    journal.answered(answered)
    assert told(journal, answered, correction=strange, comment=strange) is not None
    journal.close()
    assert not lost
    expected = "a\ufffdb\ufffdc\U0001f600"
    assert rows_of(url, "answers")[0]["text"] == expected
    assert rows_of(url, "feedback")[0]["correction"] == expected


def test_what_is_blotted_out_everywhere(url: str, answered_of: MakeAnswered) -> None:
    secret = "ann@example.org"
    said = [{"role": "user", "content": f"I am {secret}", "name": secret}]
    request = Asked(owner="ann", user=secret, messages=said, settings={"user": secret, "stop": [secret]})
    raw = Asked(owner="ann", settings={"user": secret})
    journal = journal_of(url)
    answered = answered_of(f"Hello {secret}", request=request)
    journal.answered(answered)
    tokens = answered.weights.policy.tokenizer(f"Write to {secret}")["input_ids"]
    journal.answered(answered_of(request=raw, prompt_ids=tuple(tokens)))
    told(journal, answered, correction=f"Dear {secret}", comment=secret)
    journal.close()
    everything = str([rows_of(url, table) for table in ("requests", "answers", "feedback")])
    assert secret not in everything and everything.count("[email]") == 9


@given(
    st.sampled_from(
        [
            "ann.lee+x@mail.example.org",
            "4111 1111 1111 1111",
            "4111111111111111",
            "5500-0000-0000-0004",
            "+49 30 1234567",
            "(555) 123-4567",
            "555-123-4567",
            "0301234567",
            "+1 555 123 4567",
        ]
    ),
    st.text(alphabet=" abcxyz,.!?\n", max_size=20),
    st.text(alphabet=" abcxyz,.!?\n", max_size=20),
)
def test_what_is_blotted_out_is_gone(secret: str, before: str, after: str) -> None:
    found = redacted(f"{before} {secret} {after}", ("email", "card", "phone"))
    digits = "".join(each for each in secret if each.isdigit())
    assert secret not in found and (not digits or digits[-6:] not in found.replace(" ", ""))
    assert found.startswith(before) and found.endswith(after) and found.count("[") == 1


@pytest.mark.parametrize(
    "text",
    [
        "2 + 2 = 4",
        "1,234",
        "1,234,567 people",
        "3.14159265358979",
        "on 2026-11-28 and 28.11.2026 and 11/28/2026",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
        "192.168.100.200",
        "1234567",
        "at 12:30:45",
        "user@home",
    ],
)
def test_ordinary_numbers_stay(text: str) -> None:
    assert redacted(text, ("email", "card", "phone")) == text


@given(st.integers(0, 999_999), st.integers(0, 999_999), st.sampled_from("+*=,"))
def test_sums_stay(a: int, b: int, sign: str) -> None:
    text = f"{a} {sign} {b} = {a + b}, or {a:,} {sign} {b:,}"
    assert redacted(text, ("email", "card", "phone")) == text


def test_an_address_is_blotted_out_where_it_is_told() -> None:
    assert redacted("from 10.0.0.1, port 80", ("address",)) == "from [address], port 80"
    assert redacted("x" * 100_000 + "@" * 100_000, ("email", "card", "phone", "address"))  # in time


def test_only_the_owner_of_the_server_reads_the_file(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    journal_of(str(file)).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_another_format_is_refused(url: str) -> None:
    journal_of(url).close()
    database = Database(url)
    with database.transaction() as run:
        run("UPDATE burnish_format SET format = 99")
    database.close()
    with pytest.raises(ConfigError, match=r"^store\.url: was written by another version of burnish \(format 99\)$"):
        journal_of(url)


def test_what_is_no_store_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE answers (x)")
    connection.commit()
    connection.close()
    before = other.read_bytes()
    with pytest.raises(ConfigError, match="is no store of burnish's, and has answers"):
        journal_of(str(other))
    with pytest.raises(MachineError, match="--store: is no store of burnish's"):
        open_to_read(str(other))
    text = tmp_path / "text"
    text.write_text("hello" * 1000)
    for url, message in ((str(text), "is not a database"), ("mysql://x", "give a file for SQLite, or postgresql")):
        with pytest.raises(ConfigError, match=message):
            journal_of(url)
    with pytest.raises(UserError, match="there is no such store"):
        open_to_read(str(tmp_path / "none"))
    assert other.read_bytes()[100:] == before[100:] and not (tmp_path / "none").exists()


def test_a_database_that_is_not_there_is_one_line() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ConfigError) as caught:
        journal_of(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    assert str(caught.value).startswith("store.url: cannot be used as a store: ") and "\n" not in str(caught.value)


def test_a_locked_database_costs_what_is_written_meanwhile(
    tmp_path: Path, answered_of: MakeAnswered, monkeypatch
) -> None:
    from burnish.serving import database

    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.1)
    url, lost = str(tmp_path / "store.db"), list[int]()
    journal = journal_of(url)
    journal.on_lost = lambda: lost.append(1)
    before = answered_of("before")
    journal.answered(before)
    wait_for(lambda: len(rows_of(url, "answers")) == 1)
    locking = sqlite3.connect(url)
    locking.execute("BEGIN IMMEDIATE")
    journal.answered(answered_of("meanwhile"))  # returns, though the lock is held until further below
    wait_for(lambda: len(lost) == 1)
    with pytest.raises(MachineError, match="the store cannot be written"):
        told(journal, before, rating="good")
    locking.rollback()
    locking.close()
    journal.answered(answered_of("after"))
    journal.close()
    assert sorted(row["text"] for row in rows_of(url, "answers")) == ["after", "before"] and len(lost) == 1


def test_a_full_disk_costs_what_is_written_meanwhile(tmp_path: Path, answered_of: MakeAnswered) -> None:
    """A database that may have no more pages says what a full disk says."""
    url, lost = str(tmp_path / "store.db"), list[int]()
    journal = journal_of(url)
    journal.on_lost = lambda: lost.append(1)
    assert journal._database is not None
    (pages,) = journal._database.run("PRAGMA page_count")[0].values()
    journal._database.run(f"PRAGMA max_page_count = {pages + 2}")
    journal.answered(answered_of("x" * 100_000))
    journal.answered(answered_of("small"))
    journal.close()
    assert len(lost) == 1 and [row["text"] for row in rows_of(url, "answers")] == ["small"]


def test_a_database_that_hangs_takes_no_more_memory_than_it_may(
    tmp_path: Path, answered_of: MakeAnswered, monkeypatch
) -> None:
    """What waits is bounded and holds no weights; the end does not wait for it for ever."""
    import threading

    from burnish.serving import journal as module

    monkeypatch.setattr(module, "_MOST_PENDING_BYTES", 20_000)
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.2)
    lost, hangs = list[int](), threading.Event()
    journal = journal_of(str(tmp_path / "store.db"))
    journal.on_lost = lambda: lost.append(1)
    assert journal._add(0, lambda: hangs.wait(60) and None)
    for _ in range(50):
        journal.answered(answered_of("x" * 1000))
    assert 35 <= len(lost) <= 45  # each is its text and about a thousand bytes
    with pytest.raises(MachineError, match="too far behind"):
        told(journal, answered_of(), rating="good", comment="y" * 5000)
    began = time.monotonic()
    journal.close()
    assert time.monotonic() - began < 5
    hangs.set()


def test_two_servers_on_one_postgresql(postgres: Callable[..., str], answered_of: MakeAnswered) -> None:
    """They start at once; feedback reaches either; each writes its own."""
    from concurrent.futures import ThreadPoolExecutor

    url = postgres()
    with ThreadPoolExecutor(8) as pool:
        journals = list(pool.map(lambda _: journal_of(url), range(8)))
    answers = [answered_of(f"answer {n}") for n in range(40)]
    for number, each in enumerate(answers):
        journals[number % 8].answered(each)
    wait_for(lambda: len(rows_of(url, "answers")) == 40)
    assert told(journals[3], answers[0], rating="good") is not None
    assert told(journals[5], answers[0], rating="bad") is not None
    for journal in journals:
        journal.close()
    assert [row["rating"] for row in rows_of(url, "feedback")] == ["bad"]
    assert len(rows_of(url, "burnish_format")) == 1


def test_a_postgresql_that_starts_anew_loses_nothing(postgres: Callable[..., str], answered_of: MakeAnswered) -> None:
    url, lost = postgres(), list[int]()
    journal = journal_of(url)
    journal.on_lost = lambda: lost.append(1)
    journal.answered(answered_of("before"))
    wait_for(lambda: len(rows_of(url, "answers")) == 1)
    postgres(anew=True)
    answered = answered_of("after")
    journal.answered(answered)
    assert told(journal, answered, rating="good") is not None
    journal.close()
    assert not lost and len(rows_of(url, "answers")) == 2
