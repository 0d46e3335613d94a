"""Questions changed in ways that should not change the answer: the same items, asked again, are a paired comparison."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from burnish.config.imports import import_by_path
from burnish.errors import DataError
from burnish.records import Message, Task
from burnish.reproducibility.seeds import seed_for

Perturb = Callable[[str, int], str]

_TYPO_SHARE = 0.05


def load_perturb(name: str) -> Perturb:
    """A function (text, seed) -> text: one of those here by its name, or a user's by `package.module:name`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in PERTURBS:
        return PERTURBS[name]
    found: Perturb = import_by_path(name, "task.perturb", arguments=("text", "seed"))
    return found


def perturbed(task: Task, name: str, *, seed: int) -> Task:
    """The task with its last message changed; its id stays.

    Raises:
        DataError: a user's function raises, or returns no text.
    """
    last = task.messages[-1]
    try:
        text = load_perturb(name)(last.content, seed_for(seed, "perturb", name, task.id))
    except Exception as error:  # a user's code may raise anything
        raise DataError(f"task.perturb: {name} raised {type(error).__name__}: {error}") from error
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"task.perturb: {name} must return a text, got {text!r} for task {task.id}")
    return replace(task, messages=(*task.messages[:-1], Message(role=last.role, content=text)))


def typos(text: str, seed: int) -> str:
    """Two neighbouring letters change places in a twentieth of the places where two stand, at least one.

    Digits stay: another number would be another question.
    """
    letters = list(text)
    places = [i for i in range(1, len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha()]
    places = [i for i in places if letters[i] != letters[i + 1]]
    count = max(1, round(_TYPO_SHARE * len(places))) if places else 0
    for i in random.Random(seed).sample(places, count):
        letters[i], letters[i + 1] = letters[i + 1], letters[i]
    return "".join(letters)


def upper_case(text: str, seed: int) -> str:
    """All letters are capitals."""
    return text.upper()


def lower_case(text: str, seed: int) -> str:
    """No letter is a capital."""
    return text.lower()


def white_space(text: str, seed: int) -> str:
    """Some of the spaces are two, and a line ends before and after the text."""
    draw = random.Random(seed)
    doubled = "".join("  " if each == " " and draw.random() < 0.3 else each for each in text)
    return f"\n{doubled}\n"


PERTURBS: dict[str, Perturb] = {
    "typos": typos,
    "upper_case": upper_case,
    "lower_case": lower_case,
    "white_space": white_space,
}
