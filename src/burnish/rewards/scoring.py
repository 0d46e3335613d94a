"""Calling a reward: by import path, each call with a time limit, a failure kept to its own completion."""

import asyncio
import importlib
import inspect
import math
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from burnish.errors import ConfigError
from burnish.records import Completion, Task

RewardValue = float | Mapping[str, float]
Reward = Callable[[Completion, Task], RewardValue | Awaitable[RewardValue]]


@dataclass(frozen=True, slots=True)
class Score:
    """A reward's value; `components` sum to it when the reward named them."""

    value: float
    components: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """Why one completion has no score."""

    reason: str


def load_reward(path: str) -> Reward:
    """Import a reward by `package.module:name`; modules of the working directory are found too.

    Raises:
        ConfigError: the path is malformed, or leads to nothing that can be called with (completion, task).
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"task.reward: {path!r} is not of the form package.module:name")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        reward = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"task.reward: cannot import {path!r}: {error}") from error
    try:
        inspect.signature(reward).bind(None, None)
    except TypeError as error:
        raise ConfigError(f"task.reward: {path!r} must take (completion, task): {error}") from error
    found: Reward = reward
    return found


def score_all(
    reward: Reward, pairs: Sequence[tuple[Completion, Task]], *, timeout_seconds: float
) -> list[Score | ScoreFailure]:
    """Score every completion. One that raises, times out or returns no finite number fails alone.

    A coroutine function is awaited for all pairs at once; a plain function is called in order, in the main thread,
    interrupted by a timer.
    """
    if inspect.iscoroutinefunction(reward):
        return asyncio.run(_score_concurrently(reward, pairs, timeout_seconds))
    return [_score_one(reward, completion, task, timeout_seconds) for completion, task in pairs]


def _score_one(reward: Reward, completion: Completion, task: Task, timeout_seconds: float) -> Score | ScoreFailure:
    try:
        with _deadline(timeout_seconds):
            return _to_score(reward(completion, task))
    except Exception as error:  # a user's code may raise anything; it must cost one completion, not the run
        return ScoreFailure(f"{type(error).__name__}: {error}")


async def _score_concurrently(
    reward: Callable[[Completion, Task], Awaitable[RewardValue]],
    pairs: Sequence[tuple[Completion, Task]],
    timeout_seconds: float,
) -> list[Score | ScoreFailure]:
    calls = (asyncio.wait_for(reward(completion, task), timeout_seconds) for completion, task in pairs)
    results = await asyncio.gather(*calls, return_exceptions=True)
    scores: list[Score | ScoreFailure] = []
    for result in results:
        if isinstance(result, Exception):
            scores.append(ScoreFailure(f"{type(result).__name__}: {result}"))
        elif isinstance(result, BaseException):
            raise result
        else:
            scores.append(_to_score(result))
    return scores


def _to_score(value: Any) -> Score | ScoreFailure:
    components = value if isinstance(value, Mapping) else {}
    total = sum(components.values()) if isinstance(value, Mapping) else value
    if not isinstance(total, (int, float)) or not math.isfinite(total):
        return ScoreFailure(f"a reward must be a finite number or named numbers, got {value!r}")
    return Score(float(total), {name: float(part) for name, part in components.items()})


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def give_up(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no result within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
