"""What was asked, what was answered by which weights, and what people said of it."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from burnish.errors import MachineError
from burnish.serving.answers import Answered
from burnish.serving.asks import Arm
from burnish.serving.database import Database, Run, first_line
from burnish.serving.redaction import redacted

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_MOST_PENDING_BYTES = 100_000_000  # about, of what is to be written and is not yet; more is lost, and counted
_ENTRY_BYTES, _TOKEN_BYTES = 1000, 40
_BATCH_ROWS, _MOST_BATCHES = 500, 1000  # of old requests: each batch within the deadline of a statement
_CLEAN_EVERY_SECONDS = 3600.0
_CLOSE_SECONDS = 15.0


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
    """An answer that was found, with what the gate of a deployment and the metrics want to know of it. `unit` is who
    was given the arm: a user who stays with one, or else the request.
    """

    model: str
    arm: Arm
    fingerprint: str
    unit: str
    asked: float


class Journal:
    """Keeps requests, answers and feedback for `keep_days`. It writes in a thread of its own, in the order of what
    happened; `on_lost` hears when something could not be written.
    """

    def __init__(self, url: str, *, keep_days: float, redact: Sequence[str]) -> None:
        """Raises a ConfigError where the store cannot be opened."""
        self._url, self._keep_seconds, self._redact = url, keep_days * 86400, tuple(redact)
        self.on_lost: Callable[[], None] = lambda: None
        self._database: Database | None = Database(url)
        self._jobs: queue.Queue[tuple[int, Callable[[], None]] | None] = queue.Queue()
        self._pending_bytes = 0
        self._lock = threading.Lock()
        self._clean_at = 0.0
        # not an executor's, whose threads the end of the process waits for, however long the database hangs
        self._thread = threading.Thread(target=self._run, name="burnish-store", daemon=True)
        self._thread.start()

    def answered(self, answered: Answered) -> None:
        """Write an answer that is over, with its request. Returns at once."""
        if answered.weights.arm == "shadow":
            return
        rows = self._rows(answered)
        size = _ENTRY_BYTES + len(answered.text) + _TOKEN_BYTES * len(answered.prompt_ids)
        if not self._add(size, lambda: self._write(rows)):
            self.on_lost()

    def tell(self, feedback: Feedback) -> Future[Rated | None]:
        """Write feedback; the answer that it is of, or None where this owner asked for no such answer. What was said of
        an answer before stays, where nothing new is said; one answer of a request is the best.

        The future ends with a MachineError where the store cannot be written.
        """
        future: Future[Rated | None] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self._transact(lambda run: self._tell(run, feedback)))
            except Exception as error:
                _LOG.error("feedback could not be stored: %s", first_line(error))
                future.set_exception(MachineError("the store cannot be written"))

        if not self._add(_ENTRY_BYTES + len(feedback.correction or "") + len(feedback.comment or ""), work):
            future.set_exception(MachineError("the store is too far behind"))
        return future

    def close(self) -> None:
        """Write what is still to be written, for as long as that does not hang, then end."""
        self._jobs.put(None)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            _LOG.error("the store hangs: about %d answers or ratings were not written", self._jobs.qsize())

    def _add(self, size: int, work: Callable[[], None]) -> bool:
        with self._lock:
            if self._pending_bytes + size > _MOST_PENDING_BYTES:
                return False
            self._pending_bytes += size
        self._jobs.put((size, work))
        return True

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=max(0.0, self._clean_at - time.monotonic()))
            except queue.Empty:
                job = 0, lambda: None
            if job is None:
                break
            size, work = job
            work()
            with self._lock:
                self._pending_bytes -= size
            if time.monotonic() >= self._clean_at:
                self._clean_at = time.monotonic() + _CLEAN_EVERY_SECONDS
                self._clean_up()
        if self._database is not None:
            self._database.close()

    def _write(self, rows: Callable[[Run], None]) -> None:
        try:
            self._transact(rows)
        except Exception as error:  # a full disk, a database that is gone: the answer was given, and that is told
            _LOG.error("an answer could not be stored: %s", first_line(error))
            self.on_lost()

    def _clean_up(self) -> None:
        before = time.time() - self._keep_seconds
        try:
            for _ in range(_MOST_BATCHES):
                if not self._transact(lambda run: _remove_some(run, before)):
                    break
        except Exception as error:
            _LOG.error("old answers could not be removed: %s", first_line(error))

    def _transact(self, work: Callable[[Run], T]) -> T:
        """Once more over a new connection where the old one was lost: a database that starts anew loses nothing."""
        for is_last in (False, True):
            if self._database is None:
                self._database = Database(self._url)
            try:
                with self._database.transaction() as run:
                    return work(run)
            except Exception:
                if not self._database.is_gone:
                    raise
                self._database = None
                if is_last:
                    raise
        raise AssertionError

    def _rows(self, answered: Answered) -> Callable[[Run], None]:
        """What writes an answer. It holds texts and numbers alone: the weights may go while a database hangs."""
        request, weights, ending = answered.request, answered.weights, answered.ending
        said, prompt_ids, tokenizer = request.messages, answered.prompt_ids, weights.policy.tokenizer
        name, text = weights.name, answered.text
        facts = (
            str(ending),
            weights.arm,
            weights.version,
            weights.fingerprint,
            len(prompt_ids),
            len(answered.token_ids),
            sum(answered.logprobs) / len(answered.logprobs) if answered.logprobs else None,
            answered.first_seconds,
            answered.seconds,
        )
        number = answered.number

        def write(run: Run) -> None:
            messages = None if said is None else json.dumps(self._cleaned(list(said)))
            prompt = None if said is not None else self._cleaned(str(tokenizer.decode(list(prompt_ids))))
            settings = json.dumps(self._cleaned(dict(request.settings)))
            run(
                "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                *(request.id, request.at, request.owner, request.unit_hash, name, messages, settings),
            )
            row = (request.id, number, prompt, self._cleaned(text), *facts)
            run(f"INSERT INTO answers VALUES ({', '.join('?' * len(row))})", *row)

        return write

    def _tell(self, run: Run, feedback: Feedback) -> Rated | None:
        key = feedback.request_id, feedback.number, feedback.owner
        found = run(
            "SELECT model, arm, fingerprint, unit, asked FROM answers JOIN requests ON id = request_id "
            "WHERE request_id = ? AND number = ? AND owner = ?",
            *key,
        )
        if not found:
            return None
        if feedback.is_preferred:
            run("UPDATE feedback SET is_preferred = 0 WHERE request_id = ? AND owner = ?", key[0], key[2])
        run(
            "INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (request_id, number, owner) "
            "DO UPDATE SET told = excluded.told, rating = COALESCE(excluded.rating, feedback.rating), "
            "is_preferred = CASE WHEN excluded.is_preferred = 1 THEN 1 ELSE feedback.is_preferred END, "
            "correction = COALESCE(excluded.correction, feedback.correction), "
            "comment = COALESCE(excluded.comment, feedback.comment)",
            *(*key, time.time(), feedback.rating, int(feedback.is_preferred)),
            *(None if text is None else self._cleaned(text) for text in (feedback.correction, feedback.comment)),
        )
        return Rated(**found[0])

    def _cleaned(self, value: Any) -> Any:
        """The same with every text blotted out as told, and without what a database cannot hold: PostgreSQL has no NUL,
        and a surrogate without its other half is no character.
        """
        if isinstance(value, str):
            whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return redacted(whole.replace("\x00", "\ufffd"), self._redact)
        if isinstance(value, dict):
            return {key: self._cleaned(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._cleaned(each) for each in value]
        return value


def _remove_some(run: Run, before: float) -> bool:
    """Remove the oldest requests from before a time, with their answers; whether there were any."""
    old = run("SELECT id FROM requests WHERE asked < ? ORDER BY asked LIMIT ?", before, _BATCH_ROWS)
    for row in old:
        run("DELETE FROM requests WHERE id = ?", row["id"])
    return bool(old)
