"""Real processes of a test, each ended by its id, and what they are asked."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
with_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or ALERTMANAGER is None,
    reason="not here: apt-get install prometheus prometheus-alertmanager",
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def series(text: str) -> dict[str, list[tuple[tuple[tuple[str, str], ...], float]]]:
    """Of an exposition: (labels in order, value) of each series by its name."""
    found: dict[str, list[tuple[tuple[tuple[str, str], ...], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((tuple(sorted(sample.labels.items())), sample.value))
    return found


@contextmanager
def running(log: Path, *arguments: str, script: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A command of burnish in a process of its own, which is told to stop at the end; what it says is in `log`. A
    script is run in place of burnish.
    """
    program = ["-m", "burnish"] if script is None else [str(script)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdout=out,
            stderr=out,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            yield process
        finally:
            process.terminate()  # it ends what it started, which it could not if it were killed
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(30)


def until(condition: Callable[[], Any], seconds: float, what: Callable[[], str] = lambda: "") -> Any:
    """What a condition is, once it is true; an AssertionError with `what` if it is not in time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)
    return found


def text_of(url: str) -> str | None:
    """The body of a GET; None where nobody answers yet."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def post(url: str, body: Any, key: str | None = None) -> Any:
    """The answer to a POST of JSON."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def query(prometheus: str, expr: str) -> list[dict[str, Any]]:
    """The vector that a query gives."""
    address = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{expr}: {error.read().decode()}") from error
    return found
