"""The scoring of reasoning-gym's datasets, for tasks whose source is reasoning-gym:<dataset>."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

from burnish.config.extras import requires_extra
from burnish.errors import ConfigError, DataError
from burnish.records import Completion, Task

_RUNS_TEXT = re.compile(r"(?<![\w.])(?:eval|exec|parse_expr|sympify)\(|\b\w+\.(?:parse_expr|sympify)\(")
_ANSWER_TAGS = ("<answer>", "</answer>")


def score_answer(completion: Completion, task: Task) -> float:
    """What the dataset itself says of the answer, from 0 to 1: many answers may be right, and some half right.

    The answer is what stands in the last <answer>...</answer> of the completion, or all of it.

    Raises:
        DataError: the task is not from reasoning-gym.
        ConfigError: reasoning-gym is not installed, or the dataset would run what the model says.
    """
    metadata = task.extra.get("metadata")
    if not isinstance(metadata, dict) or "source_dataset" not in metadata:
        raise DataError(f"task {task.id} is not from reasoning-gym: task.source must be reasoning-gym:<dataset>")
    entry = {"question": task.messages[-1].content, "answer": task.answer, "metadata": metadata}
    options = json.dumps(task.extra.get("reasoning_gym_options", {}), sort_keys=True)
    return float(_scorer(metadata["source_dataset"], options)(answer_in(completion.text), entry))


def answer_in(text: str) -> str:
    """The text between the last answer tags, or the whole text."""
    opened, closed = _ANSWER_TAGS
    _, found, rest = text.rpartition(opened)
    return rest.partition(closed)[0].strip() if found else text.strip()


@functools.cache
def _scorer(dataset: str, options: str) -> Callable[[str, dict[str, Any]], float]:
    """The scorer of a dataset made with these options, as JSON: some look at their own."""
    with requires_extra("demo", "task.reward needs reasoning-gym"):
        import reasoning_gym
    made = reasoning_gym.create_dataset(dataset, **{**json.loads(options), "size": 1, "seed": 0})
    source = inspect.getsource(inspect.getmodule(type(made)) or type(made))
    if runs := _RUNS_TEXT.search(source):
        raise ConfigError(
            f"task.reward: reasoning-gym's {dataset} scores with {runs[0]}...), which could run what the model says "
            "as a program: take another dataset, or a reward of your own"
        )
    scorer: Callable[[str, dict[str, Any]], float] = made.score_answer
    return scorer
