import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.errors import ConfigError, DataError
from burnish.evaluation.perturb import PERTURBS, load_perturb, perturbed, typos, white_space
from burnish.records import Message, Task

TASK = Task(
    id="t",
    messages=(Message(role="system", content="Be kind."), Message(role="user", content="How many apples are left?")),
    answer="3",
)


def test_only_the_last_message_changes_and_the_same_seed_changes_it_alike() -> None:
    for name in PERTURBS:
        found = perturbed(TASK, name, seed=1)
        assert (found.id, found.answer, found.messages[0]) == (TASK.id, TASK.answer, TASK.messages[0])
        assert found.messages[1].content != TASK.messages[1].content
        assert found == perturbed(TASK, name, seed=1)
    assert len({perturbed(TASK, "typos", seed=seed).messages[1].content for seed in range(20)}) > 1


@given(st.text(max_size=200), st.integers(0, 2**32))
def test_typos_move_letters_and_touch_no_digit(text: str, seed: int) -> None:
    found = typos(text, seed)
    assert Counter(found) == Counter(text)
    assert [(i, c) for i, c in enumerate(found) if c.isdigit()] == [(i, c) for i, c in enumerate(text) if c.isdigit()]


@given(st.text(max_size=200), st.integers(0, 2**32))
def test_white_space_changes_nothing_else(text: str, seed: int) -> None:
    assert re.sub(r"\s", "", white_space(text, seed)) == re.sub(r"\s", "", text)


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_perturbs.py").write_text(
        "def polite(text, seed):\n    return 'Please: ' + text\n"
        "def empty(text, seed):\n    return ''\n"
        "def broken(text, seed):\n    raise KeyError('x')\n"
    )
    assert perturbed(TASK, "my_perturbs:polite", seed=0).messages[1].content == "Please: How many apples are left?"
    for name, message in (("empty", "must return a text"), ("broken", "raised KeyError")):
        with pytest.raises(DataError, match=message):
            perturbed(TASK, f"my_perturbs:{name}", seed=0)
    with pytest.raises(ConfigError, match="is not of the form"):
        load_perturb("typoz")
