"""Requests that get no answer."""

from __future__ import annotations

from typing import Literal

Kind = Literal["invalid", "not_found", "too_many", "busy", "too_slow", "failed"]


class RefusedError(Exception):
    """A request that gets no answer: of what kind, why, and which parameter is at fault."""

    def __init__(self, kind: Kind, message: str, *, parameter: str | None = None, retry_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.kind, self.parameter, self.retry_seconds = kind, parameter, retry_seconds

    @property
    def retry_after(self) -> str | None:
        """Whole seconds after which it may be asked again; None where waiting does not help."""
        return str(max(1, round(self.retry_seconds))) if self.kind in ("too_many", "busy") else None
