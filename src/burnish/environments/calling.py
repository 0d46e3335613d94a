"""Calling environments, which are a user's code: each call has a deadline, and a fault costs its own conversation."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from burnish.data.rows import ROLES
from burnish.environments.base import Environment, MakeEnvironment, StepResult
from burnish.records import Completion, Message, Task
from burnish.rewards.deadline import TooSlowError, is_cancelled, time_limit

_CLOSE_SECONDS = 5.0
_LEAST_SECONDS = 1e-3  # a timer of 0 would be none


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a call has no result."""

    reason: str


@dataclass(slots=True)
class Held:
    """The environment of one conversation, which each reset makes anew, and the seconds its calls may still take."""

    make: MakeEnvironment
    seconds_left: float
    environment: Environment | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    held: Held
    method: Callable[..., Any]
    arguments: tuple[Any, ...]
    seconds: float


class Caller:
    """Calls environments, each call for at most `timeout_seconds`; used in a `with` block.

    Coroutine functions wait together, so one that is slow delays nobody. Plain functions run one after the other, each
    interrupted by a timer of this, the main thread.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds

    def __enter__(self) -> Caller:
        self._runner = asyncio.Runner()  # one event loop for all turns, so that connections outlive a turn
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(TooSlowError), time_limit(_CLOSE_SECONDS):  # threads and tasks that do not end are left behind
            self._runner.close()

    def reset(self, those: Sequence[Held], tasks: Sequence[Task]) -> list[tuple[Message, ...] | Fault]:
        """The messages that each conversation begins with, from a new environment."""
        self.close(those)
        made = [_now(self._limited(held, held.make)) for held in those]
        calls = []
        for held, task, environment in zip(those, tasks, made, strict=True):
            if not isinstance(environment, Fault):
                held.environment = environment
                calls.append(self._limited(held, environment.reset, task))
        found = iter(self._all(calls))
        return [each if isinstance(each, Fault) else _checked_messages(next(found)) for each in made]

    def step(self, those: Sequence[Held], said: Sequence[Completion]) -> list[StepResult | Fault]:
        """The answer to each turn."""
        calls = [self._limited(held, _begun(held).step, turn) for held, turn in zip(those, said, strict=True)]
        return [_checked_step(found) for found in self._all(calls)]

    def close(self, those: Sequence[Held]) -> None:
        """Let environments go that have something to let go of; one that cannot is left alone."""
        closing = [(held, close) for held in those if (close := getattr(held.environment, "close", None)) is not None]
        self._all([_Call(held, close, (), _CLOSE_SECONDS) for held, close in closing])
        for held in those:
            held.environment = None

    def _limited(self, held: Held, method: Callable[..., Any], *arguments: Any) -> _Call:
        return _Call(held, method, arguments, min(self.timeout_seconds, max(held.seconds_left, _LEAST_SECONDS)))

    def _all(self, calls: Sequence[_Call]) -> list[Any]:
        waiting = {index: call for index, call in enumerate(calls) if inspect.iscoroutinefunction(call.method)}
        found = self._wait_for(waiting) if waiting else {}
        return [found[index] if index in waiting else _now(call) for index, call in enumerate(calls)]

    def _wait_for(self, calls: Mapping[int, _Call]) -> dict[int, Any]:
        blocks = Fault("the environment blocks: a coroutine must await what it waits for")
        found: dict[int, Any] = dict.fromkeys(calls, blocks)

        async def one(index: int, call: _Call) -> None:
            began = time.monotonic()
            try:
                found[index] = await asyncio.wait_for(_without_exit(call), call.seconds)
            except (TimeoutError, TooSlowError):
                found[index] = _too_slow(call)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a user's code; it must cost one conversation, not the run
                if is_cancelled():
                    raise
                found[index] = Fault(f"{type(error).__name__}: {error}")
            call.held.seconds_left -= time.monotonic() - began

        async def everything() -> None:
            await asyncio.gather(*(one(index, call) for index, call in calls.items()))

        # By then wait_for has ended every call that awaits; the timer ends those that block.
        with suppress(TooSlowError), time_limit(2 * max(call.seconds for call in calls.values())):
            self._runner.run(everything())
        return found


async def _without_exit(call: _Call) -> Any:
    try:
        return await call.method(*call.arguments)
    except SystemExit as error:  # which would end the loop before anybody could catch it
        return Fault(f"SystemExit: {error}")


def _begun(held: Held) -> Environment:
    if held.environment is None:
        raise ValueError("an environment is stepped before it was reset")
    return held.environment


def _now(call: _Call) -> Any:
    began = time.monotonic()
    try:
        with time_limit(call.seconds):
            return call.method(*call.arguments)
    except TooSlowError:
        return _too_slow(call)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as in `_wait_for`
        return Fault(f"{type(error).__name__}: {error}")
    finally:
        call.held.seconds_left -= time.monotonic() - began


def _too_slow(call: _Call) -> Fault:
    return Fault(f"the environment took longer than {call.seconds:g} s")


def _checked_messages(found: Any) -> tuple[Message, ...] | Fault:
    if isinstance(found, Fault):
        return found
    if isinstance(found, str) or not isinstance(found, Sequence) or not found:
        return Fault(f"reset must return the messages to ask with, got {found!r}"[:200])
    return _wrong_message(found) or tuple(found)


def _checked_step(found: Any) -> StepResult | Fault:
    if isinstance(found, Fault):
        return found
    if not isinstance(found, StepResult):
        return Fault(f"step must return a StepResult, got {type(found).__name__}")
    rewards = found.reward.values() if isinstance(found.reward, Mapping) else [found.reward]
    if not all(isinstance(reward, numbers.Real) and math.isfinite(reward) for reward in rewards):
        return Fault(f"a reward must be a finite number or named numbers, got {found.reward!r}"[:200])
    return _wrong_message(found.messages) or found


def _wrong_message(messages: Sequence[Any]) -> Fault | None:
    """What is wrong with messages of an environment."""
    for message in messages:
        if not isinstance(message, Message) or not isinstance(message.content, str):
            return Fault(f"a message must be a Message with text, got {message!r}"[:200])
        if message.role not in ROLES:
            return Fault(f"a message's role must be one of {', '.join(ROLES)}, got {message.role!r}")
        try:
            message.content.encode()
        except UnicodeEncodeError:
            return Fault("a message holds half a character (a lone surrogate), which no tokenizer can read")
    return None
