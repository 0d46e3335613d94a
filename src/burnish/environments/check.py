"""The check of a user's environment: gold answers, garbage, and conversations side by side, said in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from burnish.data.rows import ROLES
from burnish.environments.base import Environment, MakeEnvironment, StepResult
from burnish.records import Message, Task
from burnish.rewards.check import GARBAGE, as_completion
from burnish.rewards.deadline import TooSlowError, time_limit
from burnish.rewards.scoring import ScoreFailure, to_score

_TURNS = 4


def check_environment(make: MakeEnvironment, tasks: Sequence[Task], *, timeout_seconds: float = 10.0) -> list[str]:
    """What is wrong with an environment, each in a sentence that names the input; empty where nothing was found.

    The reference answer of a task must earn more than garbage does; the same words must get the same answers, in a
    conversation alone and beside another; garbage must be answered, in time, with finite rewards and known roles.
    """
    findings: list[str] = []
    try:
        with time_limit(timeout_seconds * (len(tasks) + len(GARBAGE) + 4)):
            for check in (_begins_the_same, _answers_garbage, _pays_for_gold, _stands_alone):
                findings += dict.fromkeys(check(make, tasks))
    except TooSlowError:
        findings.append(f"it takes longer than {timeout_seconds:g} s to answer")
    return findings


def _begins_the_same(make: MakeEnvironment, tasks: Sequence[Task]) -> Iterator[str]:
    for task in tasks:
        first, second = (tuple(make().reset(task)) for _ in range(2))
        if first != second:
            yield f"reset is not a function of the task alone: {task.id} begins with other messages the second time"
        yield from _faulty_messages("reset", first)
        if not first:
            yield "reset returns no message to ask with"


def _answers_garbage(make: MakeEnvironment, tasks: Sequence[Task]) -> Iterator[str]:
    for what, text in GARBAGE.items():
        environment = _started(make, tasks[0])
        try:
            result = environment.step(as_completion(text))
        except Exception as error:  # a user's code may raise anything
            yield f"{what} makes step raise {type(error).__name__}: {error}"
            continue
        if not isinstance(result, StepResult):
            yield f"step must return a StepResult, got {type(result).__name__}"
            return
        score = to_score(result.reward)
        if isinstance(score, ScoreFailure):
            yield f"{what}: {score.reason}"
        yield from _faulty_messages("step", result.messages)
        if not result.done and not result.messages:
            yield f"{what} is answered with nothing, and the conversation goes on: the model would have to speak twice"


def _pays_for_gold(make: MakeEnvironment, tasks: Sequence[Task]) -> Iterator[str]:
    earned = [_total(make, task, [task.answer]) for task in tasks]
    nothing = [_total(make, task, ["", "nonsense"]) for task in tasks]
    if sum(earned) <= sum(nothing):
        example = tasks[0].answer[:40]
        both = f"the reference answers earn {sum(earned):g} and nonsense {sum(nothing):g}"
        yield f"{both}: is {example!r} what a right answer looks like?"


def _stands_alone(make: MakeEnvironment, tasks: Sequence[Task]) -> Iterator[str]:
    words = ["nonsense", tasks[0].answer, "7", "more"][:_TURNS]
    alone = _answers(_started(make, tasks[0]), words)
    again = _answers(_started(make, tasks[0]), words)
    if alone != again:
        yield "the same words get other answers the second time"
        return
    one, two = _started(make, tasks[0]), _started(make, tasks[-1])
    beside = []
    for word in words:
        beside += _answers(one, [word])
        _answers(two, ["something else"])
    if beside[: len(alone)] != alone:
        yield "two conversations side by side change each other: state is shared between instances"


def _started(make: MakeEnvironment, task: Task) -> Environment:
    environment = make()
    environment.reset(task)
    return environment


def _answers(environment: Environment, words: Sequence[str]) -> list[StepResult]:
    results: list[StepResult] = []
    for word in words:
        try:
            result = environment.step(as_completion(word))
        except Exception:  # reported by the check of garbage; here only equality matters
            break
        if not isinstance(result, StepResult):  # likewise
            break
        results.append(result)
        if result.done:
            break
    return results


def _total(make: MakeEnvironment, task: Task, words: Sequence[str]) -> float:
    scores = [to_score(result.reward) for result in _answers(_started(make, task), words)]
    return sum(score.value for score in scores if not isinstance(score, ScoreFailure))


def _faulty_messages(method: str, messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        if not isinstance(message, Message):
            yield f"{method} must return messages, got {type(message).__name__}"
        elif message.role not in ROLES:
            yield f"{method} returns a message of role {message.role!r}; known are {', '.join(ROLES)}"
