import itertools
import time

import pytest

from burnish.records import Message, Task
from burnish.rewards.answers import exact_match, last_number
from burnish.rewards.check import check_reward

TASKS = [Task(id=str(i), messages=(Message(role="user", content=f"{i}+1?"),), answer=str(i + 1)) for i in range(5)]
COUNT = itertools.count()


def short(completion, task):
    return 1.0 / (1 + len(completion.text))


def picky(completion, task):
    return float(completion.text.split()[0] == task.answer)


def wants_a_phrase(completion, task):
    return float(f"the answer is {task.answer}" in completion.text)


def drifting(completion, task):
    return 100.0 + next(COUNT)


def slow(completion, task):
    time.sleep(0.3 if len(completion.text) > 1000 else 0)
    return float(completion.text == task.answer)


@pytest.mark.parametrize("reward", [last_number, exact_match])
def test_what_ships_passes(reward) -> None:
    assert check_reward(reward, TASKS) == []


@pytest.mark.parametrize(
    ("reward", "finding"),
    [
        (short, "an empty answer scores 1, more than the reference answer's 0.5"),
        (picky, "an empty answer has no score: IndexError"),
        (wants_a_phrase, "no reference answer scores above 0: is '1' what a right answer looks like?"),
        (drifting, "it is not repeatable"),
        (slow, "a very long answer has no score: no result within 0.1 s"),
        (lambda completion, task: "yes", "the reference answer '1' has no score: a reward must be a finite number"),
    ],
)
def test_what_is_wrong_is_named(reward, finding: str) -> None:
    findings = check_reward(reward, TASKS, timeout_seconds=0.1)
    assert any(finding in each for each in findings), findings
