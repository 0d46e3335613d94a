"""The check of a user's environment: gold answers and garbage, said in plain words."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from burnish.environments.base import MakeEnvironment, StepResult
from burnish.environments.calling import Caller, Fault, Held
from burnish.records import Message, Task
from burnish.rewards.check import as_completion
from burnish.rewards.probes import GARBAGE

Say = Callable[[Task, Sequence[Message]], str]
"""What a player says to a task, given the conversation so far, its own turns included."""

_WRONG = "I do not know."
_MAX_TURNS = 8
_CALLS = {
    "deep nesting": "[" * 20_000,
    "a call that is no JSON": "<tool_call>f(1)</tool_call>",
    "a call of an unknown tool": '<tool_call>{"name": "no_such_tool", "arguments": {}}</tool_call>',
}


def reference_answer(task: Task, messages: Sequence[Message]) -> str:
    """Says the task's answer."""
    return task.answer


def check_environment(
    make: MakeEnvironment, tasks: Sequence[Task], gold: Say = reference_answer, *, timeout_seconds: float = 10.0
) -> list[str]:
    """What is wrong with an environment, each in a sentence that names the input; empty where nothing was found.

    `gold(task, messages)` plays perfectly: it must earn 1 on every task, or the environment's `best_reward`, and be
    done within eight turns. "I do not know." must earn less. The same task must begin and go on in the same way each
    time, also when two conversations take turns, and must not be changed by it. Garbage must get an answer in time.
    """
    findings = []
    with Caller(timeout_seconds) as caller:
        table = _Table(caller, make)
        for task in tasks:
            findings += _check_task(table, task, gold)
        for what, text in (GARBAGE | _CALLS).items():
            (game,) = table.play((tasks[0], _always(text)))
            if game.fault is not None:
                findings.append(f"{what} makes it fail: {game.fault}")
            elif any(not answer.done and not answer.messages for answer in game.answers):
                findings.append(f"{what} is answered with nothing, and the conversation goes on")
        # what is not repeatable alone says nothing beside another one
        findings += _check_repetition(table, tasks[0], gold) or _check_independence(
            table, (tasks[0], gold), (tasks[-1], _always(_WRONG))
        )
    return findings


@dataclass(slots=True)
class _Game:
    """A conversation with a player."""

    task: Task
    say: Say
    held: Held
    began: Sequence[Message] = ()
    messages: list[Message] = field(default_factory=list)
    answers: list[StepResult] = field(default_factory=list)
    fault: str | None = None
    best: float = 1.0

    @property
    def is_over(self) -> bool:
        return self.fault is not None or any(answer.done for answer in self.answers)

    @property
    def total(self) -> float:
        rewards = [answer.reward for answer in self.answers]
        return float(sum(sum(each.values()) if isinstance(each, Mapping) else each for each in rewards))


@dataclass(frozen=True, slots=True)
class _Table:
    """Where games are played, one turn of each after the other."""

    caller: Caller
    make: MakeEnvironment

    def play(self, *seats: tuple[Task, Say]) -> list[_Game]:
        games = [_Game(task, say, Held(self.make, self.caller.timeout_seconds * _MAX_TURNS)) for task, say in seats]
        for game in games:
            (found,) = self.caller.reset([game.held], [game.task])
            if isinstance(found, Fault):
                game.fault = f"reset: {found.reason}"
            else:
                game.began, game.messages = found, list(found)
                game.best = float(getattr(game.held.environment, "best_reward", 1.0))
        for _ in range(_MAX_TURNS):
            for game in games:
                if not game.is_over:
                    self._turn(game)
        self.caller.close([game.held for game in games])
        return games

    def _turn(self, game: _Game) -> None:
        said = game.say(game.task, tuple(game.messages))
        (found,) = self.caller.step([game.held], [as_completion(said)])
        if isinstance(found, Fault):
            game.fault = found.reason
        else:
            game.answers.append(found)
            game.messages += [Message(role="assistant", content=said), *found.messages]


def _check_task(table: _Table, task: Task, gold: Say) -> list[str]:
    name = f"task {task.messages[-1].content[:40]!r}"
    findings = []
    before = copy.deepcopy(dict(task.extra))
    (game,) = table.play((task, gold))
    if game.fault is not None:
        findings.append(f"{name}: the gold answer makes it fail: {game.fault}")
    elif not game.is_over:
        findings.append(f"{name}: the gold answer is not done after {_MAX_TURNS} turns")
    elif not math.isclose(game.total, game.best):
        findings.append(
            f"{name}: the gold answer earns {game.total:g}, not {game.best:g} (its best_reward, 1 where it has none)"
        )
    if dict(task.extra) != before:
        findings.append(f"{name}: the environment changes the task's fields")
    (wrong,) = table.play((task, _always(_WRONG)))
    if wrong.fault is not None:
        findings.append(f"{name}: {_WRONG!r} makes it fail: {wrong.fault}")
    elif wrong.total >= game.best:
        findings.append(f"{name}: {_WRONG!r} earns {wrong.total:g}, no less than the gold answer should")
    return findings


def _check_repetition(table: _Table, task: Task, gold: Say) -> list[str]:
    (first,), (second,) = table.play((task, gold)), table.play((task, gold))
    if first.began != second.began:
        return [f"the same task begins with {_shown(first.began)}, then with {_shown(second.began)}"]
    if first.answers != second.answers:
        return ["the same turns on the same task get other answers the second time"]
    return []


def _check_independence(table: _Table, *seats: tuple[Task, Say]) -> list[str]:
    alone = [game for seat in seats for game in table.play(seat)]
    together = table.play(*seats)
    if [(game.fault, game.began, game.answers) for game in alone] != [
        (game.fault, game.began, game.answers) for game in together
    ]:
        return ["a conversation goes on differently when another one takes turns with it: is something shared?"]
    return []


def _always(text: str) -> Say:
    return lambda task, messages: text


def _shown(messages: Sequence[Message]) -> str:
    return repr(messages[-1].content[:60]) if messages else "nothing"
