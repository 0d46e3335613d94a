"""Reading the rows of a JSON or JSONL file; a fault names its line."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from burnish.config.imports import import_by_path
from burnish.errors import ConfigError, DataError

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
ROLES = ("system", "user", "assistant", "tool")

Row = dict[str, Any]
Told = Callable[[str, int, int], None]
"""Hears what is done, how much of it is done, and how much that is in all."""


def tell_nobody(text: str, done: int, total: int) -> None:
    """Where nobody waits."""


def existing_file(key: str, source: str) -> Path:
    """The file that a setting names.

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"{key}: no file {source}; give a .jsonl file, or a .json file with a list of rows")
    return path


def read_rows(key: str, source: str, told: Told = tell_nobody) -> Iterator[tuple[str, Row]]:
    """(place, row) for every row; `key` is the setting that names the file. `told` hears of the bytes that are read.

    Raises:
        ConfigError: there is no such file.
        DataError: a line is not UTF-8, not JSON, or not an object.
    """
    path = existing_file(key, source)
    if path.suffix == ".json":
        rows = _parse(_decode(path.read_bytes(), str(path)), str(path))
        if not isinstance(rows, list):
            raise DataError(f"{path}: must hold a list of rows, got {type(rows).__name__}")
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", _object(row, f"{path}, row {number}")
        return
    num_read, num_bytes = 0, path.stat().st_size
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path}, line {number}"
            num_read += len(line)
            told(f"reading {source}", num_read, num_bytes)
            if text := _decode(line, place).strip():
                yield place, _object(_parse(text, place), place)


def source_rows(key: str, source: str) -> Iterator[tuple[str, Row]]:
    """(place, row) for every row of a file, or of what the function `package.module:name` returns.

    Raises:
        ConfigError: there is neither such a file nor such a function.
        DataError: a row is faulty.
    """
    if not _IMPORT_PATH.fullmatch(source) or Path(source).exists():
        yield from read_rows(key, source)
        return
    try:
        made = import_by_path(source, key, arguments=())()
        for number, row in enumerate(made, start=1):
            place = f"{source}, row {number}"
            # as in a file: what cannot be written there could not be kept either
            yield place, _object(_parse(json.dumps(row, ensure_ascii=False), place), place)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # a user's code may raise anything
        raise DataError(f"{key}: {source} raised {type(error).__name__}: {error}") from error


def transformed(transform: Callable[[Row], Any] | None, row: Row, place: str, key: str) -> list[Row]:
    """The rows that a user's function `key` makes of a row of a file: one, several, or none.

    Raises:
        DataError: it raises, or returns something else than rows.
    """
    if transform is None:
        return [row]
    try:
        made = transform(row)
    except Exception as error:  # a user's code may raise anything
        raise DataError(f"{place}: {key} raised {type(error).__name__}: {error}") from error
    rows = [] if made is None else made if isinstance(made, list) else [made]
    if not all(isinstance(each, dict) for each in rows):
        raise DataError(f"{place}: {key} must return a dict, a list of them, or None, got {made!r}")
    return rows


def read_messages(turns: Any, place: str) -> list[Row]:
    """Check a conversation: a list of messages with a known role and text.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{place}: a conversation must be a list of messages with 'role' and 'content'")
    for turn in turns:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        has_text = isinstance(content, str) and bool(content.strip())
        if not isinstance(role, str) or not (has_text or (isinstance(turn, dict) and turn.get("tool_calls"))):
            raise DataError(f"{place}: every message needs a 'role' and a non-empty text 'content'")
        if role not in ROLES:
            raise DataError(f"{place}: role {role!r} is not known; give one of {', '.join(ROLES)}")
    return list(turns)


def with_system_prompt(messages: list[Row], system_prompt: str | None, place: str) -> list[Row]:
    """Put the configured system message first.

    Raises:
        DataError: the conversation brings its own.
    """
    if system_prompt is None:
        return messages
    if any(message["role"] == "system" for message in messages):
        raise DataError(f"{place}: brings a system message, and system_prompt is set too: keep one")
    return [{"role": "system", "content": system_prompt}, *messages]


def _decode(line: bytes, place: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8: {error.reason}") from error


def _parse(text: str, place: str) -> Any:
    try:
        parsed = json.loads(text)
        json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: holds half a character (a lone surrogate), which no tokenizer can read") from error
    except (ValueError, RecursionError) as error:  # a syntax error, a number of thousands of digits, endless nesting
        raise DataError(f"{place}: not valid JSON: {error}") from error
    return parsed


def _object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row must be a JSON object, got {type(row).__name__}")
    return row
