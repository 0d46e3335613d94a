import pytest

from burnish.errors import DataError
from burnish.models.tiny import make_byte_tokenizer
from burnish.records import Message, Prompt, SamplingSettings, Task
from burnish.rewards.answers import last_number
from burnish.rollout.collect import Collector
from burnish.rollout.generators.scripted import ScriptedGenerator
from burnish.rollout.play import SingleTurn

TOKENIZER = make_byte_tokenizer()


def prompts(*questions: str) -> list[Prompt]:
    return [
        Prompt(
            task=Task(id=question, messages=(Message(role="user", content=question),), answer="7"),
            text=question,
            token_ids=tuple(TOKENIZER(question)["input_ids"]),
        )
        for question in questions
    ]


def collector(reward=last_number, seed: int = 0) -> Collector:
    sampling = SamplingSettings(max_tokens=8, stop_token_ids=(2,))
    return Collector(group_size=4, sampling=sampling, play=SingleTurn(reward=reward, timeout_seconds=5), seed=seed)


def test_scores_every_completion_of_every_prompt() -> None:
    generator = ScriptedGenerator(TOKENIZER, lambda prompt, seed: "= 7" if prompt == "3+4" else "= 8")
    collected = collector()(generator.generate, prompts("3+4", "2+5"), step=6, weight_version=9)
    assert [[rollout.reward for rollout in group.rollouts] for group in collected.groups] == [[1.0] * 4, [0.0] * 4]
    assert [(group.id, group.weight_version) for group in collected.groups] == [(0, 9), (1, 9)]


def test_seeds_differ_by_step_prompt_sample_and_root() -> None:
    seen: list[int] = []
    generator = ScriptedGenerator(TOKENIZER, lambda prompt, seed: seen.append(seed) or "")
    for root, step in ((0, 0), (0, 1), (1, 0)):
        collector(seed=root)(generator.generate, prompts("a", "b", "a"), step=step, weight_version=0)
    assert len(set(seen)) == 3 * 3 * 4
    again = len(seen)
    collector()(generator.generate, prompts("a", "b", "a"), step=0, weight_version=0)
    assert seen[again:] == seen[:12]


def test_a_reward_that_fails_costs_its_completion_alone() -> None:
    texts = iter(["7", "boom", "7", "0", "boom", "boom", "boom", "7"])
    generator = ScriptedGenerator(TOKENIZER, lambda prompt, seed: next(texts))

    def reward(completion, task) -> float:
        if completion.text == "boom":
            raise ValueError("cannot read it")
        return last_number(completion, task)

    collected = collector(reward)(generator.generate, prompts("a", "b"), step=0, weight_version=0)
    # the second group has one scored rollout left: nothing to compare it with
    assert [[rollout.reward for rollout in group.rollouts] for group in collected.groups] == [[1.0, 1.0, 0.0]]
    assert [each.reason for each in collected.failures] == ["ValueError: cannot read it"] * 4


def test_a_reward_that_fails_mostly_stops_the_run() -> None:
    generator = ScriptedGenerator(TOKENIZER, lambda prompt, seed: "x")
    found = collector(lambda completion, task: "bad")(generator.generate, prompts("a"), step=0, weight_version=0)
    with pytest.raises(DataError, match=r"failed for 4 of 4 completions; first: .* got 'bad'"):
        found.require_scores()


def test_failures_are_counted_over_the_whole_step() -> None:
    """A refill of one bad prompt is not most of a step."""
    texts = iter(["1", "0"] * 6 + ["boom"] * 4)
    generator = ScriptedGenerator(TOKENIZER, lambda prompt, seed: next(texts))

    def reward(completion, task) -> float:
        return float(completion.text)

    collect = collector(reward)
    found = collect(generator.generate, prompts("a", "b", "c"), step=0, weight_version=0)
    found += collect(generator.generate, prompts("d"), step=0, weight_version=0, first=3)
    found.require_scores()
    assert (found.prompts_asked, found.completions_asked, len(found.failures), len(found.groups)) == (4, 16, 4, 3)
