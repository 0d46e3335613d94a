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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from burnish.errors import MachineError
from burnish.memory.measure import is_out_of_memory
from burnish.models.layout import packed_linears
from burnish.reproducibility.seeds import uniforms
from burnish.rollout.generators.sampling import draw
from burnish.serving.asks import (
    Arm,
    Ask,
    Done,
    EngineGoneError,
    Failed,
    FinishReason,
    QueueFullError,
    Timing,
    Token,
    Weights,
)
from burnish.serving.cache import CacheRow, RowCache
from burnish.serving.echo import Echo, echo_of
from burnish.serving.prefixes import PrefixStore
from burnish.serving.shaping import shaped, tops_of
from burnish.serving.streaming import TextStream

_LOG = logging.getLogger(__name__)
_IDLE_SECONDS = 0.5  # a wait for work looks around this often


@dataclass(slots=True, eq=False)
class _Row:
    """An answer in the making."""

    ask: Ask
    served: _Served
    text: TextStream
    echo: Echo | None = None
    cache: CacheRow | None = None
    read: int = 0
    cached_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    is_waiting: bool = True
    is_over: bool = False
    asked_at: float = field(default_factory=time.monotonic)
    begun_at: float = 0.0
    first_at: float = 0.0

    @property
    def is_decoding(self) -> bool:
        return bool(self.token_ids)


class _Served:
    """Weights with what was computed by them."""

    def __init__(self, weights: Weights, *, max_rows: int, prefix_bytes: int) -> None:
        self.weights = weights
        self.cache = RowCache(weights.policy.device)
        self.prefixes = PrefixStore(prefix_bytes)
        self.rows: list[_Row] = []
        self.num_bound = 0  # answers that wait or are in the making
        self.held = ExitStack()
        self.held.enter_context(packed_linears(weights.policy.model, num_rows=max_rows))

    def decode(self, token_ids: Iterable[int]) -> str:
        return str(self.weights.policy.tokenizer.decode(list(token_ids), skip_special_tokens=True))


