import numpy as np
import pytest

from burnish.losses.advantages import has_signal
from burnish.records import Completion, Message, Prompt, Rollout, RolloutGroup, Task
from burnish.rollout.curriculum import MiddleFirst, pass_rate

HARDNESS = {"easy": 0.98, "middle": 0.5, "hard": 0.02}


def prompts(per_kind: int = 20) -> list[Prompt]:
    names = [f"{kind}-{index}" for kind in HARDNESS for index in range(per_kind)]
    return [
        Prompt(task=Task(id=name, messages=(Message(role="user", content=name),), answer=""), text=name, token_ids=(5,))
        for name in names
    ]


def group(prompt: Prompt, rewards: list[float]) -> RolloutGroup:
    said = Completion(token_ids=(3,), text="", sampling_logprobs=(0.0,), model_logprobs=(0.0,), finish_reason="stop")
    rollouts = tuple(Rollout(completion=said, reward=reward) for reward in rewards)
    return RolloutGroup(id=prompt.task.id, prompt=prompt, rollouts=rollouts, weight_version=0)


def order(pass_rates, *, log=lambda step, choices: None, items=None) -> MiddleFirst:
    return MiddleFirst(items or prompts(), seed=3, pass_rates=pass_rates, right_at=1.0, log=log)


def test_more_groups_have_a_signal_than_in_uniform_order() -> None:
    """Simulated: the share of groups with a signal after 30 steps of learning the rates, against one third."""
    items, draws = prompts(), np.random.default_rng(0)
    chooser = order({}, items=items)
    signals = []
    for step in range(60):
        groups = []
        for prompt in chooser.next(6, step=step):
            rate = HARDNESS[prompt.task.id.partition("-")[0]]
            groups.append(group(prompt, [float(draws.random() < rate) for _ in range(8)]))
        chooser.learn(groups, step=step)
        if step >= 30:
            signals += [has_signal([rollout.reward for rollout in each.rollouts]) for each in groups]
    assert np.mean(signals) > 0.55  # uniform: (1 + 2 * (1 - 0.98**8)) / 3 = 0.43


def test_the_rate_is_jeffreys_mean_and_older_tries_count_half() -> None:
    rates: dict[str, list[float]] = {}
    chooser = order(rates)
    (prompt,) = chooser.next(1, step=0)
    chooser.learn([group(prompt, [1.0, 1.0, 0.0, 0.5])], step=0)
    assert rates == {prompt.task.id: [2.0, 4.0, 0]}
    chooser.learn([group(prompt, [0.0] * 4)], step=7)
    assert rates == {prompt.task.id: [1.0, 6.0, 7]}
    assert pass_rate(1.0, 6.0) == pytest.approx(1.5 / 7)


def test_no_prompt_twice_in_a_step_while_others_are_left() -> None:
    chooser = order({})
    first = chooser.next(40, step=0)
    refill = chooser.next(20, step=0)
    assert len({prompt.task.id for prompt in [*first, *refill]}) == 60
    assert len(chooser.next(3, step=0)) == 3  # then they come again


def test_an_unsolved_prompt_is_replayed_and_the_log_says_why() -> None:
    said: list[dict] = []
    items = prompts(1)
    rates = {"easy-0": [8.0, 8.0, 0], "middle-0": [4.0, 8.0, 0], "hard-0": [0.0, 8.0, 0]}
    chooser = order(rates, items=items, log=lambda step, choices: said.extend(choices))
    chooser.next(3, step=19)
    assert {each["task_id"]: each["why"] for each in said} == {
        "easy-0": "often",
        "middle-0": "middle",
        "hard-0": "seldom",
    }
    said.clear()
    chooser.next(3, step=20)
    assert {each["task_id"]: each["why"] for each in said}["hard-0"] == "replayed"
    assert {each["task_id"]: each["weight"] for each in said}["hard-0"] == pytest.approx(0.27)


def test_the_choice_is_a_function_of_seed_step_and_rates() -> None:
    rates = {"easy-0": [8.0, 8.0, 0]}
    once = [prompt.task.id for prompt in order(dict(rates)).next(9, step=4)]
    assert once == [prompt.task.id for prompt in order(dict(rates)).next(9, step=4)]
    assert once != [prompt.task.id for prompt in order(dict(rates)).next(9, step=5)]
