"""Tools in a chat: what a client offers, how a conversation with calls is rendered, and the calls in an answer."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from burnish.environments.tools import ToolCall, parse_calls
from burnish.serving.body import Body
from burnish.serving.constraints import call_schema
from burnish.serving.refusals import RefusedError

_NAME = r"^[A-Za-z0-9_.-]{1,64}$"
_OPENING = "<tool_call>"


class Function(Body):
    """A function that the model may call; `parameters` is a JSON schema of an object."""

    name: Annotated[str, Field(pattern=_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The schema of its arguments."""
        return self.parameters or {"type": "object", "properties": {}}


class Tool(Body):
    """What a client offers."""

    type: Literal["function"]
    function: Function


class _Named(Body):
    name: Annotated[str, Field(pattern=_NAME)]


class ToolChoice(Body):
    """The one function that must be called."""

    type: Literal["function"]
    function: _Named


class _Called(Body):
    name: Annotated[str, Field(pattern=_NAME)]
    arguments: str


class CallTurn(Body):
    """A call in an earlier turn of the assistant."""

    id: Annotated[str, Field(max_length=100)]
    type: Literal["function"]
    function: _Called

    def as_template(self) -> dict[str, Any]:
        """As chat templates take it: with arguments that are no text.

        Raises:
            RefusedError: the arguments are no JSON object.
        """
        try:
            arguments = json.loads(self.function.arguments)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise RefusedError("invalid", "tool_calls: arguments must be a JSON object, as text", parameter="messages")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


def forced_schema(tools: Sequence[Tool], choice: str | ToolChoice | None) -> str | None:
    """The schema that an answer must have because a call must be made; None where none must.

    Raises:
        RefusedError: the choice is of no tool.
    """
    functions = {tool.function.name: tool.function.arguments for tool in tools}
    if isinstance(choice, ToolChoice):
        if choice.function.name not in functions:
            raise RefusedError(
                "invalid", f"tool_choice: there is no tool {choice.function.name}", parameter="tool_choice"
            )
        return call_schema({choice.function.name: functions[choice.function.name]})
    if choice == "required":
        if not functions:
            raise RefusedError("invalid", "tool_choice: required needs tools", parameter="tool_choice")
        return call_schema(functions)
    return None


class CallReader:
    """Tells calls from text while an answer arrives: what may be a call is held back until the answer is over.

    Of the calls of an answer the first `most` are told.
    """

    def __init__(self, names: Sequence[str], *, most: int | None = None) -> None:
        self._names, self._most, self._text, self._shown = frozenset(names), most, "", 0

    def take(self, text: str) -> str:
        """Add a piece; the text that is certainly none of a call."""
        self._text += text
        shown, self._shown = self._shown, max(self._shown, self._certain())
        return self._text[shown : self._shown]

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """(the text that is left to show, the calls as OpenAI writes them) when no piece follows."""
        calls = self._calls()
        begin = len(self._text) if not calls else max(self._shown, self._text.find(_OPENING))
        if calls and _OPENING not in self._text:
            return "", calls
        return self._text[self._shown : begin], calls

    def _calls(self) -> list[dict[str, Any]]:
        """The calls, if the whole of them can be read: half a call, or one of a tool that is not there, is text."""
        found = parse_calls(self._text)
        calls = [each for each in found if isinstance(each, ToolCall) and each.name in self._names]
        return [_written(each) for each in calls[: self._most]] if len(calls) == len(found) else []

    def _certain(self) -> int:
        """How many characters can be shown."""
        if self._text.lstrip().startswith("{") or not self._text.strip():
            return 0
        if (place := self._text.find(_OPENING)) >= 0:
            return place
        held = next((size for size in range(len(_OPENING) - 1, 0, -1) if self._text.endswith(_OPENING[:size])), 0)
        return len(self._text) - held


def _written(call: ToolCall) -> dict[str, Any]:
    arguments: Mapping[str, Any] = call.arguments
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": json.dumps(arguments, ensure_ascii=False)},
    }
