import asyncio
import random
import time

import pytest

from burnish.environments.base import StepResult
from burnish.environments.check import check_environment
from burnish.environments.examples import Calculator, GuessTheNumber, secret_of
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


class Moody(Good):
    """Counts the turns of all conversations."""

    count = 0

    def step(self, said):
        Moody.count += 1
        result = super().step(said)
        return StepResult(messages=(Message(role="user", content=str(Moody.count % 5)),), reward=result.reward)


class Shared(Good):
    """The answer of the conversation that began last is every conversation's."""

    last = ""

    def reset(self, task):
        Shared.last = task.answer
        return task.messages

    def step(self, said):
        self.answer = Shared.last
        return super().step(said)


class Endless(Good):
    def step(self, said):
        result = super().step(said)
        return StepResult(messages=(Message(role="user", content="more"),), reward=result.reward if result.done else 0)


class Generous(Good):
    def step(self, said):
        return StepResult(reward=1.0, done=True)


class Meddler(Good):
    def reset(self, task):
        task.extra["seen"] = True
        return super().reset(task)


class Hesitant(Good):
    async def reset(self, task):
        await asyncio.sleep(0)
        return super().reset(task)

    async def step(self, said):
        await asyncio.sleep(0)
        return super().step(said)


class Harder(Good):
    best_reward = 3.0

    def step(self, said):
        result = super().step(said)
        return StepResult(messages=result.messages, reward={"right": 3 * result.reward}, done=result.done)


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


@pytest.mark.parametrize("make", [Good, Calculator, Hesitant, Harder])
def test_what_works_passes(make) -> None:
    assert check_environment(make, TASKS) == []


def test_a_game_is_played_by_its_own_gold_player() -> None:
    def knows_the_number(task, messages) -> str:
        return str(secret_of(task))

    assert check_environment(GuessTheNumber, TASKS, knows_the_number) == []
    assert any("the gold answer earns" in each for each in check_environment(GuessTheNumber, TASKS, lambda *_: "20"))


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        (Moody, "the same turns on the same task get other answers the second time"),
        (Shared, "goes on differently when another one takes turns with it"),
        (OtherStart, "the same task begins with"),
        (Brittle, "an empty answer makes it fail: ValueError"),
        (Stingy, "task '0+1?': the gold answer earns 0, not 1"),
        (Generous, "task '0+1?': 'I do not know.' earns 1, no less than the gold answer should"),
        (Endless, "task '0+1?': the gold answer is not done after 8 turns"),
        (Meddler, "the environment changes the task's fields"),
        (Silent, "is answered with nothing, and the conversation goes on"),
        (Stranger, "a message's role must be one of system, user, assistant, tool, got 'robot'"),
        (Wordy, "step must return a StepResult, got str"),
        (Slow, "took longer than 0.02 s"),
    ],
)
def test_what_is_wrong_is_named(make, finding: str) -> None:
    findings = check_environment(make, TASKS, timeout_seconds=0.02 if make is Slow else 10.0)
    assert any(finding in each for each in findings), findings
