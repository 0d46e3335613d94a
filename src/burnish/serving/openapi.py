"""What /openapi.json says of bodies, answers and errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

_MEANINGS = {
    400: "The request cannot be answered; `param` says what of it.",
    401: "There is no key, or it is not known.",
    403: "The key is of another role.",
    404: "There is no such model, or no such answer.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "Too many requests of this key.",
    500: "The answer failed.",
    503: "Too many answers wait, or the server is about to stop.",
    504: "The answer was not ready in time.",
}
_HEADERS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
_KEY = (401, 403)
BODY = (400, 404, 408, 413, 415, 429)
"""What a request with a body may be refused with, beside what its key is."""
ANSWER = (*BODY, 500, 503, 504)

_Schema = dict[str, Any]


def _object(**properties: _Schema) -> _Schema:
    """All of them are there; there may be more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}


def _or_null(schema: _Schema) -> _Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: _Schema = {"type": "string"}
_COUNT: _Schema = {"type": "integer", "minimum": 0}
_NUMBER: _Schema = {"type": "number"}
_TOKEN = {"token": _TEXT, "logprob": _NUMBER, "bytes": _or_null(_list(_COUNT))}
_CHAT_LOGPROBS = _object(content=_list(_object(**_TOKEN, top_logprobs=_list(_object(**_TOKEN)))))
_TOP: _Schema = {"type": "object", "additionalProperties": _NUMBER}
_LOGPROBS = _object(
    tokens=_list(_TEXT),
    token_logprobs=_list(_or_null(_NUMBER)),
    top_logprobs=_list(_or_null(_TOP)),
    text_offset=_list(_COUNT),
)
_CHAT_CHOICE = _object(
    message=_object(role={"const": "assistant"}, content=_or_null(_TEXT)), logprobs=_or_null(_CHAT_LOGPROBS)
)
_CHOICE = _object(text=_TEXT, logprobs=_or_null(_LOGPROBS))
_ERROR = _object(error=_object(message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code={"type": "null"}))


def _answer(kind: str, choice: _Schema) -> _Schema:
    more = {"index": _COUNT, "finish_reason": _TEXT}
    choices = {**choice, "properties": {**choice["properties"], **more}, "required": [*choice["required"], *more]}
    usage = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
    return _object(
        id=_TEXT,
        object={"const": kind},
        created=_COUNT,
        model=_TEXT,
        system_fingerprint=_TEXT,
        choices=_list(choices),
        usage=usage,
    )


CHAT = _answer("chat.completion", _CHAT_CHOICE)
COMPLETION = _answer("text_completion", _CHOICE)
MODELS = _object(
    object={"const": "list"},
    data=_list(_object(id=_TEXT, object={"const": "model"}, owned_by=_TEXT, version=_COUNT, fingerprint=_TEXT)),
)
TOKENS = _object(tokens=_list(_COUNT), count=_COUNT, max_model_len=_COUNT)
PROMPT = _object(prompt=_TEXT)
KEPT = _object(status={"const": "kept"})
PROGRESS = _object(steps=_COUNT, running=_COUNT, waiting=_COUNT, seconds_since_step=_NUMBER)


def told(
    answer: _Schema | None, *errors: int, has_keys: bool, streams: bool = False
) -> dict[int | str, dict[str, Any]]:
    """A route's responses: its answer as JSON, None where it is text, and the errors that it may give."""
    found: dict[int | str, dict[str, Any]] = {200: {"description": "The answer."}}
    if answer is not None:
        found[200]["content"] = {"application/json": {"schema": answer}}
        if streams:
            found[200]["content"]["text/event-stream"] = {"schema": _TEXT}
    for status in sorted({*errors, *(_KEY if has_keys else ())}):
        found[status] = {"description": _MEANINGS[status], "content": {"application/json": {"schema": _ERROR}}}
        if (header := _HEADERS.get(status)) is not None:
            found[status]["headers"] = {header: {"schema": _TEXT}}
    return found


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """What a route says of a body that `read_body` reads."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(kind)}}}}


def _inlined(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a body, with its definitions where they are used."""
    schema = kind.model_json_schema()
    parts = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(parts[node["$ref"].rpartition("/")[2]])
            return {key: resolve(each) for key, each in node.items()}
        return [resolve(each) for each in node] if isinstance(node, list) else node

    found: dict[str, Any] = resolve(schema)
    return found
