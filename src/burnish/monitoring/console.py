"""What a person sees while a run trains: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

_ROWS = 12

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
        if not self.console.is_terminal:
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


def say_aside(text: str) -> None:
    """Print a line to standard error: how far something is that is done before there is a run."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
