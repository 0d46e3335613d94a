"""The engine: continuous batching of answers with settings of their own, over weights that can be exchanged.

It runs in a thread of its own. An answer is bound to the weights that were current when it was asked for, and ends
with them; those that have no answer left to give are let go. So no answer mixes two versions, and none is dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from burnish.errors import MachineError
from burnish.memory.measure import is_out_of_memory
from burnish.serving.asks import (
    Arm,
    Ask,
    Done,
    EngineGoneError,
    Failed,
    FinishReason,
    PromptRead,
    QueueFullError,
    Timing,
    Token,
    Weights,
)
from burnish.serving.sampler import Drawn, Made, MakeSampler, Row, Served
from burnish.serving.streaming import TextStream

_LOG = logging.getLogger(__name__)
_IDLE_SECONDS = 0.5  # a wait for work looks around this often


class Engine:
    """Answers up to `max_rows` asks at once; up to `max_waiting` more wait, one owner's after another's.

    Answers are begun while they and their prompts, at their longest, have no more than `cache_tokens` together. Their
    tokens are made by a sampler for each set of weights; everything else about them is here.
    """

    def __init__(self, make_sampler: MakeSampler, *, max_rows: int, max_waiting: int, cache_tokens: int) -> None:
        self.max_rows, self.max_waiting, self.cache_tokens = max_rows, max_waiting, cache_tokens
        self._make_sampler = make_sampler
        self._changed = threading.Condition()
        self._current: dict[tuple[str, Arm], Served] = {}
        self._served: list[Served] = []
        self._waiting: OrderedDict[str, deque[Row]] = OrderedDict()
        self._of_owner: Counter[str] = Counter()
        self._num_waiting = self._num_running = self._reserved = 0
        self._cancelled: set[Row] = set()
        self._is_told = self._is_stopping = False
        self.num_steps = 0
        self.stepped_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="burnish-engine", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Answers in the making."""
        return self._num_running

    @property
    def num_waiting(self) -> int:
        """Answers that wait for their turn."""
        return self._num_waiting

    @property
    def num_left(self) -> int:
        """Answers that were asked for and are not over."""
        with self._changed:
            return self._num_running + self._num_waiting

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def num_sets(self) -> int:
        """Sets of weights in memory, those that only finish included."""
        return len(self._served)

    @property
    def reserved_tokens(self) -> int:
        """Tokens that the answers in the making can have at most, of `cache_tokens`."""
        return self._reserved

    def models(self, arm: Arm = "stable") -> dict[str, Weights]:
        """What answers now, by name."""
        with self._changed:
            return {name: served.weights for (name, of), served in self._current.items() if of == arm}

    def mismatches(self) -> dict[tuple[str, Arm], float]:
        """By how much, in nats, what answers now differs from what the learner would say, by name and arm."""
        with self._changed:
            return {key: served.sampler.mismatch for key, served in self._current.items()}

    def install(self, weights: Weights) -> None:
        """From here on these weights answer for their name; answers that were asked for before keep theirs.

        Raises:
            BurnishError: they cannot be served, or would be otherwise than they were trained.
        """
        served = Served(weights, self._make_sampler(weights, self._wake))
        with self._changed:
            if self._is_stopping:
                served.sampler.close()
                raise EngineGoneError("the engine has stopped")
            self._current[weights.name, weights.arm] = served
            self._served.append(served)
            self._wake()

    def check_alive(self, name: str, arm: Arm) -> None:
        """Find out whether the weights of an arm can still answer.

        Raises:
            KeyError: there are none.
            EngineGoneError: never again.
        """
        with self._changed:
            self._current[name, arm].sampler.check_alive()

    def promote(self, name: str, arm: Arm) -> Weights:
        """The weights of an arm answer as the stable ones from here on. Returns them.

        Raises:
            KeyError: there are none.
            EngineGoneError: they can answer no more; what serves goes on.
        """
        with self._changed:
            self._current[name, arm].sampler.check_alive()
            served = self._current.pop((name, arm))
            served.weights = replace(served.weights, arm="stable")
            self._current[name, "stable"] = served
            self._wake()
            return served.weights

    def remove(self, name: str, arm: Arm) -> None:
        """The weights of an arm answer no more; answers that were asked for keep them.

        Raises:
            KeyError: there are none.
        """
        with self._changed:
            del self._current[name, arm]
            self._wake()

    @contextmanager
    def lease(self, name: str, arm: Arm = "stable") -> Iterator[Weights]:
        """The weights of a name, which stay until the context ends, so that they answer what was prepared for them.

        Raises:
            KeyError: there is no model of that name.
        """
        with self._changed:
            served = self._current[name, arm]
            served.num_bound += 1
        try:
            yield served.weights
        finally:
            with self._changed:
                served.num_bound -= 1
                self._wake()

    def submit(self, weights: Weights, asks: Sequence[Ask], *, max_of_owner: int | None = None) -> Callable[[], None]:
        """Ask weights that are leased. Returns what cancels the asks.

        Raises:
            RefusedError: they cannot be answered as they are asked.
            QueueFullError: too many wait already, or are this owner's; none of the asks was taken.
            EngineGoneError: there is nobody to answer.
        """
        with self._changed:
            if self._is_stopping or not self.is_alive:
                raise EngineGoneError("the engine has stopped")
            served = next(each for each in self._served if each.weights.policy is weights.policy)
            for ask in asks:
                served.sampler.check(ask)
            rows = [Row(ask, served, TextStream(served.decode, ask.sampling.stop)) for ask in asks]
            if self._num_waiting + len(rows) > self.max_waiting + self.max_rows - self._num_running:
                raise QueueFullError(f"{self._num_waiting} answers wait already, and {self.max_waiting} may")
            owner = asks[0].owner
            if max_of_owner is not None and self._of_owner[owner] + len(rows) > max_of_owner:
                raise QueueFullError(f"{self._of_owner[owner]} answers are yours already, and {max_of_owner} may be")
            for row in rows:
                self._waiting.setdefault(row.ask.owner, deque()).append(row)
                self._of_owner[row.ask.owner] += 1
            self._num_waiting += len(rows)
            served.num_bound += len(rows)
            self._wake()
        return lambda: self._cancel(rows)

    def stop(self, timeout_seconds: float) -> None:
        """End the thread; what is in the making fails.

        Raises:
            MachineError: it did not end in time.
        """
        with self._changed:
            self._is_stopping = True
            self._wake()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            raise MachineError(f"the engine did not end within {timeout_seconds:g} s")

    def _wake(self) -> None:
        with self._changed:
            self._is_told = True
            self._changed.notify()

    def _cancel(self, rows: Iterable[Row]) -> None:
        with self._changed:
            self._cancelled.update(row for row in rows if not row.is_over)
            self._wake()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except EngineGoneError as error:
            _LOG.error("%s", error)
        except BaseException:
            _LOG.exception("the engine failed")
            raise
        finally:
            with self._changed:
                self._is_stopping = True
                left = [row for rows in self._waiting.values() for row in rows]
                left += [row for served in self._served for row in served.rows]
            self._fail(left, EngineGoneError("the server stops"))
            for served in self._served:
                served.sampler.close()

    def _turn(self) -> bool:
        """Wait until there may be work, and do a step of it; False when it is time to end."""
        with self._changed:
            if not (self._is_told or any(served.sampler.is_ready for served in self._served)):
                self._let_go()
                self._changed.wait(_IDLE_SECONDS)
            self._is_told = False
            if self._is_stopping:
                return False
            for (_, arm), served in self._current.items():
                if arm == "stable":  # what is only tried fails its own answers
                    served.sampler.check_alive()
            for row in self._cancelled:
                if not row.is_over:
                    self._close(row)
            self._cancelled.clear()
            self._fail(self._late(), TimeoutError("the answer was not ready in time"))
            chosen = self._chosen()
            self._let_go()
        for row in chosen:
            try:
                row.served.sampler.begin(row)
            except Exception as error:
                _LOG.exception("an answer could not be begun")
                self._fail([row], _explained(error))
        ready = [served for served in self._served if served.sampler.is_ready]
        for served in ready:
            try:
                for row, made in served.sampler.step():
                    self._take(row, made)
            except Exception as error:  # whatever it was, those of other weights must go on
                _LOG.exception("a step failed")
                self._fail(served.rows, _explained(error))
        self.num_steps += bool(ready)
        busy = [served for served in self._served if served.rows]
        if ready or all(served.sampler.works_elsewhere for served in busy):
            self.stepped_at = time.monotonic()
        return True

    def _let_go(self) -> None:
        for served in [each for each in self._served if not each.num_bound]:
            if served not in self._current.values():
                self._served.remove(served)
                served.sampler.close()

    def _late(self) -> list[Row]:
        now = time.monotonic()
        waiting = [row for rows in self._waiting.values() for row in rows]
        return [
            row
            for row in (*waiting, *(each for served in self._served for each in served.rows))
            if now > row.ask.deadline
        ]

    def _chosen(self) -> list[Row]:
        """Those of the waiting that get a free place: of each owner in turn, while there is room for their tokens."""
        chosen: list[Row] = []
        while self._num_running < self.max_rows and self._num_waiting:
            owner, rows = next(iter(self._waiting.items()))
            if rows and self._num_running and self._reserved + rows[0].ask.num_tokens > self.cache_tokens:
                break
            self._waiting.move_to_end(owner)
            if not rows:
                del self._waiting[owner]
                continue
            row = rows.popleft()
            row.is_waiting = False
            row.begun_at = time.monotonic()
            row.served.rows.append(row)
            self._num_waiting -= 1
            self._num_running += 1
            self._reserved += row.ask.num_tokens
            chosen.append(row)
        return chosen

    def _take(self, row: Row, made: Made) -> None:
        """What came of an answer: a listener that is gone, or a token without a text, is this one's fault alone."""
        if row.is_over:
            return
        try:
            if isinstance(made, Exception):
                raise made
            if isinstance(made, PromptRead):
                row.ask.on_event(made)
            else:
                self._add(row, made)
        except Exception as error:
            _LOG.exception("an answer failed")
            self._fail([row], _explained(error))

    def _add(self, row: Row, drawn: Drawn) -> None:
        sampling, token = row.ask.sampling, drawn.id
        row.first_at = row.first_at or time.monotonic()
        if sampling.max_tokens == 0:
            self._finish(row, "length")
            return
        row.token_ids.append(token)
        row.counts[token] += 1
        is_end = token in sampling.stop_token_ids
        text = "" if is_end else row.text.add(token)
        row.ask.on_event(Token(token, text, drawn.logprob, drawn.top))
        if row.ask.constraint is not None and not is_end:
            row.ask.constraint.take(token)
            is_end = row.ask.constraint.is_over
        if not (is_end or row.text.is_stopped or len(row.token_ids) == sampling.max_tokens):
            return
        self._finish(row, "stop" if is_end or row.text.is_stopped else "length")

    def _finish(self, row: Row, reason: FinishReason) -> None:
        tail = row.text.end()
        self._close(row)
        timing = Timing(
            queue=row.begun_at - row.asked_at,
            prefill=row.first_at - row.begun_at,
            decode=time.monotonic() - row.first_at,
        )
        row.ask.on_event(Done(text=tail, reason=reason, cached_tokens=row.cached_tokens, timing=timing))

    def _fail(self, rows: Iterable[Row], error: Exception) -> None:
        for row in list(rows):
            if not row.is_over:
                self._close(row)
            try:
                row.ask.on_event(Failed(error))
            except Exception:  # the listener's loop is closed, or it is broken: nobody is left to tell
                _LOG.exception("nobody could be told that an answer failed")

    def _close(self, row: Row) -> None:
        with self._changed:
            row.is_over = True
            row.served.num_bound -= 1
            self._of_owner[row.ask.owner] -= 1
            if not self._of_owner[row.ask.owner]:
                del self._of_owner[row.ask.owner]
            if row.is_waiting:
                self._waiting[row.ask.owner].remove(row)
                self._num_waiting -= 1
                return
            row.served.rows.remove(row)
            self._num_running -= 1
            self._reserved -= row.ask.num_tokens
        row.served.sampler.end(row)


def _explained(error: Exception) -> Exception:
    """What whoever asked may know; the log has the rest."""
    if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
        return MachineError("out of memory: lower engine.cache_tokens")
    return MachineError("the answer failed; the server's log says how")
