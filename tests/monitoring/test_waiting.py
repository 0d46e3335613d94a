"""What is seen of a command that takes long."""

import os
import pty
import subprocess
import sys

import pytest

from burnish.monitoring.console import Waiting, say_aside


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_passed_is_said_where_nothing_is_counted() -> None:
    clock = Clock()
    wait = Waiting("comparing", clock=clock)
    clock.now += 65
    assert wait.line() == "comparing: 1:05"
    wait.doing("drawing")
    clock.now += 3
    assert wait.line() == "drawing: 0:03"


def test_time_left_is_by_what_was_done_since_counting_began() -> None:
    clock = Clock()
    wait = Waiting("answering", clock=clock)
    clock.now += 1000  # loading the model is no answer
    wait.count(50, 100, "answers")  # of an earlier sitting
    clock.now += 4
    assert wait.line() == "answering: 50 of 100 answers, 16:44"  # nothing is known of its speed yet
    wait.count(60, 100, "answers")
    clock.now += 6
    assert wait.line() == "answering: 60 of 100 answers, 0:40 left"  # 10 took 10 s, 40 are left
    wait.told("reading rows.jsonl", 0, 400)
    clock.now += 2
    wait.told("reading rows.jsonl", 100, 400)
    assert wait.line() == "reading rows.jsonl: 25%, 0:06 left"


def test_what_is_quick_says_nothing(capfd) -> None:
    with Waiting("comparing"):
        pass
    assert capfd.readouterr() == ("", "")


_SLOW = """
import time
from burnish.monitoring.console import Waiting, say_aside
with Waiting("outer", quiet_seconds=0.1):
    with Waiting("inner", quiet_seconds=0.1) as wait:
        wait.count(1, 4, "steps")
        time.sleep(0.6)
        say_aside("a line that stays")
        time.sleep(0.6)
print("the result")
"""


def test_elsewhere_than_on_a_terminal_a_line_now_and_then() -> None:
    done = subprocess.run([sys.executable, "-c", _SLOW], capture_output=True, text=True, timeout=60)
    assert done.stdout == "the result\n"
    first, *rest = done.stderr.splitlines()
    assert first == "inner: 1 of 4 steps, 0:00" and "a line that stays" in rest
    assert "outer" not in done.stderr and "\x1b" not in done.stderr and "\r" not in done.stderr
    assert len(rest) <= 4  # each silence is as long as all the time before it


@pytest.mark.parametrize(("term", "is_live"), [("xterm", True), ("dumb", False)])
def test_on_a_terminal_one_line_that_is_gone_at_the_end(term: str, is_live: bool) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", _SLOW], stderr=theirs, env={**os.environ, "TERM": term}) as process:
        os.close(theirs)
        process.wait(60)
    said = os.read(ours, 65536).decode()
    os.close(ours)
    assert ("\r\x1b[2Kinner: 1 of 4 steps" in said) == is_live
    assert said.endswith("\r\x1b[2K") == is_live
    assert "\x1b[2Ka line that stays\r\n" in said if is_live else "\x1b" not in said


def test_a_fault_within_is_not_hidden(capfd) -> None:
    with pytest.raises(ZeroDivisionError), Waiting("dividing", quiet_seconds=0.0) as wait:
        wait.count(0, 0, "items")
        assert wait.line() == "dividing: 0:00"
        raise ZeroDivisionError
    say_aside("afterwards")
    assert capfd.readouterr().err.endswith("afterwards\n")
