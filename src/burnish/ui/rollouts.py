"""The rollouts of a stored step: its groups, and the completions of one side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from burnish.reproducibility.run_folder import RunFolder
from burnish.ui.answers import Completion, Group, GroupRow, Said, Step, finite
from burnish.ui.reading import NotFoundError, reading

_QUESTION_CHARACTERS = 120


def read_step(run: RunFolder, step: int) -> Step:
    """The groups of a step.

    Raises:
        NotFoundError: no rollouts are stored for it.
        DataError: the file is damaged.
    """
    lines = _lines(run, step)
    with reading(_name(run, step)):
        return Step(step=step, groups=[_row(number, line) for number, line in enumerate(lines)])


def read_group(run: RunFolder, step: int, number: int) -> Group:
    """One of them.

    Raises:
        NotFoundError: there is none of that number.
        DataError: the file is damaged.
    """
    lines = _lines(run, step)
    if not 0 <= number < len(lines):
        raise NotFoundError(f"step {step} of run {run.path.name} has {len(lines)} groups, and none of number {number}")
    line = lines[number]
    with reading(_name(run, step)):
        return Group(
            step=step,
            number=number,
            task_id=line["task_id"],
            messages=[Said.model_validate(message) for message in line["messages"]],
            prompt=line["prompt"],
            answer=line["answer"],
            completions=[_completion(rollout) for rollout in line["rollouts"]],
        )


def _lines(run: RunFolder, step: int) -> list[dict[str, Any]]:
    if step not in run.steps("rollouts"):
        raise NotFoundError(f"run {run.path.name} stores no rollouts of step {step}")
    return run.read_step("rollouts", step)


def _name(run: RunFolder, step: int) -> str:
    return f"the rollouts of step {step} of run {run.path.name}"


def _row(number: int, line: Mapping[str, Any]) -> GroupRow:
    rewards = [float(rollout["reward"]) for rollout in line["rollouts"] if finite(rollout["reward"]) is not None]
    question = str(line["messages"][-1]["content"]) if line["messages"] else str(line["prompt"])
    return GroupRow(
        number=number,
        task_id=line["task_id"],
        question=question[:_QUESTION_CHARACTERS],
        num_completions=len(line["rollouts"]),
        reward_mean=float(np.mean(rewards)) if rewards else None,
        reward_min=min(rewards, default=None),
        reward_max=max(rewards, default=None),
    )


def _completion(rollout: Mapping[str, Any]) -> Completion:
    return Completion(
        text=rollout["text"],
        length_tokens=len(rollout["token_ids"]),
        truncated=rollout["finish_reason"] == "length",
        reward=rollout["reward"],
        parts=rollout.get("components") or {},
        advantage=rollout["advantage"],
        ended=rollout.get("ended"),
    )
