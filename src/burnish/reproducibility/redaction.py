"""What must not stand in a record: passwords, keys and tokens."""

import re
from collections.abc import Iterable

REDACTED = "(redacted)"

_SECRET_PARTS = frozenset(
    ("token", "secret", "password", "passwd", "credential", "credentials", "apikey", "key", "auth", "authorization")
)
_SECRET_VALUES = re.compile(
    r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}"
    r"|\bhf_[A-Za-z0-9]{20,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def is_secret_name(name: str) -> bool:
    """Whether a setting or variable of this name holds a secret: HF_TOKEN and --judge.api_key do, max_tokens not."""
    return not _SECRET_PARTS.isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))


def holds_secret(text: str) -> bool:
    """Whether a text holds what looks like a key, a token, or a password in an address."""
    return bool(_SECRET_VALUES.search(text) or _URL_PASSWORD.search(text))


def redacted(name: str, value: str) -> str:
    """The value of a setting or variable, without what looks like a secret."""
    if is_secret_name(name):
        return REDACTED
    return _URL_PASSWORD.sub(REDACTED, _SECRET_VALUES.sub(REDACTED, value))


def redacted_arguments(arguments: Iterable[str]) -> list[str]:
    """A command line; what follows the name of a secret is one."""
    shown: list[str] = []
    name = ""
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag.startswith("-") and equals:
            shown.append(f"{flag}={redacted(flag, value)}")
            name = ""
        elif argument.startswith("-"):
            shown.append(argument)
            name = argument
        else:
            shown.append(redacted(name, argument))
            name = ""
    return shown
