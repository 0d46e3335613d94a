"""What is blotted out of texts before they are kept."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Each pattern reads a text once, without going back over it again and again.
_PATTERNS = {
    "email": re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
    "card": re.compile(r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)"),
    "phone": re.compile(r"(?<![\w+])\+?\d(?:[ ()./-]{0,2}\d){7,14}(?!\w)"),
    "address": re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])"),
}
KINDS = tuple(_PATTERNS)


def redacted(text: str, kinds: Iterable[str]) -> str:
    """The text with what looks like one of `kinds` replaced by its name in brackets. It finds what has the usual form
    and nothing else: names and streets stay.
    """
    for kind, pattern in _PATTERNS.items():
        if kind in kinds:
            text = pattern.sub(f"[{kind}]", text)
    return text
