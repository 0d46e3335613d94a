from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.errors import ConfigError
from burnish.records import Completion, Message, Task
from burnish.rewards import shape
from burnish.rewards.scoring import load_reward

TASK = Task(id="t", messages=(Message(role="user", content="q"),), answer="")


def completion(text: str, token_ids: tuple[int, ...] = (1,)) -> Completion:
    nothing = (0.0,) * len(token_ids)
    return Completion(
        token_ids=token_ids, text=text, sampling_logprobs=nothing, model_logprobs=nothing, finish_reason="stop"
    )


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a\n\nb</think><answer>7</answer>", 1.0),
        (" <think>a < b</think>\n\n<answer>7</answer>\n", 1.0),
        ("<answer>7</answer><think>a</think>", 0.0),
        ("<think>a</think>", 0.0),
        ("<think>a</think> so <answer>7</answer>", 0.0),
        ("Well: <think>a</think><answer>7</answer>", 0.0),
        ("<think>a</think><answer>7</answer>.", 0.0),
        ("<think>a</think><think>b</think><answer>7</answer>", 0.0),
        ("<think>a</think><answer>7</answer><answer>8</answer>", 0.0),
        ("<think><answer>a</think>7</answer>", 0.0),
        ("<think></think><answer>7</answer>", 0.0),
        ("<think> </think><answer>7</answer>", 0.0),
        ("<Think>a</Think><Answer>7</Answer>", 0.0),
        ("", 0.0),
    ],
)
def test_think_then_answer(text: str, reward: float) -> None:
    assert load_reward("burnish.rewards.shape:think_then_answer")(completion(text), TASK) == reward


def test_other_tags() -> None:
    assert shape.tags_in_order("a.b")(completion("<a.b>x</a.b>"), TASK) == 1.0
    assert shape.tags_in_order("a.b")(completion("<aXb>x</aXb>"), TASK) == 0.0
    with pytest.raises(ConfigError, match="at least one tag"):
        shape.tags_in_order()


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ('{"a": [1, 2.5, null]}', 1.0),
        ("\n7 ", 1.0),
        ('```json\n{"a": 1}\n```', 1.0),
        ("```\n[]\n```", 1.0),
        ('Here: {"a": 1}', 0.0),
        ('```json\n{"a": 1}\n``` there', 0.0),
        ("{'a': 1}", 0.0),
        ('{"a": 1', 0.0),
        ("NaN", 0.0),
        ("[-Infinity]", 0.0),
        ("1" * 5000, 0.0),  # more digits than Python reads
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_valid_json(text: str, reward: float) -> None:
    assert shape.valid_json(completion(text), TASK) == reward


def test_length_within() -> None:
    reward = shape.length_within(2, 3)
    assert [reward(completion("", (1,) * n), TASK) for n in range(5)] == [0.0, 0.0, 1.0, 1.0, 0.0]


# With L_max = 20 and L_cache = 4 (DAPO has 20480 and 4096): 0 up to 16, then a quarter for each token.
@pytest.mark.parametrize(
    ("num_tokens", "penalty"),
    [(0, 0.0), (15, 0.0), (16, 0.0), (17, -0.25), (18, -0.5), (19, -0.75), (20, -1.0), (21, -1.0), (1000, -1.0)],
)
def test_overlong_penalty(num_tokens: int, penalty: float) -> None:
    assert shape.overlong_penalty(num_tokens, 20, 4) == penalty
    assert shape.overlong(20, 4)(completion("", (1,) * num_tokens), TASK) == penalty


@given(st.integers(0, 300), st.integers(1, 200), st.integers(1, 200))
def test_overlong_penalty_by_the_cases_of_the_paper(num_tokens: int, max_tokens: int, buffer_tokens: int) -> None:
    if buffer_tokens > max_tokens:
        return
    if num_tokens <= max_tokens - buffer_tokens:
        expected = 0.0
    elif num_tokens <= max_tokens:
        expected = ((max_tokens - buffer_tokens) - num_tokens) / buffer_tokens
    else:
        expected = -1.0
    assert shape.overlong_penalty(num_tokens, max_tokens, buffer_tokens) == expected


@pytest.mark.parametrize(
    ("token_ids", "size", "penalty"),
    [
        ((), 2, 0.0),
        ((1,), 2, 0.0),
        ((1, 2, 3), 2, 0.0),
        ((1, 1, 1, 1, 1), 1, -0.8),  # 1 of 5
        ((1, 2, 1, 2, 1), 2, -0.5),  # (1, 2), (2, 1), (1, 2), (2, 1)
        ((1, 2, 1, 2, 1), 3, pytest.approx(-1 / 3)),  # (1, 2, 1), (2, 1, 2), (1, 2, 1)
        ((1, 2, 1, 2, 1), 5, 0.0),
    ],
)
def test_repetition_penalty(token_ids: tuple[int, ...], size: int, penalty: float) -> None:
    assert shape.repetition_penalty(token_ids, size) == penalty
    assert shape.repetitions(size)(completion("", token_ids), TASK) == penalty


@pytest.mark.parametrize(
    "make",
    [
        lambda: shape.length_within(3, 2),
        lambda: shape.length_within(-1, 2),
        lambda: shape.overlong(10, 0),
        lambda: shape.overlong(10, 11),
        lambda: shape.repetitions(0),
    ],
)
def test_impossible_numbers_are_refused_at_once(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()
