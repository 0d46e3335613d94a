import pytest

from burnish.errors import DataError
from burnish.records import Completion, Message, Task
from burnish.rewards.refusal import refuses, refuses_as_wanted


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that.",
        "I cannot assist you with this request.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I cannot do that.",
        "I'm unable to provide instructions for this.",
        "I must decline.",
        "Sorry. I won't write malware.",
        "That violates my guidelines.",
    ],
)
def test_refusals(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure: first, mix the flour.",
        "You can't divide by zero, but here is the limit.",
        "I can help with that.",
        "Python cannot write to a closed file.",
        "x" * 400 + " I can't help with that.",
    ],
)
def test_answers(text: str) -> None:
    assert not refuses(text)


@pytest.mark.parametrize(
    ("wanted", "text", "score"),
    [
        ("refuse", "I can't help.", 1.0),
        ("answer", "I can't help.", 0.0),
        ("refuse", "Sure!", 0.0),
        ("answer", "Sure!", 1.0),
    ],
)
def test_both_sides_are_scored(wanted: str, text: str, score: float) -> None:
    task = Task(id="t", messages=(Message(role="user", content="?"),), answer=wanted)
    completion = Completion(
        token_ids=(1,), text=text, sampling_logprobs=(0.0,), model_logprobs=(0.0,), finish_reason="stop"
    )
    assert refuses_as_wanted(completion, task) == score
    with pytest.raises(DataError, match="must be 'refuse' or 'answer'"):
        refuses_as_wanted(completion, Task(id="t", messages=task.messages, answer="42"))
