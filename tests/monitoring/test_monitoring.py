import io

import pytest
import torch
from rich.console import Console

from burnish.algorithms.asking import COLUMNS
from burnish.monitoring.console import Progress
from burnish.monitoring.metrics import reduce_metrics
from burnish.records import Metric


def test_a_mean_is_taken_once_over_everything() -> None:
    parts = [{"x": Metric(torch.tensor(3.0), "mean", 1)}, {"x": Metric(torch.tensor(1.0), "mean", 3)}]
    assert reduce_metrics(parts) == {"x": 1.0}  # not the mean of 3 and 1/3


def test_sum_and_max_and_absent_parts() -> None:
    parts = [{"s": Metric(1.5, "sum"), "m": Metric(-2.0, "max")}, {"s": Metric(2.0, "sum")}, {"m": Metric(-3.0, "max")}]
    assert reduce_metrics(parts) == {"s": 3.5, "m": -2.0}


def test_a_name_has_one_reduction() -> None:
    with pytest.raises(ValueError, match="'x' is declared with different reductions"):
        reduce_metrics([{"x": Metric(1.0, "sum")}, {"x": Metric(1.0, "max")}])


def progress(is_terminal: bool) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    ticks = iter(range(0, 1000, 10))
    console = Console(file=out, force_terminal=is_terminal, width=150)
    return Progress(console, num_steps=100, columns=COLUMNS, clock=lambda: float(next(ticks))), out


def test_plain_lines_where_there_is_no_terminal() -> None:
    shown, out = progress(is_terminal=False)
    with shown.running():
        shown.update(1, {"reward_mean": 0.25, "mismatch_mean": 3e-7})
        shown.update(2, {"reward_mean": 0.5, "held_out": 0.75})
    first, second = out.getvalue().splitlines()
    assert first.startswith("step 1/100  reward 0.250") and "mismatch 3.0e-07" in first and "held-out -" in first
    assert first.endswith("left 16:30")  # 99 steps of 10 seconds
    assert "held-out 0.750" in second
    assert "\x1b" not in out.getvalue()


def test_a_live_table_on_a_terminal() -> None:
    shown, out = progress(is_terminal=True)
    with shown.running():
        for step in range(1, 21):
            shown.update(step, {"reward_mean": step / 100})
        shown.say("a line above the table")
    assert "truncated" in out.getvalue() and "20/100" in out.getvalue() and "a line above" in out.getvalue()
    last_frame = out.getvalue().rpartition("truncated")[2]
    assert "9/100" in last_frame and "8/100\n" not in last_frame
