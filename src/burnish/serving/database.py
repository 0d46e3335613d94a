"""The store's tables, in SQLite, or in PostgreSQL where several servers share it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burnish.config.extras import requires_extra
from burnish.errors import ConfigError, MachineError, UserError

Run = Callable[..., list[dict[str, Any]]]

_FORMAT = 1
_LOCK_SECONDS = 10.0
_READ_SECONDS = 600.0
_ADVISORY_LOCK = 0x6275726E  # "burn": servers that start at once make the tables one after the other
_TABLES = {
    "burnish_format": "CREATE TABLE burnish_format (format INTEGER NOT NULL)",
    "requests": """CREATE TABLE requests (
        id TEXT PRIMARY KEY, asked DOUBLE PRECISION NOT NULL, owner TEXT NOT NULL, unit TEXT NOT NULL,
        model TEXT NOT NULL, messages TEXT, settings TEXT NOT NULL)""",
    "answers": """CREATE TABLE answers (
        request_id TEXT NOT NULL REFERENCES requests (id) ON DELETE CASCADE, number INTEGER NOT NULL, prompt TEXT,
        text TEXT NOT NULL, ending TEXT NOT NULL, arm TEXT NOT NULL, version INTEGER NOT NULL,
        fingerprint TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL,
        mean_logprob DOUBLE PRECISION, first_token_seconds DOUBLE PRECISION, seconds DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (request_id, number))""",
    "feedback": """CREATE TABLE feedback (
        request_id TEXT NOT NULL, number INTEGER NOT NULL, owner TEXT NOT NULL, told DOUBLE PRECISION NOT NULL,
        rating TEXT, is_preferred INTEGER NOT NULL, correction TEXT, comment TEXT,
        PRIMARY KEY (request_id, number, owner),
        FOREIGN KEY (request_id, number) REFERENCES answers (request_id, number) ON DELETE CASCADE)""",
}
_INDEX = "CREATE INDEX requests_by_time ON requests (asked)"


class Database:
    """A connection by URL: a path, or postgresql://... One thread at a time uses it."""

    def __init__(self, url: str, *, only_reads: bool = False) -> None:
        """Raises a ConfigError where it cannot be opened, or holds something else. Missing tables are made, unless it
        only reads.
        """
        self._is_postgres = url.startswith(("postgresql://", "postgres://"))
        if not self._is_postgres and "://" in url:
            raise ConfigError("store.url: give a file for SQLite, or postgresql://...")
        connect = _connect_postgres if self._is_postgres else _connect_sqlite
        self._connection: Any = None
        try:
            self._connection = connect(url, only_reads)
            with self.transaction() as run:
                self._prepare(run, only_reads)
        except Exception as error:
            if self._connection is not None:
                self._connection.close()
            if isinstance(error, UserError):
                raise
            raise ConfigError(f"store.url: cannot be used as a store: {first_line(error)}") from error

    @property
    def is_gone(self) -> bool:
        """Whether the connection was lost."""
        return self._is_postgres and bool(self._connection.closed)

    def run(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """The rows that a statement gives."""
        cursor = self._connection.execute(statement.replace("?", "%s") if self._is_postgres else statement, values)
        if cursor.description is None:
            return []
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    @contextmanager
    def transaction(self) -> Iterator[Run]:
        """All that is run in it is kept, or nothing."""
        try:
            yield self.run
            self._connection.commit()
        except BaseException:
            if not self.is_gone:
                self._connection.rollback()
            raise

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def _prepare(self, run: Run, only_reads: bool) -> None:
        if not only_reads:
            run("SELECT pg_advisory_xact_lock(?)" if self._is_postgres else "BEGIN IMMEDIATE", *self._lock)
        names = "tablename AS name FROM pg_tables WHERE schemaname = current_schema()"
        if not self._is_postgres:
            names = "name FROM sqlite_master WHERE type = 'table'"
        there = {row["name"] for row in run(f"SELECT {names}")} & _TABLES.keys()
        if there == _TABLES.keys():
            known = run("SELECT format FROM burnish_format")[0]["format"]
            if known != _FORMAT:
                raise ConfigError(f"store.url: was written by another version of burnish (format {known})")
        elif there or only_reads:
            raise ConfigError("store.url: is no store of burnish's" + "".join(f", and has {each}" for each in there))
        else:
            for statement in (*_TABLES.values(), _INDEX):
                run(statement)
            run("INSERT INTO burnish_format VALUES (?)", _FORMAT)

    @property
    def _lock(self) -> tuple[int, ...]:
        return (_ADVISORY_LOCK,) if self._is_postgres else ()


def open_to_read(url: str) -> Database:
    """The store behind a URL, to read.

    Raises:
        UserError: there is none.
        MachineError: it cannot be opened.
    """
    if not url.startswith(("postgresql://", "postgres://")) and not Path(url).is_file():
        raise UserError(f"--store {url}: there is no such store; `store.url` of the server names it")
    try:
        return Database(url, only_reads=True)
    except ConfigError as error:
        raise MachineError(str(error).replace("store.url", "--store", 1)) from error


def first_line(error: Exception) -> str:
    """What an exception says, in a line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _connect_sqlite(url: str, only_reads: bool) -> Any:
    path = Path(url)
    if not only_reads:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # what people ask is not for everybody here
    connection = sqlite3.connect(path, timeout=_LOCK_SECONDS, check_same_thread=False)
    if only_reads:
        connection.execute("PRAGMA query_only = ON")
    else:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # what is removed is gone from the file, too
    return connection


def _connect_postgres(url: str, only_reads: bool) -> Any:
    with requires_extra("postgres", "PostgreSQL needs psycopg"):
        import psycopg
    lock = int(_LOCK_SECONDS * 1000)
    limit = int(_READ_SECONDS * 1000) if only_reads else lock
    return psycopg.connect(
        url,
        connect_timeout=int(_LOCK_SECONDS),
        options=f"-c statement_timeout={limit} -c lock_timeout={lock}",
        tcp_user_timeout=lock,  # a machine that is gone says nothing
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
    )
