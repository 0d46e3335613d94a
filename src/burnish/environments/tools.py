"""Tools: Python functions that a model may call, as an environment.

A call is what models of the Hermes and Qwen families write: <tool_call>{"name": ..., "arguments": {...}}</tool_call>.
What is wrong with a call is told to the model, and is no fault of the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError, validate_call
from transformers.utils.chat_template_utils import get_json_schema

from burnish.environments.base import StepResult
from burnish.errors import ConfigError
from burnish.records import Completion, Message, Task
from burnish.rewards.deadline import TooSlowError, time_limit

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_SHOWN_CHARACTERS = 2000


class ToolEnvironment:
    """A conversation in which the model may call functions until it answers without a call; then it is scored.

    `functions` have type hints and a docstring with their arguments, as transformers' `get_json_schema` reads them.
    `score(completion, task)` judges the answer. A call that takes longer than `call_timeout_seconds` has failed.
    """

    def __init__(
        self,
        functions: Sequence[Callable[..., Any]],
        score: Callable[[Completion, Task], float | Mapping[str, float]],
        *,
        call_timeout_seconds: float = 5.0,
    ) -> None:
        self.tools = [_schema(function) for function in functions]
        self._functions = {function.__name__: validate_call(function) for function in functions}
        self._score = score
        self._call_timeout_seconds = call_timeout_seconds
        self._task: Task | None = None

    def reset(self, task: Task) -> Sequence[Message]:
        """See Environment."""
        self._task = task
        return task.messages

    def step(self, said: Completion) -> StepResult:
        """See Environment."""
        if self._task is None:
            raise RuntimeError("step was called before reset")
        calls = _CALL.findall(said.text)
        if not calls:
            return StepResult(reward=self._score(said, self._task), done=True)
        return StepResult(messages=tuple(Message(role="tool", content=self._call(text)) for text in calls))

    def _call(self, text: str) -> str:
        """The result of a call, or what is wrong with it, for the model to read."""
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return 'error: a call must be {"name": ..., "arguments": {...}} as JSON'
        if name not in self._functions:
            return f"error: there is no tool {name!r}; there are {', '.join(self._functions)}"
        if not isinstance(arguments, dict):
            return "error: arguments must be an object"
        try:
            with time_limit(self._call_timeout_seconds):
                result = self._functions[name](**arguments)
            return json.dumps(result, ensure_ascii=False)[:_SHOWN_CHARACTERS]
        except ValidationError as error:
            fault = error.errors()[0]
            return f"error: {name}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        except TooSlowError:
            return f"error: {name} took longer than {self._call_timeout_seconds:g} s"
        except Exception as error:  # a tool may raise anything; the model is told
            return f"error: {name}: {type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]


def with_described_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The messages with the tools in a system message, for a chat template that does not show tools itself."""
    schemas = "\n".join(json.dumps(tool) for tool in tools)
    text = (
        f"You may call these functions:\n{schemas}\n"
        'To call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call> and nothing after it.'
    )
    if messages and messages[0].role == "system":
        return (replace(messages[0], content=f"{messages[0].content}\n\n{text}"), *messages[1:])
    return (Message(role="system", content=text), *messages)


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        schema: dict[str, Any] = get_json_schema(function)
    except Exception as error:  # transformers' own exceptions for a missing hint or docstring have no common class
        raise ConfigError(f"tool {function.__name__}: {' '.join(str(error).split())}") from error
    return schema
