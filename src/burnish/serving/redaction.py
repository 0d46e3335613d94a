"""What is blotted out of texts before they are kept."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Each pattern reads a text once, without going back over it again and again.
_PATTERNS = {
    "email": re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
    "card": re.compile(r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)"),
    "phone": re.compile(r"(?<![\w+])\+?\(?\d(?:[ ()./-]{0,3}\d){7,14}(?!\w)"),
    "address": re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])"),
}

# A day, a decimal number, an address of a computer: digits enough for a phone, and none.
_NO_PHONE = re.compile(r"\d{4}[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.]\d{4}|\d+\.\d+|\d{1,3}(\.\d{1,3}){3}")


def redacted(text: str, kinds: Iterable[str]) -> str:
    """The text with what looks like one of `kinds` replaced by its name in brackets. It finds what has the usual form
    and nothing else: names and streets stay. A long number without a separator counts as a phone.
    """
    for kind, pattern in _PATTERNS.items():
        if kind in kinds:
            text = pattern.sub(lambda found, kind=kind: f"[{kind}]" if _is(kind, found[0]) else found[0], text)  # type: ignore[misc]
    return text


def _is(kind: str, found: str) -> bool:
    groups = re.findall(r"\d+", found)
    if kind == "card":
        return min(map(len, groups[:-1]), default=9) > 1 and _has_check_digit("".join(groups))
    if kind == "phone":
        return not _NO_PHONE.fullmatch(found) and min(map(len, groups[1:]), default=9) > 1
    return True


def _has_check_digit(digits: str) -> bool:
    """Luhn's, which a card has and one number of ten."""
    doubled = [int(each) * (1 + place % 2) for place, each in enumerate(reversed(digits))]
    return sum(each - 9 * (each > 9) for each in doubled) % 10 == 0
