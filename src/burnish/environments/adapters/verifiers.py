"""Tasksets of verifiers (0.4): their tasks as rows, and their rewards as a reward.

    # my_taskset.py
    from verifiers.v1 import load_taskset, ...
    taskset = ...
    score = taskset_reward(taskset)          # task.reward: my_taskset:score

    write_rows(taskset, Path("rows.jsonl"))  # once; then task.source: rows.jsonl

What a task needs beyond one answer (tool servers, a container, a runtime for its rewards) is run by verifiers' own
harnesses, which call the model themselves; such tasks are refused.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from burnish.config.extras import requires_extra
from burnish.errors import ConfigError, DataError
from burnish.records import Completion, Task
from burnish.reproducibility.files import write_text

_KEY = "verifiers_key"
_STAGES = ("setup", "finalize", "stage_verifier")


def taskset_rows(taskset: Any, *, limit: int | None = None) -> list[dict[str, Any]]:
    """A row for each task; `limit` is needed where there is no end of them. The reference answer stays in the task.

    Raises:
        ConfigError: the taskset is endless, or a task needs more than an answer.
    """
    return [_row(task) for task in _tasks(taskset, limit)]


def write_rows(taskset: Any, path: Path, *, limit: int | None = None) -> None:
    """Write `taskset_rows` as JSONL."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in taskset_rows(taskset, limit=limit)))


def taskset_reward(
    taskset: Any, *, limit: int | None = None
) -> Callable[[Completion, Task], Awaitable[Mapping[str, float]]]:
    """The rewards of each task's own methods and judges, by name and weighted, for one answer to it.

    Raises:
        ConfigError: as `taskset_rows`; a call raises DataError for a task that is not of the taskset.
    """
    by_key = {task.key: task for task in _tasks(taskset, limit)}

    async def reward(completion: Completion, task: Task) -> Mapping[str, float]:
        own = by_key.get(str(task.extra.get(_KEY)))
        if own is None:
            raise DataError(f"task {task.id} is not of {type(taskset).__name__}: its rows come from taskset_rows")
        trace = _trace(own, completion.text)
        await own.score(trace)
        values = {name: found.value for name, found in trace.rewards.items() if found is not None}
        if not values:
            raise DataError(f"verifiers task {own.data.idx}: none of its rewards says anything of one answer")
        return values

    return reward


def _tasks(taskset: Any, limit: int | None) -> list[Any]:
    """The tasks, which need no more than an answer."""
    if limit is None and not taskset.bounded:
        raise ConfigError(f"{type(taskset).__name__} has no end: give a limit")
    if taskset.toolsets(taskset.config):
        raise ConfigError(f"{type(taskset).__name__} has tool servers, which only verifiers' own harnesses give")
    tasks = list(itertools.islice(taskset, limit))
    for task in tasks:
        _refuse_what_needs_more(task)
    return tasks


def _row(task: Any) -> dict[str, Any]:
    data = task.data
    if not isinstance(data.prompt, (str, list)):
        raise ConfigError(f"verifiers task {data.idx}: has no prompt: its user opens the conversation")
    if isinstance(data.prompt, str):
        messages = [{"role": "user", "content": data.prompt}]
    else:
        messages = [{"role": each.role, "content": each.content} for each in data.prompt]
    if data.system_prompt is not None:
        messages = [{"role": "system", "content": data.system_prompt}, *messages]
    return {"messages": messages, "answer": "", _KEY: task.key}


def _refuse_what_needs_more(task: Any) -> None:
    with requires_extra("verifiers", "a taskset needs verifiers"):
        import verifiers.v1 as vf

    functions = [*task.hooks("reward"), *(judge.score for judge in task.plugged_judges())]
    if not functions:
        raise ConfigError(f"verifiers task {task.data.idx}: {type(task).__name__} has no reward")
    needs = [
        function.__name__
        for function in functions
        if (found := inspect.signature(function).parameters.get("runtime")) and found.default is inspect.Parameter.empty
    ]
    stages = [name for name in _STAGES if getattr(type(task), name, None) is not getattr(vf.Task, name, None)]
    what = [f"a runtime for {name}" for name in needs] + [f"its stage {name}" for name in stages]
    if task.NEEDS_CONTAINER or type(task).toolsets(task.config) or getattr(task.data, "image", None):
        what.append("a container or tool servers")
    if what:
        raise ConfigError(
            f"verifiers task {task.data.idx}: needs {', '.join(what)}, which only verifiers' own harnesses give"
        )


def _trace(task: Any, text: str) -> Any:
    """A conversation of one answer, as verifiers records it."""
    import verifiers.v1 as vf
    from verifiers.v1.trace import Trace, TraceTask

    data = task.data
    prompt = [vf.types.UserMessage(content=data.prompt)] if isinstance(data.prompt, str) else list(data.prompt)
    messages = [*prompt, vf.AssistantMessage(content=text)]
    nodes = [
        vf.MessageNode(parent=index - 1 if index else None, message=message, sampled=index == len(messages) - 1)
        for index, message in enumerate(messages)
    ]
    agent = vf.AgentInfo(config=vf.AgentConfig())
    return Trace(task=TraceTask(type=type(task).__name__, data=data, key=task.key), agent=agent, nodes=nodes)
