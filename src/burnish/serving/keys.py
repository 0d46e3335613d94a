"""Who may ask: keys from a file, compared in a time that tells nothing of them."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from burnish.errors import ConfigError

Role = Literal["user", "admin", "monitor"]

_SHORTEST = 16  # characters


@dataclass(frozen=True, slots=True)
class Key:
    """One who may ask."""

    role: Role
    name: str
    secret: str


def read_keys(file: Path) -> tuple[Key, ...]:
    """The keys of a file with a line `ROLE NAME KEY` for each; empty lines and those that begin with # are none.

    Raises:
        ConfigError: the file cannot be read, a line is another one, or a name or key is there twice.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys_file={file}: cannot be read as text") from error
    found: list[Key] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 3 or words[0] not in get_args(Role):
            raise ConfigError(
                f"keys_file={file}, line {number}: needs `ROLE NAME KEY`, and the role is {', '.join(get_args(Role))}"
            )
        if len(words[2]) < _SHORTEST or not words[2].isascii():
            raise ConfigError(f"keys_file={file}, line {number}: a key has {_SHORTEST} ASCII characters or more")
        key = Key(cast(Role, words[0]), words[1], words[2])
        if any(key.name == each.name or key.secret == each.secret for each in found):
            raise ConfigError(f"keys_file={file}, line {number}: this name or key is there already")
        found.append(key)
    if not found:
        raise ConfigError(f"keys_file={file}: has no key")
    return tuple(found)


def owner_of(authorization: str, keys: Sequence[Key]) -> Key | None:
    """Whose key an Authorization header holds. All are compared, whichever fits."""
    scheme, _, secret = authorization.partition(" ")
    given = secret.strip().encode("utf-8", "replace") if scheme.lower() == "bearer" else b""
    fitting = [key for key in keys if hmac.compare_digest(key.secret.encode(), given)]
    return fitting[0] if fitting else None
