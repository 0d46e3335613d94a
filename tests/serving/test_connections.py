"""Clients that do not send, and clients that do not read, against the real command with short deadlines."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import wait_for
from .test_rest import CHAT, KEY, Server, ended, started

HEAD_SECONDS, UNREAD_SECONDS = 1.0, 1.0
HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Server]:
    limits = ["--limits.head_seconds", str(HEAD_SECONDS), "--limits.unread_seconds", str(UNREAD_SECONDS)]
    made = started(tmp_path_factory.mktemp("served"), tiny_folder, *limits, "--limits.completions", "64")
    yield made
    assert "Traceback" not in ended(made)


def connected(server: Server, *, receive_bytes: int | None = None) -> socket.socket:
    made = socket.socket()
    if receive_bytes is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.settimeout(20)
    made.connect(("127.0.0.1", server.port))
    return made


def seconds_until_cut(connection: socket.socket, drip: bytes, began: float) -> float:
    """Sending a byte now and then, until the server ends the connection."""
    for place in range(200):
        try:
            connection.sendall(drip[place % len(drip) : place % len(drip) + 1])
            connection.settimeout(0.05)
            if connection.recv(1000) == b"":
                return time.monotonic() - began
        except TimeoutError:
            continue
        except OSError:
            return time.monotonic() - began
    raise AssertionError("it was not cut")


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"GET /livez HT",
        HEAD.encode() + b"\r\nX-Slow: ",
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n",
    ],
    ids=["nothing", "line", "headers", "rest-of-a-body"],
)
def test_a_request_that_drips_in_is_cut(server: Server, before: bytes) -> None:
    with connected(server) as connection:
        began = time.monotonic()
        connection.sendall(before)
        taken = seconds_until_cut(connection, b"a", began)
    assert HEAD_SECONDS * 0.9 <= taken < HEAD_SECONDS + 5
    assert server.request("/v1/chat/completions", CHAT)[0] == 200


def test_a_connection_that_is_only_opened_is_cut(server: Server) -> None:
    with connected(server) as connection:
        assert connection.recv(10) == b""


def test_a_second_request_that_drips_in_is_cut(server: Server) -> None:
    """The first one was whole, and what a slow answer takes does not count."""
    with connected(server) as connection:
        raw = json.dumps({**CHAT, "max_tokens": 450, "ignore_eos": True, "n": 8}).encode()
        connection.sendall(f"{HEAD}\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        answer = b""
        while b'"usage"' not in answer:
            answer += connection.recv(100_000)
        assert answer.startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /livez")
        assert seconds_until_cut(connection, b"z", time.monotonic()) < HEAD_SECONDS + 5


def test_a_client_that_asks_now_and_then_stays(server: Server) -> None:
    with connected(server) as connection:
        for _ in range(4):
            time.sleep(HEAD_SECONDS * 0.6)
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"\r\n\r\nok"):
                piece = connection.recv(1000)
                assert piece, "it was cut"
                answer += piece


def asked_for_much(connection: socket.socket, *, streams: bool) -> None:
    """An answer of a megabyte and more, more than the kernel's own buffers take here."""
    body = {**CHAT, "max_tokens": 480, "ignore_eos": True, "n": 16, "logprobs": True, "top_logprobs": 20}
    raw = json.dumps(body | {"stream": streams, "messages": [{"role": "user", "content": "x"}]}).encode()
    connection.sendall(f"{HEAD}\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)


@pytest.mark.slow
@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_never_reads_is_cut(server: Server, streams: bool) -> None:
    """Its answers end, and the next one is answered meanwhile."""
    with connected(server, receive_bytes=4096) as connection:
        asked_for_much(connection, streams=streams)
        wait_for(lambda: server.request("/progress")[1]["running"] > 0)
        assert server.request("/v1/chat/completions", CHAT)[0] == 200
        wait_for(lambda: server.request("/progress")[1]["running"] == 0, 60)
        time.sleep(UNREAD_SECONDS * 3)
        found = b""
        try:
            while piece := connection.recv(1_000_000):  # what the kernels still held
                found += piece
        except ConnectionResetError:
            pass
    assert b"[DONE]" not in found and not found.endswith(b"}}}")


@pytest.mark.slow
def test_a_client_that_reads_slowly_gets_everything(server: Server) -> None:
    with connected(server, receive_bytes=65536) as connection:
        asked_for_much(connection, streams=False)
        found = b""
        while not found.endswith(b"}}}"):
            piece = connection.recv(200_000)
            assert piece, "it was cut"
            found += piece
            time.sleep(0.02)
    assert found.startswith(b"HTTP/1.1 200") and json.loads(found.partition(b"\r\n\r\n")[2])["choices"][15]
