"""The check of a user's reward: gold answers and garbage, said in plain words."""

from collections.abc import Sequence

from burnish.records import Completion, Task
from burnish.rewards.scoring import Reward, Score, ScoreFailure, score_all

GARBAGE = {
    "an empty answer": "",
    "white space": " \n\t",
    "a very long answer": "word " * 20_000,
    "another script and an emoji": "答案是四十二 🙂",
    "unbalanced brackets": "((((" * 200,
    "a null character": "\0",
}


def check_reward(reward: Reward, tasks: Sequence[Task], *, timeout_seconds: float = 10.0) -> list[str]:
    """What is wrong with a reward, each in a sentence that names the input; empty where nothing was found.

    The reference answer of each task, as the whole completion, must score at least as well as anything else that is
    tried; garbage must get a finite number, in time; the same input the same number, in any order.
    """
    findings: list[str] = []
    gold = [(as_completion(task.answer), task) for task in tasks]
    gold_scores = score_all(reward, gold, timeout_seconds=timeout_seconds)
    for (_, task), score in zip(gold, gold_scores, strict=True):
        if isinstance(score, ScoreFailure):
            findings.append(f"the reference answer {task.answer[:40]!r} has no score: {score.reason}")
    values = [score.value for score in gold_scores if isinstance(score, Score)]
    for what, text in GARBAGE.items():
        (score,) = score_all(reward, [(as_completion(text), tasks[0])], timeout_seconds=timeout_seconds)
        if isinstance(score, ScoreFailure):
            findings.append(f"{what} has no score: {score.reason}")
        elif values and score.value > values[0]:
            findings.append(f"{what} scores {score.value:g}, more than the reference answer's {values[0]:g}")
    if values and max(values) <= 0:
        findings.append(
            f"no reference answer scores above 0: is {tasks[0].answer[:40]!r} what a right answer looks like?"
        )
    again = score_all(reward, gold[::-1], timeout_seconds=timeout_seconds)[::-1]
    for (_, task), first, second in zip(gold, gold_scores, again, strict=True):
        if isinstance(first, Score) and isinstance(second, Score) and first.value != second.value:
            findings.append(f"{task.answer[:40]!r} scores {first.value:g}, then {second.value:g}: it is not repeatable")
            break
    return findings


def as_completion(text: str) -> Completion:
    """A text as if a model had said it; its tokens are stand-ins, one a word."""
    count = max(1, len(text.split()))
    zeros = (0.0,) * count
    return Completion(
        token_ids=(0,) * count, text=text, sampling_logprobs=zeros, model_logprobs=zeros, finish_reason="stop"
    )
