"""A connection over HTTP whose client may not let the server wait for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's, which ends where a request does not arrive, or an answer is not taken.

    uvicorn waits for both as long as the connection is there. The body of a request that is being answered has a
    deadline of its own, in `read_body`.
    """

    def __init__(self, *, head_seconds: float, unread_seconds: float, **options: Any) -> None:
        """`head_seconds` is for the line and the headers of a request, from its first byte or the beginning of the
        connection, and for a body that is left when the answer is given; of an answer something must be taken in
        `unread_seconds`.
        """
        super().__init__(**options)
        self._head_seconds, self._unread_seconds = head_seconds, unread_seconds
        self._arriving: asyncio.TimerHandle | None = None
        self._leaving: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """See asyncio. Writing pauses as soon as something is not taken, so that it is noticed."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1)  # with 0, TLS would pause and have no reason to go on
        self._watch_arrival()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        self._watch_arrival()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        for timer in (self._arriving, self._leaving):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        self._watch_leaving()

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        if self._leaving is not None:
            self._leaving.cancel()

    def _watch_arrival(self) -> None:
        """Something is owed: a request, or the rest of one that was answered without it."""
        is_owed = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        if is_owed and self._arriving is None:
            self._arriving = self.loop.call_later(self._head_seconds, self.transport.abort)
        elif not is_owed and self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _watch_leaving(self) -> None:
        left = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() < left:
                self._watch_leaving()
            else:
                self.transport.abort()

        self._leaving = self.loop.call_later(self._unread_seconds, look)
