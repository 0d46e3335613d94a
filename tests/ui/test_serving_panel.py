"""What the panel makes of a server: one that says everything, one that says nothing, and some that misbehave."""

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from burnish.errors import UserError
from burnish.ui import serving
from burnish.ui.serving import ask_server, require_url


def metrics_text() -> str:
    """What a server with a counter, a gauge and a histogram of four answers says, by the library that servers use."""
    registry = CollectorRegistry()
    Counter("burnish_requests", "Answered requests.", ["model"], registry=registry).labels("tiny").inc(7)
    Gauge("burnish_running", "Answers in the making.", registry=registry).set(3)
    seconds = Histogram("burnish_seconds", "Time to answer.", ["model"], registry=registry).labels("tiny")
    for each in (0.5, 1.0, 1.5, 3.0):
        seconds.observe(each)
    return generate_latest(registry).decode()


ROUTES = {
    "/readyz": (200, "ok"),
    "/v1/models": (200, '{"data": [{"id": "tiny", "object": "model", "version": 2, "fingerprint": "ab"}]}'),
    "/progress": (200, '{"steps": 5, "running": 3, "waiting": 0, "seconds_since_step": 0.25, "note": "x"}'),
    "/metrics": (200, metrics_text()),
}


@contextmanager
def answering(routes: dict[str, tuple[int, str]]) -> Iterator[str]:
    """A server's address; a route that is not there is 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = routes.get(self.path, (404, "nothing"))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", text)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def raw(reply: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of something that takes one connection after the other, and does with it what it likes."""
    listening = socket.create_server(("127.0.0.1", 0))
    is_over = threading.Event()

    def accept() -> None:
        while not is_over.is_set():
            connection, _ = listening.accept()
            with connection:
                if not is_over.is_set():
                    reply(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    port = listening.getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        is_over.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()
        listening.close()


def test_a_server_that_says_everything() -> None:
    with answering(ROUTES) as url:
        found = ask_server(url)
    assert found.answers and found.ready == "ready" and found.reason is None
    (model,) = found.models
    assert (model.id, model.version, model.fingerprint) == ("tiny", "2", "ab")
    assert found.progress == {"steps": 5, "running": 3, "waiting": 0, "seconds_since_step": 0.25}
    samples = {(each.name, each.kind): (each.labels, each.value, each.mean) for each in found.metrics}
    assert samples == {
        ("burnish_requests_total", "counter"): ({"model": "tiny"}, 7.0, None),
        ("burnish_running", "gauge"): ({}, 3.0, None),
        ("burnish_seconds", "histogram"): ({"model": "tiny"}, 4.0, 1.5),
    }
    assert found.models_reason is found.progress_reason is found.metrics_reason is None


@pytest.mark.parametrize(
    ("changed", "part", "reason"),
    [
        ({"/metrics": (404, "")}, "metrics", "/metrics: it has no such route"),
        ({"/metrics": (200, "{not metrics")}, "metrics", "/metrics: "),
        ({"/v1/models": (401, "{}")}, "models", "/v1/models: asks for a key, which this page has not"),
        ({"/v1/models": (200, "<html>")}, "models", "/v1/models: "),
        ({"/v1/models": (200, "[]")}, "models", "/v1/models: "),
        ({"/progress": (500, "")}, "progress", "/progress: it answers with status 500"),
        ({"/progress": (302, "http://127.0.0.1:1/secret")}, "progress", "/progress: it answers with status 302"),
        ({"/progress": (200, "[1]")}, "progress", "/progress: "),
        ({"/metrics": (200, "#" * 2_100_000)}, "metrics", "/metrics: it answers with more than 2,000,000 bytes"),
    ],
)
def test_a_part_that_is_missing_is_said_and_the_rest_is_shown(
    changed: dict[str, tuple[int, str]], part: str, reason: str
) -> None:
    with answering({**ROUTES, **changed}) as url:
        found = ask_server(url)
    told = {name: getattr(found, f"{name}_reason") for name in ("models", "progress", "metrics")}
    assert told.pop(part).startswith(reason) and set(told.values()) == {None}
    assert not getattr(found, part) and all(getattr(found, name) for name in told)


def test_a_stalled_server_shows_its_progress() -> None:
    with answering({**ROUTES, "/progress": (503, ROUTES["/progress"][1]), "/readyz": (503, "not now")}) as url:
        found = ask_server(url)
    assert found.progress["running"] == 3 and found.ready == "not ready (503: not now)"


def test_nothing_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = ask_server(f"http://127.0.0.1:{port}")
    assert not found.answers and found.reason is not None
    assert found.reason.startswith(f"nothing answers at http://127.0.0.1:{port}: ")


def _silent(connection: socket.socket) -> None:
    connection.settimeout(5)
    while connection.recv(1000):
        pass


def _garbage(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"\x00\xff garbage\r\n\r\n")


def _dripping(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    try:
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.02)
    except OSError:
        pass


@pytest.mark.parametrize("reply", [_silent, _garbage, _dripping])
def test_what_is_no_server_keeps_nobody_waiting(reply, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_SECONDS", 0.2)
    with raw(reply) as url:
        found = ask_server(url)
    assert not found.answers and found.reason is not None and "nothing answers" in found.reason


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "file:///etc/passwd", "http://", "http://x:99999", "ftp://x", "http://x:0"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UserError, match="--serve-url"):
        require_url(url)
