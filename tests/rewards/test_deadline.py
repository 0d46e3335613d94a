"""A time limit outside the main thread, where there is no signal."""

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
