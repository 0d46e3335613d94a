"""What a person sees while something goes on: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

_ROWS = 12
_QUIET_SECONDS = 2.0
_LOOK_SECONDS = 0.25
_LONGEST_SILENCE_SECONDS = 60.0
_WIPED = "\r\x1b[2K"

# how a metric is shown: heading, format
_SHOWN: Mapping[str, tuple[str, str]] = {
    "loss": ("loss", "{:.4f}"),
    "reward_mean": ("reward", "{:.3f}"),
    "reward_std": ("± spread", "{:.3f}"),
    "groups_without_signal": ("no signal", "{:.2f}"),
    "held_out": ("held-out", "{:.3f}"),
    "kl": ("KL", "{:.2e}"),
    "kept": ("kept", "{:d}"),
    "divergence": ("divergence", "{:.4f}"),
    "kl_per_completion": ("KL", "{:+.3f}"),
    "value_error": ("value error", "{:.3f}"),
    "kl_baseline": ("KL baseline", "{:.3f}"),
    "reward_margin": ("margin", "{:.3f}"),
    "reward_accuracy": ("accuracy", "{:.3f}"),
    "reward_chosen": ("chosen", "{:+.3f}"),
    "reward_rejected": ("rejected", "{:+.3f}"),
    "drift_chosen": ("drift chosen", "{:+.2f}"),
    "drift_rejected": ("rejected", "{:+.2f}"),
    "entropy": ("entropy", "{:.3f}"),
    "completion_tokens_mean": ("length", "{:.1f}"),
    "truncated_share": ("truncated", "{:.2f}"),
    "mismatch_mean": ("mismatch", "{:.1e}"),
    "grad_norm": ("grad norm", "{:.2f}"),
    "tokens_per_second": ("tok/s", "{:.0f}"),
}


class Progress:
    """Shows one row per step. `update` takes the step's metrics; one of `columns` that a step lacks is a dash."""

    def __init__(
        self,
        console: Console,
        *,
        num_steps: int,
        columns: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console
        self.num_steps = num_steps
        self.columns = columns
        self.clock = clock
        self._rows: list[tuple[str, ...]] = []
        self._seconds: list[float] = []
        self._last = clock()
        self._live: Live | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Draw the table while the block runs, where the output is a terminal."""
        self._last = self.clock()
        if not self.console.is_interactive:
            yield
            return
        try:
            with Live(self._table(), console=self.console, auto_refresh=False) as self._live:
                yield
        finally:
            self._live = None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step."""
        now = self.clock()
        self._seconds.append(now - self._last)
        self._last = now
        recent = self._seconds[-10:]
        left = (self.num_steps - step) * sum(recent) / len(recent)
        cells = tuple(_SHOWN[name][1].format(metrics[name]) if name in metrics else "-" for name in self.columns)
        self._rows.append((f"{step}/{self.num_steps}", *cells, _duration(left)))
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        else:
            pairs = zip(self._headings(), self._rows[-1], strict=True)
            self.say("  ".join(f"{heading} {cell}" for heading, cell in pairs))

    def say(self, text: str) -> None:
        """Print a line; above the table, where there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _headings(self) -> tuple[str, ...]:
        return ("step", *(_SHOWN[name][0] for name in self.columns), "left")

    def _table(self) -> Table:
        table = Table(*self._headings(), box=None, pad_edge=False)
        for row in self._rows[-_ROWS:]:
            table.add_row(*row)
        return table


def standard_console() -> Console:
    """Standard output; it is written anew on a terminal alone, whatever FORCE_COLOR says of colours."""
    return Console(force_interactive=None if sys.stdout.isatty() else False)


class Waiting:
    """Says on standard error what a command is at, once that takes longer than `quiet_seconds`, two by default.

    On a terminal that is one line which is written anew and is gone at the end; elsewhere it is a line now and then,
    each after twice the time of the one before. Where a count is known, it says how much time is left; where none is,
    how much has passed. What is said must not take the place of a result: that goes to standard output.
    """

    _shown: Waiting | None = None
    """What has the last line of standard error, of which there is one; the innermost of several."""

    def __init__(
        self, doing: str, *, quiet_seconds: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._quiet_seconds = _QUIET_SECONDS if quiet_seconds is None else quiet_seconds
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._is_live = sys.stderr.isatty() and Console(stderr=True).is_interactive
        self._has_line = False
        self._outer: Waiting | None = None
        self.doing(doing)

    def __enter__(self) -> Waiting:
        self._outer, Waiting._shown = Waiting._shown, self
        if self._outer is not None:
            self._outer._clear()
        self._thread = threading.Thread(target=self._tell, name="waiting", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._clear()
        Waiting._shown = self._outer

    def doing(self, text: str) -> None:
        """What is done from now on."""
        self._text, self._began = text, self._clock()
        self._count: tuple[int, int, str] | None = None
        self._next = self._began + self._quiet_seconds

    def count(self, done: int, total: int, unit: str = "") -> None:
        """How much of it is done, of how much; without a unit, the share is shown."""
        if self._count is None:
            self._first, self._counted_from = done, self._clock()
        self._count = (done, total, unit)

    def told(self, text: str, done: int, total: int) -> None:
        """What is done now, and how much of it is; the share is shown."""
        if text != self._text:
            self.doing(text)
        self.count(done, total)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._wipe()
            Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)

    def line(self) -> str:
        """What there is to say now."""
        now, count = self._clock(), self._count  # once: whoever works may begin something else meanwhile
        if count is None or not count[1]:
            return f"{self._text}: {_duration(now - self._began)}"
        done, total, unit = count
        so_far = f"{self._text}: {f'{done:,} of {total:,} {unit}' if unit else f'{done / total:.0%}'}"
        if done <= self._first:
            return f"{so_far}, {_duration(now - self._began)}"
        left = (now - self._counted_from) / (done - self._first) * (total - done)
        return f"{so_far}, {_duration(left)} left"

    def _tell(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            now = self._clock()
            if now < self._next or Waiting._shown is not self:
                continue
            with self._lock:
                if self._is_live:
                    _write(f"{_WIPED}{self.line()}")
                    self._has_line = True
                else:
                    _write(f"{self.line()}\n")
                    self._next = now + min(now - self._began, _LONGEST_SILENCE_SECONDS)

    def _clear(self) -> None:
        with self._lock:
            self._wipe()

    def _wipe(self) -> None:
        if self._has_line:
            _write(_WIPED)
            self._has_line = False


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def say_aside(text: str) -> None:
    """Print a line to standard error: how far something is that is done before there is a run."""
    if Waiting._shown is not None:
        Waiting._shown.say(text)
    else:
        Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
