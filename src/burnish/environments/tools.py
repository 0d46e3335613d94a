"""Tools: Python functions that a model may call, as an environment.

Two forms of a call are understood: what models of the Hermes and Qwen families write,
<tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them among other text; and what Llama 3 writes,
{"name": ..., "parameters": {...}} as the whole text, several of them with semicolons between. What is wrong with a
call is told to the model, and is no fault of the run.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError, validate_call

from burnish.environments.base import StepResult
from burnish.errors import ConfigError
from burnish.records import Completion, Message, Task
from burnish.rewards.deadline import TooSlowError, time_limit

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_SHOWN_CHARACTERS = 2000
_MAX_CALLS = 8
_BETWEEN_CALLS = " \n\r\t;"
_ARGUMENTS = {"arguments", "parameters"}
_FORM = 'a call must be {"name": ..., "arguments": {...}} as JSON'


class ToolEnvironment:
    """A conversation in which the model may call functions until it answers without a call; then it is scored.

    `functions` have type hints and a docstring with their arguments, as transformers' `get_json_schema` reads them;
    `public_methods` gives those of an object, whose state then lasts as long as the conversation.
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
        calls = parse_calls(said.text)
        if not calls:
            return StepResult(reward=self._score(said, self._task), done=True)
        answers = [self._call(call) if isinstance(call, ToolCall) else f"error: {call}" for call in calls[:_MAX_CALLS]]
        if len(calls) > _MAX_CALLS:
            answers.append(f"error: {len(calls)} calls in one turn; only the first {_MAX_CALLS} were made")
        return StepResult(messages=tuple(Message(role="tool", content=answer) for answer in answers))

    def _call(self, call: ToolCall) -> str:
        """The result of a call, or what is wrong with it, for the model to read."""
        name = call.name
        if name not in self._functions:
            return f"error: there is no tool {name!r}; there are {', '.join(self._functions)}"
        try:
            with time_limit(self._call_timeout_seconds):
                result = self._functions[name](**call.arguments)
                return _readable(json.dumps(result, ensure_ascii=False, default=str))
        except ValidationError as error:
            fault = error.errors()[0]
            return _readable(f"error: {name}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}")
        except TooSlowError:
            return f"error: {name} took longer than {self._call_timeout_seconds:g} s"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a tool may raise anything; the model is told
            return _readable(f"error: {name}: {type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model wrote."""

    name: str
    arguments: Mapping[str, Any]


def parse_calls(text: str) -> list[ToolCall | str]:
    """The calls in what a model said, in order; one that cannot be read is a sentence that says why.

    A <tool_call> that is not closed counts, as far as the text goes.
    """
    written = _CALL.findall(text)
    if written:
        return [_parse(each) for each in written]
    if not text.lstrip().startswith("{"):
        return []
    objects = _objects(text)
    if not all(isinstance(each, dict) and "name" in each and _ARGUMENTS & each.keys() for each in objects):
        return []  # JSON, but no call: an answer
    return [_as_call(each) for each in objects]


def public_methods(owner: object) -> list[Callable[..., Any]]:
    """The methods of an object that have no leading underscore: tools that share its state."""
    names = [name for name in dir(type(owner)) if not name.startswith("_")]
    return [method for name in names if inspect.ismethod(method := getattr(owner, name))]


def _parse(text: str) -> ToolCall | str:
    try:
        return _as_call(json.loads(text))
    except (ValueError, RecursionError):
        return _FORM


def _as_call(call: Any) -> ToolCall | str:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return _FORM
    arguments: Any = next((call[key] for key in ("arguments", "parameters") if key in call), {})
    if not isinstance(arguments, dict):
        return "arguments must be an object"
    return ToolCall(call["name"], arguments)


def _objects(text: str) -> list[Any]:
    """The JSON values of a text that consists of nothing else, but for semicolons; [None] for another text."""
    found: list[Any] = []
    rest = text.strip(_BETWEEN_CALLS)
    try:
        while rest:
            value, end = json.JSONDecoder().raw_decode(rest)
            found.append(value)
            rest = rest[end:].lstrip(_BETWEEN_CALLS)
    except (ValueError, RecursionError):
        return [None]
    return found


def _readable(text: str) -> str:
    """What fits into a message, without halves of characters."""
    return text[:_SHOWN_CHARACTERS].encode("utf-8", "replace").decode()


def described_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """What tells a model of tools and of how to call them."""
    schemas = "\n".join(json.dumps(tool) for tool in tools)
    return (
        f"You may call these functions:\n{schemas}\n"
        'To call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call> and nothing after it.'
    )


def with_described_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The messages with the tools in a system message, for a chat template that does not show tools itself."""
    text = described_tools(tools)
    if messages and messages[0].role == "system":
        return (replace(messages[0], content=f"{messages[0].content}\n\n{text}"), *messages[1:])
    return (Message(role="system", content=text), *messages)


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    from transformers.utils.chat_template_utils import get_json_schema  # slow to import

    try:
        schema: dict[str, Any] = get_json_schema(function)
    except Exception as error:  # transformers' own exceptions for a missing hint or docstring have no common class
        raise ConfigError(f"tool {function.__name__}: {' '.join(str(error).split())}") from error
    return schema
