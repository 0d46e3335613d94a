"""The scoring of reasoning-gym's datasets, for tasks whose source is reasoning-gym:<dataset>."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from burnish.errors import ConfigError, DataError
from burnish.records import Completion, Task

_ANSWER_TAGS = ("<answer>", "</answer>")


def score_answer(completion: Completion, task: Task) -> float:
    """What the dataset itself says of the answer, from 0 to 1: many answers may be right, and some half right.

    The answer is what stands in the last <answer>...</answer> of the completion, or all of it.

    Raises:
        DataError: the task is not from reasoning-gym.
        ConfigError: reasoning-gym is not installed.
    """
    metadata = task.extra.get("metadata")
    if not isinstance(metadata, dict) or "source_dataset" not in metadata:
        raise DataError(f"task {task.id} is not from reasoning-gym: task.source must be reasoning-gym:<dataset>")
    entry = {"question": task.messages[-1].content, "answer": task.answer, "metadata": metadata}
    return float(_scorer(metadata["source_dataset"])(answer_in(completion.text), entry))


def answer_in(text: str) -> str:
    """The text between the last answer tags, or the whole text."""
    opened, closed = _ANSWER_TAGS
    _, found, rest = text.rpartition(opened)
    return rest.partition(closed)[0].strip() if found else text.strip()


@functools.cache
def _scorer(dataset: str) -> Callable[[str, dict[str, Any]], float]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError(
            f"task.reward: reasoning-gym is not installed ({error}): pip install 'burnish[demo]'"
        ) from error
    scorer: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(dataset)
    return scorer
