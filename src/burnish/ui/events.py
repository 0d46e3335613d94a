"""What happened to a run, and how grave it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from burnish.reproducibility.run_folder import RunFolder
from burnish.ui.answers import EventLine, EventList, Severity, as_text, sayable
from burnish.ui.reading import reading

_MOST = 500
_MOST_CHARACTERS = 500
_GRAVE: Mapping[str, Severity] = {
    "failed": "critical",
    "lost": "critical",
    "reward_failed": "warning",
    "environment_retried": "warning",
    "noticed": "warning",
    "interrupted": "warning",
}
_OF_ALERT: Mapping[str, Severity] = {"info": "info", "warning": "warning"}
"""Any other severity of an alert is taken for the gravest: better looked at once too often."""
_ON_ITS_OWN = ("time", "event", "step", "severity", "name", "state")
_WORDS = ("message", "reason")


def read_events(run: RunFolder) -> EventList:
    """The newest events of a run, newest first.

    Raises:
        DataError: the file is damaged.
    """
    lines = run.events()
    with reading(run.path / "events.jsonl"):
        shown = [_event(line) for line in lines[-_MOST:]]
    return EventList(events=shown[::-1], num_earlier=len(lines) - len(shown))


def _event(line: Mapping[str, Any]) -> EventLine:
    kind, step = str(line["event"]), line.get("step")
    is_alert = kind == "alert"
    return EventLine(
        time=line.get("time", ""),
        event=kind,
        severity=_OF_ALERT.get(str(line.get("severity")), "critical") if is_alert else _GRAVE.get(kind, "info"),
        step=step if isinstance(step, int) else None,
        name=as_text(line.get("name")) if is_alert else None,
        state=as_text(line.get("state")) if is_alert else None,
        message=_message(line),
    )


def _message(line: Mapping[str, Any]) -> str:
    """What an event says in words, then whatever else stands in it."""
    words = [str(line[key]) for key in _WORDS if key in line]
    rest = [f"{key} {_short(value)}" for key, value in line.items() if key not in (*_ON_ITS_OWN, *_WORDS)]
    text = "; ".join([*words, *rest])
    return str(sayable(text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " ..."))


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
