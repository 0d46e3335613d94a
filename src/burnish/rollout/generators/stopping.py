"""Where a growing completion first holds a stop string, found without decoding all of it at every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_PARTIAL = "\ufffd"  # what stands for bytes that are no whole character
_EDGE = 4  # tokens; a decoder may treat the first one otherwise, and a character has up to 4 bytes


class StopStrings:
    """The stop strings of one completion, searched for after each of its tokens.

    A token that has text adds at least a byte, so a stop string that the last token completes lies in as many of the
    last tokens as it has bytes. Those are decoded; only where they seem to hold one is the whole text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = stops
        self._width = max(len(stop.encode()) for stop in stops) + _EDGE
        self._is_partial = any(_PARTIAL in stop for stop in stops)  # any byte before the window may have spoiled it
        self._with_text: list[int] = []  # places of the tokens that are not skipped, as special ones are

    def position(self, token_ids: Sequence[int]) -> int | None:
        """Where the first stop string begins in the text of `token_ids`, which has grown by one token since before."""
        if self._decode(token_ids[-1:]):
            self._with_text.append(len(token_ids) - 1)
        end = self._end(token_ids)
        if not any(stop in end for stop in self._stops):
            return None
        text = self._decode(token_ids)
        return min((text.find(stop) for stop in self._stops if stop in text), default=None)

    def _end(self, token_ids: Sequence[int]) -> str:
        """The text of the last tokens. It does not begin inside a character, as some decoders spoil what follows."""
        if self._is_partial:
            return self._decode(token_ids)
        for count in range(self._width, min(self._width + _EDGE, len(self._with_text) + 1)):
            text = self._decode(token_ids[self._with_text[-count] :])
            if not text.startswith(_PARTIAL):
                return text
        return self._decode(token_ids)
