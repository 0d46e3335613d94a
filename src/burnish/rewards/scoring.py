"""Calling a reward: by import path, each call with a time limit, a failure kept to its own completion."""

import asyncio
import inspect
import math
import numbers
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from burnish.config.imports import import_by_path
from burnish.errors import DataError
from burnish.records import Completion, Task
from burnish.rewards.deadline import TooSlowError, is_cancelled, time_limit

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


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """Rewards with their weights, by name; `combine.weighted` makes one.

    `score_all` scores each part like a reward by itself, so that a plain function does not hold up a coroutine.
    """

    parts: Mapping[str, tuple[float, Reward]]

    async def __call__(self, completion: Completion, task: Task) -> RewardValue:
        """The weighted components of one completion.

        Raises:
            DataError: a part gives no finite number or named numbers.
        """
        scores = {}
        for name, (_, reward) in self.parts.items():
            value = reward(completion, task)
            scores[name] = to_score(await value if inspect.isawaitable(value) else value)
        weighed = self.weigh(scores)
        if isinstance(weighed, ScoreFailure):
            raise DataError(weighed.reason)
        return weighed.components

    def weigh(self, scores: Mapping[str, Score | ScoreFailure]) -> Score | ScoreFailure:
        """The score of one completion from those of its parts; one failure is a failure of the whole."""
        components = {}
        for name, (weight, _) in self.parts.items():
            score = scores[name]
            if isinstance(score, ScoreFailure):
                return ScoreFailure(f"{name}: {score.reason}")
            components[name] = weight * score.value
        return Score(sum(components.values()), components)


def load_reward(path: str) -> Reward:
    """Import a reward by `package.module:name`; modules of the working directory are found too.

    Raises:
        ConfigError: the path is malformed, or leads to nothing that can be called with (completion, task).
    """
    found: Reward = import_by_path(path, "task.reward", arguments=("completion", "task"))
    return found


def score_all(
    reward: Reward, pairs: Sequence[tuple[Completion, Task]], *, timeout_seconds: float
) -> list[Score | ScoreFailure]:
    """Score every completion. One that raises, times out or returns no finite number fails alone.

    A coroutine function is awaited for all pairs at once; a plain function is called in order. Either is interrupted
    by a timer of this, the main thread, which a reward that sets its own `signal.alarm` switches off. The parts of a
    `WeightedReward` have the time limit each.
    """
    if isinstance(reward, WeightedReward):
        by_part = [score_all(part, pairs, timeout_seconds=timeout_seconds) for _, part in reward.parts.values()]
        return [reward.weigh(dict(zip(reward.parts, scores, strict=True))) for scores in zip(*by_part, strict=True)]
    if inspect.iscoroutinefunction(reward):
        return _score_concurrently(reward, pairs, timeout_seconds)
    return [_score_one(reward, completion, task, timeout_seconds) for completion, task in pairs]


def require_scores(failures: Sequence[str], num_completions: int) -> None:
    """Raise a DataError if more than half of the scores are failures: a figure made of the rest would mislead."""
    if 2 * len(failures) > num_completions:
        raise DataError(
            f"task.reward failed for {len(failures)} of {num_completions} completions; first: {failures[0]}"
        )


def _score_one(reward: Reward, completion: Completion, task: Task, timeout_seconds: float) -> Score | ScoreFailure:
    try:
        with time_limit(timeout_seconds):
            return to_score(reward(completion, task))
    except TooSlowError:
        return ScoreFailure(f"no result within {timeout_seconds:g} s")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's code may raise anything; it must cost one completion, not the run
        return ScoreFailure(f"{type(error).__name__}: {error}")


def _score_concurrently(
    reward: Callable[[Completion, Task], Awaitable[RewardValue]],
    pairs: Sequence[tuple[Completion, Task]],
    timeout_seconds: float,
) -> list[Score | ScoreFailure]:
    blocks = ScoreFailure("an async reward blocks: it must await what it waits for")
    found: dict[int, Score | ScoreFailure] = dict.fromkeys(range(len(pairs)), blocks)

    async def without_exit(completion: Completion, task: Task) -> RewardValue | ScoreFailure:
        try:
            return await reward(completion, task)
        except SystemExit as error:  # which would end the loop before anybody could catch it
            return ScoreFailure(f"SystemExit: {error}")

    async def score(index: int, completion: Completion, task: Task) -> None:
        try:
            value = await asyncio.wait_for(without_exit(completion, task), timeout_seconds)
            found[index] = value if isinstance(value, ScoreFailure) else to_score(value)
        except (TimeoutError, TooSlowError):
            found[index] = ScoreFailure(f"no result within {timeout_seconds:g} s")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # as in _score_one
            if is_cancelled():
                raise
            found[index] = ScoreFailure(f"{type(error).__name__}: {error}")

    async def score_everything() -> None:
        await asyncio.gather(*(score(index, *pair) for index, pair in enumerate(pairs)))

    # By then wait_for has ended every call that awaits; the timer ends those that block, and threads left behind.
    with suppress(TooSlowError), time_limit(2 * timeout_seconds):
        asyncio.run(score_everything())
    return [found[index] for index in range(len(pairs))]


def to_score(value: Any) -> Score | ScoreFailure:
    """What a reward returned as a score, or why it is none."""
    parts = value if isinstance(value, Mapping) else {"": value}
    if not all(isinstance(part, numbers.Real) and math.isfinite(part) for part in parts.values()):
        return ScoreFailure(f"a reward must be a finite number or named numbers, got {value!r}")
    components = {str(name): float(part) for name, part in parts.items()}
    return Score(sum(components.values()), components if isinstance(value, Mapping) else {})
