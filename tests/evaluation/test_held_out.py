import pytest

from burnish.errors import DataError
from burnish.evaluation.held_out import HeldOut, compare_items, mean_score, verdict
from burnish.models.tiny import make_byte_tokenizer
from burnish.records import Message, Prompt, SamplingSettings, Task
from burnish.rewards.answers import last_number
from burnish.rollout.generators.scripted import ScriptedGenerator
from burnish.rollout.play import SingleTurn
from burnish.stats.paired import compare_paired

TOKENIZER = make_byte_tokenizer()


def held_out(reward=last_number) -> HeldOut:
    prompts = [
        Prompt(
            task=Task(id=str(i), messages=(Message(role="user", content=f"{i}"),), answer=str(i)),
            text=str(i),
            token_ids=tuple(TOKENIZER(str(i))["input_ids"]),
        )
        for i in range(4)
    ]
    return HeldOut(
        prompts=prompts,
        play=SingleTurn(reward=reward, timeout_seconds=5),
        sampling=SamplingSettings(max_tokens=8, temperature=0.0),
        right_at=1.0,
    )


def test_items_and_verdict() -> None:
    wrong = ScriptedGenerator(TOKENIZER, lambda prompt, seed: "0")
    right = ScriptedGenerator(TOKENIZER, lambda prompt, seed: f"= {prompt}")
    before, after = held_out().evaluate(wrong.generate), held_out().evaluate(right.generate)
    assert [item["score"] == 1 for item in before] == [True, False, False, False]
    assert (mean_score(before), mean_score(after)) == (0.25, 1.0)
    result = compare_items(before, after)
    assert (result.n, result.difference, result.p_value) == (4, 0.75, 0.25)
    line = verdict("accuracy", result)
    assert line.startswith("held-out accuracy 0.250 -> 1.000 on 4 items: difference +0.750, 95% CI [")
    # of 9 items 6 or more, 3/4 each, are discordant with chance 0.83; of 8 with 0.68
    assert line.endswith(
        "exact McNemar p = 0.25: undecided; a difference this large would be found with about 9 items (with 80% power)"
    )


def test_the_verdict_has_a_word() -> None:
    a, b = [False] * 12 + [True] * 8, [True] * 20
    assert verdict("accuracy", compare_paired(a, b)).endswith(": better")
    assert verdict("accuracy", compare_paired(b, a)).endswith(": worse")
    assert "undecided" in verdict("accuracy", compare_paired(b, b))


def test_a_reward_that_fails_for_most_answers_gives_no_accuracy() -> None:
    generator = ScriptedGenerator(TOKENIZER, lambda prompt, seed: "no number")
    with pytest.raises(DataError, match="failed for 4 of 4 completions; first: ValueError"):
        held_out(lambda completion, task: int(completion.text)).evaluate(generator.generate)


def test_an_answer_that_cannot_be_scored_is_wrong_and_says_why() -> None:
    def reward(completion, task) -> float:
        return 1 / int(completion.text)

    generator = ScriptedGenerator(TOKENIZER, lambda prompt, seed: "0" if prompt == "2" else "1")
    items = held_out(reward).evaluate(generator.generate)
    assert [item["score"] == 1 for item in items] == [True, True, False, True]
    assert items[2]["reward"] is None
    assert items[2]["failure"] == "ZeroDivisionError: division by zero"


def test_different_questions_are_not_compared() -> None:
    generator = ScriptedGenerator(TOKENIZER, lambda prompt, seed: "1")
    items = held_out().evaluate(generator.generate)
    with pytest.raises(ValueError, match="not of the same items"):
        compare_items(items, items[::-1])
