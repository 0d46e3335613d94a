"""The text of an answer while its tokens arrive: what can be shown already, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_PARTIAL = "\ufffd"  # what stands for bytes that are no whole character yet
_LONGEST_WINDOW = 16  # tokens without a clean end: bytes that are no text, or tokens that have none
_MOST_PARTIAL = 3  # bytes of a character that is not whole; some decoders show each of them


class TextStream:
    """Grows by tokens and gives text, which is never taken back.

    The parts are together what the tokenizer makes of all tokens at once, cut before the stop string that is whole
    first. A part of a character, and what may become a stop string, waits.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in stops), default=0)
        self._token_ids: list[int] = []
        self._first, self._read = 0, 0  # tokens: where decoding begins, and where what comes after it began
        self._taken = 0  # characters of what is decoded from there
        self._waiting = ""
        self.is_stopped = False

    def add(self, token_id: int) -> str:
        """The text that the next token makes certain."""
        self._token_ids.append(token_id)
        now = self._decode(self._token_ids[self._first :])
        partial = min(_MOST_PARTIAL, len(now) - len(now.rstrip(_PARTIAL)))
        self._grow(now[: len(now) - partial])
        if (now and not partial) or len(self._token_ids) - self._read > _LONGEST_WINDOW:
            # the next ones are decoded after these alone: all of them would take ever longer
            self._first, self._read = self._read, len(self._token_ids)
            self._taken = max(0, len(self._decode(self._token_ids[self._first :])) - partial)
        return self._take()

    def end(self) -> str:
        """What is left when no token follows."""
        if self.is_stopped:
            return ""
        self._grow(self._decode(self._token_ids[self._first :]))
        text = self._take()
        if not self.is_stopped:
            text, self._waiting = text + self._waiting, ""
        return text

    def _grow(self, certain: str) -> None:
        self._waiting += certain[self._taken :]
        self._taken = max(self._taken, len(certain))

    def _take(self) -> str:
        whole = [(place + len(stop), place) for stop in self._stops if (place := self._waiting.find(stop)) >= 0]
        if whole:
            self.is_stopped = True
            text, self._waiting = self._waiting[: min(whole)[1]], ""
            return text
        held = next(
            (
                size
                for size in range(min(self._longest - 1, len(self._waiting)), 0, -1)
                if any(stop.startswith(self._waiting[-size:]) for stop in self._stops)
            ),
            0,
        )
        cut = len(self._waiting) - held
        text, self._waiting = self._waiting[:cut], self._waiting[cut:]
        return text
