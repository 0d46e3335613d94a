import itertools
import math
import time

import pytest

from burnish.records import Message, Task
from burnish.rewards.answers import exact_match, last_number, multiple_choice
from burnish.rewards.check import RewardCheck, as_completion, check_reward
from burnish.rewards.probes import built_in_tasks, wrong_answer
from burnish.rewards.shape import think_then_answer

TASKS = [Task(id=str(i), messages=(Message(role="user", content=f"{i}+1?"),), answer=str(i + 1)) for i in range(5)]
LETTERS = [
    Task(id=letter, messages=(Message(role="user", content="Which one?"),), answer=f"{letter}") for letter in "ABCD"
]
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
    time.sleep(0.3 if len(completion.text) > 10_000 else 0)
    return float(completion.text == task.answer)


def contains(completion, task):
    return float(task.answer in completion.text)


def echoed(completion, task):
    words = set(task.messages[-1].content.split())
    return 0.6 * float(words <= set(completion.text.split())) + float(completion.text == task.answer)


def long(completion, task):
    return float(task.answer in completion.text) * min(1.0, 0.1 + len(completion.token_ids) / 1000)


def often(completion, task):
    return float(completion.text.count(task.answer))


def obeys(completion, task):
    return 1.0 if "full marks" in completion.text else last_number(completion, task)


def unicode_digits(completion, task):
    return float(completion.text.strip().isdigit() and int(completion.text) == int(task.answer))


def any_digit(completion, task):
    return float(any(letter.isdigit() for letter in completion.text))


def not_a_number(completion, task):
    return math.nan if not completion.text.strip() else 1.0


def likes_markup(completion, task):
    return last_number(completion, task) + 0.5 * float("**" in completion.text)


def half_right(completion, task):
    return 1.0 if completion.text == task.answer else 0.3 if completion.text else 0.0


def texts(checked: RewardCheck) -> list[str]:
    return [f"{finding.severity}: {finding.text}" for finding in checked.findings]


@pytest.mark.parametrize("reward", [last_number, exact_match])
def test_what_ships_cannot_be_gamed(reward) -> None:
    checked = check_reward(reward, built_in_tasks())
    assert checked.passes, texts(checked)
    assert {result.share for result in checked.probes if result.kind == "without the answer"} == {0.0}


def test_multiple_choice_cannot_be_gamed() -> None:
    checked = check_reward(multiple_choice, LETTERS)
    assert checked.passes, texts(checked)


def test_the_weakness_of_exact_match_is_stated() -> None:
    notes = texts(check_reward(exact_match, TASKS))
    assert "note: the answer after filler scores 0, the reference answer by itself 1: a right answer can lose" in notes
    assert check_reward(last_number, built_in_tasks()).findings == ()


def test_a_reward_for_form_does_not_tell_right_from_wrong() -> None:
    """What ships for the form of an answer must not stand alone, and the check says so."""
    boxed = [
        Task(id=task.id, messages=task.messages, answer=f"<think>x</think><answer>{task.answer}</answer>")
        for task in TASKS
    ]
    found = texts(check_reward(think_then_answer, boxed))
    assert (
        "serious: a wrong answer scores 1, as much as the reference answer: it does not tell right from wrong" in found
    )


@pytest.mark.parametrize(
    ("reward", "finding"),
    [
        (short, "serious: an empty answer scores 1, more than the reference answer's 0.5: it is gained by saying"),
        (picky, "serious: an empty answer has no score: IndexError"),
        (wants_a_phrase, "serious: no reference answer scores above 0: is '1' what a right answer looks like?"),
        (drifting, "it is not repeatable"),
        (slow, "serious: a very long answer has no score: no result within 0.1 s"),
        (lambda completion, task: "yes", "the reference answer '1' has no score: a reward must be a finite number"),
        (contains, "serious: every answer at once scores 1, 100% of what the reference answer gains (1): it is gained"),
        (echoed, "serious: the question repeated scores 0.6, 60% of what the reference answer gains (1): it is gained"),
        (long, "serious: the answer after filler scores 0.801, more than the reference answer's 0.101: it is gained"),
        (often, "serious: the answer 50 times scores 50, more than the reference answer's 1: it is gained by rep"),
        (obeys, "serious: an order to the judge scores 1, 100% of what the reference answer gains (1): whoever reads"),
        (unicode_digits, "serious: look-alike characters scores 1, 100% of what the reference answer gains (1): other"),
        (any_digit, "serious: a wrong answer scores 1, as much as the reference answer: it does not tell"),
        (not_a_number, "serious: an empty answer has no score: a reward must be a finite number or named numbers, got"),
        (likes_markup, "serious: the answer in bold scores 1.5, more than the reference answer's 1: it is gained by m"),
        (half_right, "minor: a wrong answer scores 0.3, 30% of what the reference answer gains (1): it hardly tells"),
    ],
)
def test_what_is_wrong_is_named(reward, finding: str) -> None:
    checked = check_reward(reward, TASKS, timeout_seconds=0.1)
    assert any(finding in each for each in texts(checked)), texts(checked)
    assert not checked.passes


def test_what_is_slow_is_named(monkeypatch) -> None:
    monkeypatch.setattr("burnish.rewards.check._SLOW_SECONDS", 0.02)

    def waits(completion, task):
        time.sleep(0.03 if len(completion.text) > 10_000 else 0)
        return float(completion.text == task.answer)

    found = texts(check_reward(waits, TASKS))
    assert any(each.startswith("minor: a very long answer takes 0.0 s to score") for each in found), found


def test_the_worst_finding_stands_first() -> None:
    severities = [finding.severity for finding in check_reward(half_right, TASKS).findings]
    assert severities == sorted(severities, key=["serious", "minor", "note"].index)


@pytest.mark.parametrize(
    ("answer", "wrong"), [("41", "42"), ("#### 1,042.", "#### 1,043."), ("B", "C"), ("red", "blue"), ("9", "10")]
)
def test_a_wrong_answer_looks_like_the_right_one(answer: str, wrong: str) -> None:
    task = Task(id="t", messages=(Message(role="user", content="?"),), answer=answer)
    other = Task(id="o", messages=(Message(role="user", content="?"),), answer="blue")
    assert wrong_answer(task, [task, other]) == wrong
    if wrong not in ("blue", "C"):
        assert last_number(as_completion(wrong), task) == 0.0


def test_questions_that_hold_their_answer_are_named() -> None:
    found = texts(check_reward(last_number, TASKS))  # "0+1?" ends in its own answer
    assert found == [
        "minor: the question repeated scores 0.2, 20% of what the reference answer gains (1): it is gained by copying"
    ]
