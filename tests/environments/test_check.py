import random
import time

import pytest

from burnish.environments.base import StepResult
from burnish.environments.check import check_environment
from burnish.environments.examples import Calculator
from burnish.records import Message, Task

TASKS = [Task(id=f"t{i}", messages=(Message(role="user", content=f"{i}+1?"),), answer=str(i + 1)) for i in range(4)]


class Good:
    def __init__(self) -> None:
        self.answer = ""
        self.turns = 0

    def reset(self, task):
        self.answer = task.answer
        return task.messages

    def step(self, said):
        self.turns += 1
        right = said.text.strip() == self.answer
        again = () if right else (Message(role="user", content=f"try {self.turns + 1}"),)
        return StepResult(messages=again, reward=float(right), done=right)


class Shared(Good):
    count = 0

    def step(self, said):
        Shared.count += 1
        result = super().step(said)
        return StepResult(messages=(Message(role="user", content=str(Shared.count % 5)),), reward=result.reward)


class OtherStart(Good):
    def reset(self, task):
        super().reset(task)
        return (Message(role="user", content=str(random.random())),)


class Brittle(Good):
    def step(self, said):
        int(said.text)
        return super().step(said)


class Stingy(Good):
    def step(self, said):
        return StepResult(reward=0.0, done=True)


class Silent(Good):
    def step(self, said):
        return StepResult(reward=float(said.text == self.answer))


class Stranger(Good):
    def step(self, said):
        return StepResult(messages=(Message(role="robot", content="hm"),), reward=float(said.text == self.answer))


class Wordy(Good):
    def step(self, said):
        return "no"


class Slow(Good):
    def step(self, said):
        time.sleep(9)
        return super().step(said)


@pytest.mark.parametrize("make", [Good, Calculator])
def test_what_works_passes(make) -> None:
    assert check_environment(make, TASKS) == []


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        (Shared, "the same words get other answers the second time"),
        (OtherStart, "reset is not a function of the task alone: t0"),
        (Brittle, "an empty answer makes step raise ValueError"),
        (Stingy, "the reference answers earn 0 and nonsense 0: is '1' what a right answer looks like?"),
        (Silent, "is answered with nothing, and the conversation goes on"),
        (Stranger, "a message of role 'robot'; known are system, user, assistant, tool"),
        (Wordy, "step must return a StepResult, got str"),
        (Slow, "takes longer than 0.02 s to answer"),
    ],
)
def test_what_is_wrong_is_named(make, finding: str) -> None:
    findings = check_environment(make, TASKS, timeout_seconds=0.02 if make is Slow else 10.0)
    assert any(finding in each for each in findings), findings