class Engine:
    """Answers up to `max_rows` asks at once; up to `max_waiting` more wait, one owner's after another's.

    Each step feeds one token of every answer that is under way and `prefill_tokens` of prompts, so a long prompt does
    not stop the others. Answers are begun while they and their prompts, at their longest, have no more than
    `cache_tokens` together. `prefix_bytes` of keys and values of prompts are kept for prompts that begin alike.
    """

    def __init__(
        self, *, max_rows: int, max_waiting: int, prefill_tokens: int, cache_tokens: int, prefix_bytes: int
    ) -> None:
        self.max_rows, self.max_waiting, self.cache_tokens = max_rows, max_waiting, cache_tokens
        self._prefill_tokens, self._prefix_bytes = prefill_tokens, prefix_bytes
        self._changed = threading.Condition()
        self._current: dict[tuple[str, Arm], _Served] = {}
        self._served: list[_Served] = []
        self._waiting: OrderedDict[str, deque[_Row]] = OrderedDict()
        self._of_owner: Counter[str] = Counter()
        self._num_waiting = self._num_running = self._reserved = 0
        self._cancelled: set[_Row] = set()
        self._is_stopping = False
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

    def install(self, weights: Weights) -> None:
        """From here on these weights answer for their name; answers that were asked for before keep theirs."""
        served = _Served(weights, max_rows=self.max_rows, prefix_bytes=self._prefix_bytes)
        with self._changed:
            self._current[weights.name, weights.arm] = served
            self._served.append(served)
            self._changed.notify()

    def promote(self, name: str, arm: Arm) -> Weights:
        """The weights of an arm answer as the stable ones from here on. Returns them.

        Raises:
            KeyError: there are none.
        """
        with self._changed:
            served = self._current.pop((name, arm))
            served.weights = replace(served.weights, arm="stable")
            self._current[name, "stable"] = served
            self._changed.notify()
            return served.weights

    def remove(self, name: str, arm: Arm) -> None:
        """The weights of an arm answer no more; answers that were asked for keep them.

        Raises:
            KeyError: there are none.
        """
        with self._changed:
            del self._current[name, arm]
            self._changed.notify()

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
                self._changed.notify()

    def submit(self, weights: Weights, asks: Sequence[Ask], *, max_of_owner: int | None = None) -> Callable[[], None]:
        """Ask weights that are leased. Returns what cancels the asks.

        Raises:
            QueueFullError: too many wait already, or are this owner's; none of the asks was taken.
            EngineGoneError: there is nobody to answer.
        """
        with self._changed:
            if self._is_stopping or not self.is_alive:
                raise EngineGoneError("the engine has stopped")
            served = next(each for each in self._served if each.weights.policy is weights.policy)
            rows = [_Row(ask, served, TextStream(served.decode, ask.sampling.stop), echo_of(ask)) for ask in asks]
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
            self._changed.notify()
        return lambda: self._cancel(rows)

    def stop(self, timeout_seconds: float) -> None:
        """End the thread; what is in the making fails.

        Raises:
            MachineError: it did not end in time.
        """
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            raise MachineError(f"the engine did not end within {timeout_seconds:g} s")

    def _cancel(self, rows: Iterable[_Row]) -> None:
        with self._changed:
            self._cancelled.update(row for row in rows if not row.is_over)
            self._changed.notify()

    @torch.no_grad()
    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException:
            _LOG.exception("the engine failed")
            raise
        finally:
            with self._changed:
                self._is_stopping = True
                left = [row for rows in self._waiting.values() for row in rows]
                left += [row for served in self._served for row in served.rows]
            self._fail(left, EngineGoneError("the server stops"))

    def _turn(self) -> bool:
        """Wait for work and do a step of it; False when it is time to end."""
        with self._changed:
            while not (self._is_stopping or self._cancelled or self._num_waiting or self._num_running):
                self._let_go()
                self._changed.wait(_IDLE_SECONDS)
                self.stepped_at = time.monotonic()
            if self._is_stopping:
                return False
            for row in self._cancelled:
                if not row.is_over:
                    self._close(row)
            self._cancelled.clear()
            self._fail(self._late(), TimeoutError("the answer was not ready in time"))
            chosen = self._chosen()
            self._let_go()
        for row in chosen:
            try:
                row.cache = row.served.cache.open(len(row.ask.prompt_ids) + 1)
            except Exception as error:
                _LOG.exception("an answer could not be begun")
                self._fail([row], _explained(error))
        for served in [each for each in self._served if each.rows]:
            try:
                self._step(served)
            except Exception as error:  # whatever it was, those of other weights must go on
                _LOG.exception("a step failed")
                served.cache = RowCache(served.weights.policy.device)  # the old one may be half changed
                self._fail(served.rows, _explained(error))
        self.num_steps += 1
        self.stepped_at = time.monotonic()
        return True

    def _let_go(self) -> None:
        for served in [each for each in self._served if not each.num_bound]:
            if served not in self._current.values():
                self._served.remove(served)
                served.held.close()

    def _late(self) -> list[_Row]:
        now = time.monotonic()
        waiting = [row for rows in self._waiting.values() for row in rows]
        return [
            row
            for row in (*waiting, *(each for served in self._served for each in served.rows))
            if now > row.ask.deadline
        ]

    def _chosen(self) -> list[_Row]:
        """Those of the waiting that get a free place: of each owner in turn, while there is room for their tokens."""
        chosen: list[_Row] = []
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

    def _step(self, served: _Served) -> None:
        decoding = {row.cache: row for row in served.rows if row.is_decoding and row.cache is not None}
        pieces = self._pieces(served)
        if not decoding and not pieces:
            return
        cache = served.cache
        order = cache.begin(list(decoding), [(row.cache, count) for row, count in pieces if row.cache is not None])
        rows = [decoding[place] for place in order]
        token_ids, positions = [row.token_ids[-1] for row in rows], [place.length for place in order]
        wanted = list(range(len(rows)))
        for row, count in pieces:
            token_ids += row.ask.prompt_ids[row.read : row.read + count]
            positions += range(row.read, row.read + count)
            row.read += count
            if row.read == len(row.ask.prompt_ids):
                wanted.append(len(token_ids) - 1)
                rows.append(row)
        policy = served.weights.policy
        hidden_TH = policy.hidden_states(
            torch.tensor(token_ids, device=policy.device), torch.tensor(positions, device=policy.device), cache
        )
        cache.end()
        start = len(order)
        for row, count in pieces:
            if row.echo is not None:
                row.echo.add(hidden_TH[start : start + count], policy.head)
            start += count
        for row in rows[len(order) :]:
            self._remember(row)
        if rows:
            logits_RV = policy.head.from_layer(policy.model.get_output_embeddings()(hidden_TH[wanted]))
            self._extend(rows, logits_RV)

    def _pieces(self, served: _Served) -> list[tuple[_Row, int]]:
        """What of which prompts is read in this step. Of equal prompts the first is read, and the others begin with
        what it leaves.
        """
        left, found, reading = self._prefill_tokens, [], set[int]()
        for row in served.rows:
            prompt = row.ask.prompt_ids
            if row.is_decoding or row.cache is None or left == 0:
                continue
            if row.read == 0:
                if row.echo is None and id(prompt) in reading:
                    continue
                if row.echo is None and (known := served.prefixes.find(row.ask.owner, prompt)):
                    served.cache.copy_in(row.cache, *known)
                    row.read = row.cached_tokens = known[1]
            reading.add(id(prompt))
            count = min(left, len(prompt) - row.read)
            left -= count
            found.append((row, count))
        return found

    def _remember(self, row: _Row) -> None:
        prompt, owner, prefixes = row.ask.prompt_ids, row.ask.owner, row.served.prefixes
        if row.cache is not None and (length := prefixes.wants(owner, prompt)):
            prefixes.keep(owner, prompt[:length], row.served.cache.copy_out(row.cache, length))

    def _extend(self, rows: list[_Row], logits_RV: Tensor) -> None:
        """Draw the next token of every row and end those that end with it."""
        shaped_RV = shaped(logits_RV, rows, self._forbidden(rows))
        seeds_R = np.array([row.ask.seed for row in rows], dtype=np.uint64)
        positions_R = np.array([len(row.token_ids) for row in rows], dtype=np.uint64)
        drawn = draw(shaped_RV, [row.ask.sampling for row in rows], lambda count: uniforms(seeds_R, positions_R, count))
        logprobs_R = drawn.model_logprobs_R
        if shaped_RV is not logits_RV:
            logprobs_R = logits_RV.log_softmax(1).gather(1, drawn.ids_R[:, None])[:, 0]
        tops = tops_of(logits_RV, rows)
        for index, (row, token, logprob) in enumerate(
            zip(rows, drawn.ids_R.tolist(), logprobs_R.tolist(), strict=True)
        ):
            if row.is_over:  # its form could not be followed
                continue
            try:
                self._add(row, token, logprob, tops.get(index, ()))
            except Exception as error:  # a listener that is gone, a token that has no text: this answer's fault alone
                _LOG.exception("an answer failed")
                self._fail([row], _explained(error))

    def _forbidden(self, rows: list[_Row]) -> dict[int, Tensor]:
        """What the rows that have a form may not go on with; one whose form cannot be followed fails alone."""
        found = {}
        for index, row in enumerate(rows):
            if row.ask.constraint is not None:
                try:
                    found[index] = row.ask.constraint.forbidden()
                except Exception as error:
                    _LOG.exception("an answer's form could not be followed")
                    self._fail([row], _explained(error))
        return found

    def _add(self, row: _Row, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> None:
        sampling = row.ask.sampling
        row.first_at = row.first_at or time.monotonic()
        if row.echo is not None and not row.token_ids:
            row.ask.on_event(row.echo.told())
        if sampling.max_tokens == 0:
            self._finish(row, "length")
            return
        row.token_ids.append(token)
        row.counts[token] += 1
        is_end = token in sampling.stop_token_ids
        text = "" if is_end else row.text.add(token)
        row.ask.on_event(Token(token, text, logprob, top))
        if row.ask.constraint is not None and not is_end:
            row.ask.constraint.take(token)
            is_end = row.ask.constraint.is_over
        if not (is_end or row.text.is_stopped or len(row.token_ids) == sampling.max_tokens):
            return
        self._finish(row, "stop" if is_end or row.text.is_stopped else "length")

    def _finish(self, row: _Row, reason: FinishReason) -> None:
        tail = row.text.end()
        self._close(row)
        timing = Timing(
            queue=row.begun_at - row.asked_at,
            prefill=row.first_at - row.begun_at,
            decode=time.monotonic() - row.first_at,
        )
        row.ask.on_event(Done(text=tail, reason=reason, cached_tokens=row.cached_tokens, timing=timing))

    def _fail(self, rows: Iterable[_Row], error: Exception) -> None:
        for row in list(rows):
            if not row.is_over:
                self._close(row)
            try:
                row.ask.on_event(Failed(error))
            except Exception:  # the listener's loop is closed, or it is broken: nobody is left to tell
                _LOG.exception("nobody could be told that an answer failed")

    def _close(self, row: _Row) -> None:
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
        if row.cache is not None:
            row.served.cache.close(row.cache)


def _explained(error: Exception) -> Exception:
    """What whoever asked may know; the log has the rest."""
    if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
        return MachineError("out of memory: lower engine.cache_tokens")
    return MachineError("the answer failed; the server's log says how")
