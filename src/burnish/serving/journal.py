"""What was asked, what was answered by which weights, and what people said of it: in SQLite, or in PostgreSQL where
several servers share it.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from burnish.errors import ConfigError, MachineError, UserError
from burnish.serving.answers import Answered
from burnish.serving.asks import Arm
from burnish.serving.redaction import redacted

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_LOCK_SECONDS = 10.0
_MOST_PENDING = 10_000  # what is to be written and is not yet; more is lost, and counted
_CLEAN_EVERY_SECONDS = 3600.0
_TABLES = (
    "CREATE TABLE IF NOT EXISTS burnish_format (format INTEGER NOT NULL)",
    """CREATE TABLE IF NOT EXISTS requests (
        id TEXT PRIMARY KEY, asked DOUBLE PRECISION NOT NULL, owner TEXT NOT NULL, model TEXT NOT NULL, messages TEXT,
        settings TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS answers (
        request_id TEXT NOT NULL REFERENCES requests (id) ON DELETE CASCADE, number INTEGER NOT NULL, prompt TEXT,
        text TEXT NOT NULL, ending TEXT NOT NULL, arm TEXT NOT NULL, version INTEGER NOT NULL,
        fingerprint TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL,
        mean_logprob DOUBLE PRECISION, first_token_seconds DOUBLE PRECISION, seconds DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (request_id, number))""",
    """CREATE TABLE IF NOT EXISTS feedback (
        request_id TEXT NOT NULL, number INTEGER NOT NULL, owner TEXT NOT NULL, told DOUBLE PRECISION NOT NULL,
        rating TEXT, is_preferred INTEGER NOT NULL, correction TEXT, comment TEXT,
        PRIMARY KEY (request_id, number, owner),
        FOREIGN KEY (request_id, number) REFERENCES answers (request_id, number) ON DELETE CASCADE)""",
    "CREATE INDEX IF NOT EXISTS requests_by_time ON requests (asked)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What somebody says of an answer: good or bad, that it is the best of its request, what it should have been."""

    request_id: str
    number: int
    owner: str
    rating: str | None = None
    is_preferred: bool = False
    correction: str | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """An answer that was found, with what the gate of a deployment and the metrics want to know of it."""

    model: str
    arm: Arm
    version: int


class Database:
    """A connection by URL: a path, or postgresql://... One thread at a time uses it."""

    def __init__(self, url: str) -> None:
        """Raises a ConfigError where it cannot be opened, or holds something else."""
        self._is_postgres = url.startswith(("postgresql://", "postgres://"))
        try:
            self._connection = _connect_postgres(url) if self._is_postgres else _connect_sqlite(url)
            for table in _TABLES:
                self.run(table)
            known = self.run("SELECT format FROM burnish_format")
            if not known:
                self.run("INSERT INTO burnish_format VALUES (?)", _FORMAT)
            self.commit()
        except Exception as error:
            raise ConfigError(f"store.url: cannot be used as a store: {_first_line(error)}") from error
        if known and known[0]["format"] != _FORMAT:
            raise ConfigError(f"store.url: was written by another version of burnish (format {known[0]['format']})")

    def run(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """The rows that a statement gives."""
        cursor = self._connection.execute(statement.replace("?", "%s") if self._is_postgres else statement, values)
        if cursor.description is None:
            return []
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def commit(self) -> None:
        """Keep what was run since."""
        self._connection.commit()

    def undo(self) -> None:
        """Forget what was run since."""
        self._connection.rollback()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


class Journal:
    """Keeps requests, answers and feedback for `keep_days`. It writes in a thread of its own, in the order of what
    happened; `on_lost` hears when something could not be written.
    """

    def __init__(self, url: str, *, keep_days: float, redact: Sequence[str]) -> None:
        """Raises a ConfigError where the store cannot be opened."""
        self._keep_seconds, self._redact = keep_days * 86400, tuple(redact)
        self.on_lost: Callable[[], None] = lambda: None
        self._thread = ThreadPoolExecutor(1, "burnish-store")
        self._pending = 0
        self._lock = threading.Lock()
        self._cleaned = 0.0
        self._database = self._thread.submit(Database, url).result(_LOCK_SECONDS + 5)

    def answered(self, answered: Answered) -> None:
        """Write an answer that is over, with its request. Returns at once."""
        if answered.weights.arm == "shadow":
            return
        with self._lock:
            is_full = self._pending >= _MOST_PENDING
            self._pending += not is_full
        if is_full:
            self.on_lost()
        else:
            self._thread.submit(self._write, answered)

    def tell(self, feedback: Feedback) -> Future[Rated | None]:
        """Write feedback; the answer that it is of, or None where this owner asked for no such answer."""
        return self._thread.submit(self._tell, feedback)

    def close(self) -> None:
        """Write what is still to be written, then end."""
        self._thread.submit(self._database.close)
        self._thread.shutdown(wait=True)

    def _write(self, answered: Answered) -> None:
        try:
            with self._transaction() as run:
                self._insert(run, answered)
                if time.time() - self._cleaned > _CLEAN_EVERY_SECONDS:
                    self._cleaned = time.time()
                    run("DELETE FROM requests WHERE asked < ?", self._cleaned - self._keep_seconds)
        except Exception:  # a full disk, a database that is gone: the answer was given, and that is told
            _LOG.exception("an answer could not be stored")
            self.on_lost()
        finally:
            with self._lock:
                self._pending -= 1

    def _insert(self, run: Callable[..., Any], answered: Answered) -> None:
        request, weights, timing = answered.request, answered.weights, answered.timing
        said = request.messages
        messages = None if said is None else json.dumps([self._clean_message(each) for each in said])
        prompt = (
            None if said is not None else self._clean(str(weights.policy.tokenizer.decode(list(answered.prompt_ids))))
        )
        settings = json.dumps(dict(request.settings))
        run(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            request.id,
            request.at,
            request.owner,
            weights.name,
            messages,
            settings,
        )
        run(
            f"INSERT INTO answers VALUES ({', '.join('?' * 13)})",
            request.id,
            answered.number,
            prompt,
            self._clean(answered.text),
            answered.ending,
            weights.arm,
            weights.version,
            weights.fingerprint,
            len(answered.prompt_ids),
            len(answered.token_ids),
            sum(answered.logprobs) / len(answered.logprobs) if answered.logprobs else None,
            None if timing is None else timing.queue + timing.prefill,
            answered.seconds,
        )

    def _tell(self, feedback: Feedback) -> Rated | None:
        with self._transaction() as run:
            found = run(
                "SELECT model, arm, version FROM answers JOIN requests ON id = request_id "
                "WHERE request_id = ? AND number = ? AND owner = ?",
                feedback.request_id,
                feedback.number,
                feedback.owner,
            )
            if not found:
                return None
            run(
                "INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (request_id, number, owner) "
                "DO UPDATE SET told = excluded.told, rating = excluded.rating, is_preferred = excluded.is_preferred, "
                "correction = excluded.correction, comment = excluded.comment",
                feedback.request_id,
                feedback.number,
                feedback.owner,
                time.time(),
                feedback.rating,
                int(feedback.is_preferred),
                None if feedback.correction is None else self._clean(feedback.correction),
                None if feedback.comment is None else self._clean(feedback.comment),
            )
        return Rated(**found[0])

    @contextmanager
    def _transaction(self) -> Iterator[Callable[..., list[dict[str, Any]]]]:
        try:
            yield self._database.run
            self._database.commit()
        except BaseException:
            self._database.undo()
            raise

    def _clean(self, text: str) -> str:
        return redacted(text.replace("\x00", "\ufffd"), self._redact)  # PostgreSQL has no NUL in a text

    def _clean_message(self, message: Any) -> dict[str, Any]:
        content = message.get("content")
        return {**message, "content": self._clean(content) if isinstance(content, str) else content}


def _connect_sqlite(url: str) -> Any:
    path = Path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_LOCK_SECONDS)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _connect_postgres(url: str) -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise UserError("PostgreSQL needs a package that is missing: pip install 'burnish[postgres]'") from error
    wait = int(_LOCK_SECONDS * 1000)
    return psycopg.connect(
        url, connect_timeout=int(_LOCK_SECONDS), options=f"-c statement_timeout={wait} -c lock_timeout={wait}"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def read_url(url: str) -> Database:
    """The store behind a URL, to read.

    Raises:
        UserError: there is none.
        MachineError: it cannot be opened.
    """
    if not url.startswith(("postgresql://", "postgres://")) and not Path(url).is_file():
        raise UserError(f"--store {url}: there is no such store; `store.url` of the server names it")
    try:
        return Database(url)
    except ConfigError as error:
        raise MachineError(str(error).replace("store.url", f"--store {url}", 1)) from error
