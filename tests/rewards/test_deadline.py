"""A time limit outside the main thread, where there is no signal."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from burnish.rewards.deadline import TooSlowError, time_limit


def forever() -> None:
    while True:
        pass


def test_code_in_another_thread_is_interrupted_once() -> None:
    def job() -> float:
        began = time.monotonic()
        with pytest.raises(TooSlowError), time_limit(0.1):
            forever()
        took = time.monotonic() - began
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:  # nothing comes afterwards
            pass
        return took

    with ThreadPoolExecutor(1) as pool:
        assert 0.1 <= pool.submit(job).result(timeout=30) < 5


def test_what_swallows_the_first_gets_another() -> None:
    def job() -> int:
        swallowed = 0
        with pytest.raises(TooSlowError), time_limit(0.05):
            try:
                forever()
            except BaseException:
                swallowed += 1
            forever()
        return swallowed

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(job).result(timeout=30) == 1


def test_limits_nest_and_leave_no_trace() -> None:
    def job() -> str:
        with time_limit(5):
            with pytest.raises(TooSlowError), time_limit(0.05):
                forever()
            return "went on"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(job).result(timeout=30) == "went on"


TRACED = """
import sys, threading, time
from burnish.rewards.deadline import TooSlowError, time_limit

def after(x):
    y = 1
    return (lambda: x + y)()

def work():
    try:
        with time_limit({limit}):
            until = time.monotonic() + {work}
            while time.monotonic() < until:
                pass
    except TooSlowError:
        pass
    sys.settrace(lambda *_: None)
    print(after(1))

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.parametrize(("limit", "work"), [(30, 0), (0.2, 5), (0.05, 0.0501)], ids=["in time", "too slow", "just"])
def test_a_limit_leaves_a_thread_that_can_be_traced(limit: float, work: float) -> None:
    """Python 3.11 never goes on in a traced call while an exception of another thread is withdrawn but not taken."""
    code = TRACED.format(limit=limit, work=work)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "2\n", done.stderr
