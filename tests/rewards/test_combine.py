import asyncio
import time

import pytest

from burnish.errors import ConfigError, DataError
from burnish.records import Completion, Message, Task
from burnish.rewards.combine import weighted
from burnish.rewards.scoring import Score, ScoreFailure, load_reward, score_all

TASK = Task(id="t", messages=(Message(role="user", content="q"),), answer="")


def completion(text: str) -> Completion:
    return Completion(token_ids=(1,), text=text, sampling_logprobs=(0.0,), model_logprobs=(0.0,), finish_reason="stop")


def length(completion: Completion, task: Task) -> float:
    return len(completion.text)


def named(completion: Completion, task: Task) -> dict[str, float]:
    return {"a": 1.0, "b": 0.5}


async def judge(completion: Completion, task: Task) -> float:
    await asyncio.sleep(60 if completion.text == "slow" else 0.02)
    if completion.text == "bad":
        raise RuntimeError("no verdict")
    return 0.5


def test_plain_functions() -> None:
    reward = weighted({"length": length, "named": named}, {"named": 2.0, "length": -0.1})
    assert score_all(reward, [(completion("four"), TASK)], timeout_seconds=1) == [
        Score(pytest.approx(2.6), {"length": pytest.approx(-0.4), "named": 3.0})
    ]


def test_plain_functions_and_coroutines() -> None:
    reward = weighted({"length": length, "judge": judge}, {"length": 1.0, "judge": 2.0})
    pairs = [(completion(text), TASK) for text in ("x", "bad", "slow", "four")]
    scores = score_all(reward, pairs, timeout_seconds=0.3)
    assert scores == [
        Score(2.0, {"length": 1.0, "judge": 1.0}),
        ScoreFailure("judge: RuntimeError: no verdict"),
        ScoreFailure("judge: no result within 0.3 s"),
        Score(5.0, {"length": 4.0, "judge": 1.0}),
    ]


def test_a_slow_plain_function_does_not_take_the_time_of_a_coroutine() -> None:
    def slow(completion: Completion, task: Task) -> float:
        time.sleep(0.1)
        return 1.0

    pairs = [(completion("x"), TASK)] * 5
    scores = score_all(
        weighted({"slow": slow, "judge": judge}, {"slow": 1.0, "judge": 1.0}), pairs, timeout_seconds=0.2
    )
    assert scores == [Score(1.5, {"slow": 1.0, "judge": 0.5})] * 5


def test_no_completions() -> None:
    assert score_all(weighted({"length": length}, {"length": 1.0}), [], timeout_seconds=1) == []


def test_weighted_rewards_nest() -> None:
    inner = weighted({"judge": judge, "length": length}, {"judge": 2.0, "length": 1.0})
    scores = score_all(weighted({"inner": inner}, {"inner": 0.5}), [(completion("x"), TASK)], timeout_seconds=1)
    assert scores == [Score(1.0, {"inner": 1.0})]


def test_a_call_gives_the_components() -> None:
    reward = weighted({"length": length, "judge": judge}, {"length": 1.0, "judge": 2.0})
    assert asyncio.run(reward(completion("x"), TASK)) == {"length": 1.0, "judge": 1.0}
    with pytest.raises(DataError, match="none: a reward must be a finite number"):
        asyncio.run(weighted({"none": lambda c, t: None}, {"none": 1.0})(completion("x"), TASK))


def test_as_a_reward_of_a_recipe(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_weighted_rewards.py").write_text(
        "from burnish.rewards.answers import exact_match\n"
        "from burnish.rewards.combine import weighted\n"
        "mine = weighted({'right': exact_match}, {'right': 2.0})\n"
    )
    monkeypatch.chdir(tmp_path)
    scores = score_all(load_reward("my_weighted_rewards:mine"), [(completion(""), TASK)], timeout_seconds=1)
    assert scores == [Score(2.0, {"right": 2.0})]


@pytest.mark.parametrize("names", [((), ()), (("a",), ()), ((), ("a",)), (("a",), ("a", "b")), (("a",), ("b",))])
def test_every_reward_needs_a_weight(names: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    rewards, weights = names
    with pytest.raises(ConfigError, match="one weight for each reward"):
        weighted(dict.fromkeys(rewards, length), dict.fromkeys(weights, 1.0))
