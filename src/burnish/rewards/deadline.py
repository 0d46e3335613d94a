"""A time limit for a user's code that runs in this process."""

import asyncio
import ctypes
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TooSlowError(BaseException):
    """Not an Exception, so that the code's own `except Exception` does not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlowError in the block after `seconds`, and again and again, should the block swallow the first.

    Limits nest: the shorter one comes first, and what is left of the outer one goes on after the block. In the main
    thread it is a timer signal: code that sets `signal.alarm` itself switches it off. In another thread the exception
    comes between two operations of Python: a call that waits in the system is not interrupted before it returns.
    """
    if threading.current_thread() is not threading.main_thread():
        with _thread_limit(seconds):
            yield
        return

    def give_up(signum: int, frame: FrameType | None) -> None:
        raise TooSlowError

    began = time.monotonic()
    outer_seconds, outer_interval = signal.getitimer(signal.ITIMER_REAL)
    first = min(seconds, outer_seconds) if outer_seconds else seconds
    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, first, first)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # before the handler goes: without one the signal ends the process
        signal.signal(signal.SIGALRM, previous)
        if outer_seconds:
            left = max(outer_seconds - (time.monotonic() - began), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, left, outer_interval)


@contextmanager
def _thread_limit(seconds: float) -> Iterator[None]:
    block, ended, was_raised = ctypes.c_ulong(threading.get_ident()), threading.Event(), threading.Event()
    one_of_us = threading.Lock()  # so that nothing is raised after the block

    def interrupt() -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(block, ctypes.py_object(TooSlowError))

    def watch() -> None:
        while not ended.wait(seconds):
            with one_of_us:
                if not ended.is_set():
                    was_raised.set()
                    interrupt()

    watcher = threading.Thread(target=watch, name="time limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        while True:
            try:
                with one_of_us:
                    ended.set()
                    if was_raised.is_set():
                        # Let one arrive, in place of one that has not yet. To withdraw it would do for us, but Python
                        # 3.11 would wait for it for ever: slowly, and without end where something traces calls.
                        interrupt()
                        while True:
                            time.sleep(0)
                break
            except TooSlowError:  # one that arrives here
                if ended.is_set():
                    break
        watcher.join()


def is_cancelled() -> bool:
    """Whether somebody has cancelled the task that is running: a CancelledError is then not its own fault."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
