"""What a server says of itself. It is asked from here, not by the browser, and what it says is text, no more."""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from burnish.errors import UserError
from burnish.ui.answers import Sample, Served, Serving
from burnish.ui.reading import FAULTS, reason_of

_SECONDS = 2.0
"""For one route: a page that waits longer is no panel."""
_MAX_BYTES = 2_000_000
_CHUNK_BYTES = 65_536
_MOST_SAMPLES = 500
_BUCKETS = ("_bucket", "_created")


class _UnusableError(Exception):
    """An answer that says nothing."""


def require_url(url: str) -> None:
    """Check the address of a server.

    Raises:
        UserError: it is none.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise UserError(f"--serve-url {url}: give a server's address, such as http://127.0.0.1:8000")


def ask_server(url: str) -> Serving:
    """Ask a server for its models, its progress and its metrics, each within two seconds."""
    try:
        status, text = _get(url, "/readyz")
    except (OSError, http.client.HTTPException, _UnusableError) as error:
        why = reason_of(error) or type(error).__name__
        return Serving(url=url, answers=False, reason=f"nothing answers at {url}: {why}")
    found: dict[str, Any] = {"ready": "ready" if status == 200 else f"not ready ({status}: {text[:80]})"}
    for name, path, read in (
        ("models", "/v1/models", _models),
        ("progress", "/progress", _progress),
        ("metrics", "/metrics", _samples),
    ):
        try:
            found[name] = read(*_get(url, path))
        except (*FAULTS, http.client.HTTPException, _UnusableError) as error:
            found[f"{name}_reason"] = f"{path}: {reason_of(error) or type(error).__name__}"
    return Serving(url=url, answers=True, **found)


def _get(url: str, path: str) -> tuple[int, str]:
    """Status and text of a GET; no redirect is followed, and no more is read than a panel can show."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    deadline = time.monotonic() + _SECONDS
    connection = kind(parts.hostname or "", parts.port, timeout=_SECONDS)
    try:
        connection.request("GET", parts.path.rstrip("/") + path, headers={"Accept-Encoding": "identity"})
        answer = connection.getresponse()
        body = bytearray()
        while piece := answer.read1(_CHUNK_BYTES):
            body += piece
            if len(body) > _MAX_BYTES:
                raise _UnusableError(f"it answers with more than {_MAX_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise _UnusableError(f"it did not answer within {_SECONDS:g} s")
        return answer.status, body.decode(errors="replace")
    finally:
        connection.close()


def _models(status: int, text: str) -> list[Served]:
    if status == 401:
        raise _UnusableError("asks for a key, which this page has not")
    _require(status, 200)
    return [Served.model_validate(each) for each in json.loads(text)["data"]]


def _progress(status: int, text: str) -> dict[str, Any]:
    _require(status, 200, 503)  # 503: there is work and no step is made, which is what one wants to see
    content = json.loads(text)
    return {name: value for name, value in content.items() if isinstance(value, int | float)}


def _samples(status: int, text: str) -> list[Sample]:
    """The numbers of Prometheus' text; buckets are told by their count and mean alone."""
    _require(status, 200)
    found: list[Sample] = []
    for family in text_string_to_metric_families(text):
        if family.type in ("histogram", "summary"):
            found += _distributions(family)
        else:
            about = {"kind": family.type, "help": family.documentation}
            numbers = [each for each in family.samples if not each.name.endswith(_BUCKETS)]
            found += [Sample(name=each.name, labels=each.labels, value=each.value, **about) for each in numbers]
    return found[:_MOST_SAMPLES]


def _distributions(family: Any) -> Iterator[Sample]:
    sums = {tuple(each.labels.items()): each.value for each in family.samples if each.name.endswith("_sum")}
    for each in family.samples:
        if each.name.endswith("_count"):
            total = sums.get(tuple(each.labels.items()), math.nan)
            mean = total / each.value if each.value else None
            yield Sample(
                name=family.name,
                kind=family.type,
                labels=each.labels,
                value=each.value,
                mean=mean,
                help=family.documentation,
            )


def _require(status: int, *expected: int) -> None:
    if status not in expected:
        raise _UnusableError("it has no such route" if status == 404 else f"it answers with status {status}")
