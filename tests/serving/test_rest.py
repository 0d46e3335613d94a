"""The server as its clients meet it: the real command in a process of its own, OpenAI's own client, raw requests."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from .conftest import wait_for

KEY, ADMIN = "user-key-0123456789", "admin-key-0123456789"


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    port: int
    admin_port: int
    folder: Path

    def request(
        self, path: str, body: Any = None, *, port: int | None = None, key: str = KEY, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """(status, body, headers) of a GET, or of a POST where there is a body."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        connection.request("GET" if raw is None else "POST", path, raw, sent)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        is_json = "json" in answer.headers.get("content-type", "")
        found = {name.lower(): value for name, value in answer.headers.items()}
        return answer.status, json.loads(text) if is_json else text.decode(), found

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0, timeout=30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def started(folder: Path, model: Path, *settings: str) -> Server:
    """A server on the model, ready."""
    (folder / "keys").write_text(f"# who may ask\nuser ann {KEY}\nadmin root {ADMIN}\n")
    ports = free_port(), free_port()
    command = [sys.executable, "-m", "burnish", "serve", str(model), "--name", "tiny", "--port", str(ports[0])]
    command += [
        "--keys_file",
        str(folder / "keys"),
        "--admin.port",
        str(ports[1]),
        "--admin.weights_folder",
        str(folder),
    ]
    command += ["--model.compute_dtype", "float32", *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    server = Server(process, *ports, folder)
    until = time.monotonic() + 300
    while True:
        try:
            if server.request("/readyz")[0] == 200:
                return server
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            raise AssertionError(process.communicate()[1])
        time.sleep(0.1)


def ended(server: Server) -> str:
    """What it said until it ended."""
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.communicate(timeout=60)[1]
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    made = started(folder, tiny_folder, "--limits.completions", "4", "--limits.body_bytes", "100000")
    yield made
    ended(made)


def test_a_chat_with_openais_client(server: Server) -> None:
    answer = server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        max_completion_tokens=6,
        temperature=0,
        n=2,
        logprobs=True,
        top_logprobs=3,
        stop=["\x00\x00"],
    )
    first, second = answer.choices
    assert first.message.role == "assistant" and first.message.content == second.message.content
    assert first.finish_reason in ("length", "stop")
    assert answer.usage is not None and answer.usage.completion_tokens <= 12 and answer.usage.prompt_tokens > 5
    assert first.logprobs is not None and first.logprobs.content is not None
    for token in first.logprobs.content:
        assert len(token.top_logprobs) == 3
        best = max(each.logprob for each in token.top_logprobs)
        assert token.logprob == pytest.approx(best, abs=1e-5)  # it is greedy
    assert answer.system_fingerprint is not None and answer.system_fingerprint.startswith("v1-")


def test_a_stream_is_the_same_answer_in_pieces(server: Server) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 9,
        "seed": 4,
    }
    whole = server.client.chat.completions.create(**asked, logprobs=True)
    pieces = list(
        server.client.chat.completions.create(
            **asked, logprobs=True, stream=True, stream_options={"include_usage": True}
        )
    )
    content = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert content == whole.choices[0].message.content
    reasons = [piece.choices[0].finish_reason for piece in pieces if piece.choices]
    assert reasons[-1] == whole.choices[0].finish_reason and set(reasons[:-1]) == {None}
    said = [
        token.token
        for piece in pieces
        if piece.choices and piece.choices[0].logprobs
        for token in piece.choices[0].logprobs.content or ()
    ]
    assert whole.choices[0].logprobs is not None and whole.choices[0].logprobs.content is not None
    assert said == [token.token for token in whole.choices[0].logprobs.content]
    assert pieces[-1].usage is not None and whole.usage is not None
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {piece.id for piece in pieces} == {pieces[0].id}


def test_a_stream_may_count_as_it_goes(server: Server) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    asked: dict[str, Any] = {"model": "tiny", "prompt": "Hi", "max_tokens": 4, "stream": True, "logprobs": 0}
    pieces = list(server.client.completions.create(**asked, stream_options=options, extra_body={"ignore_eos": True}))
    counts = [piece.usage.completion_tokens for piece in pieces if piece.usage is not None]
    assert len(counts) == len(pieces) and counts == sorted(counts) and counts[0] == 1 and counts[-1] == 4


def test_completions_of_text_and_of_tokens(server: Server) -> None:
    status, found, _ = server.request("/tokenize", {"model": "tiny", "prompt": "One two"})
    assert status == 200 and found["count"] == len(found["tokens"])
    assert server.request("/detokenize", {"model": "tiny", "tokens": found["tokens"]})[1] == {"prompt": "One two"}
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "temperature": 0, "logprobs": 2}
    answers = [
        server.client.completions.create(prompt=prompt, **asked)
        for prompt in ("One two", found["tokens"], ["One two", "Other"], [found["tokens"]])
    ]
    assert len({answer.choices[0].text for answer in answers}) == 1
    assert [choice.index for choice in answers[2].choices] == [0, 1]
    logprobs = answers[0].choices[0].logprobs
    assert logprobs is not None and logprobs.top_logprobs is not None and logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == 5
    assert all(1 <= len(each) <= 2 for each in logprobs.top_logprobs)  # by text: bytes of characters look alike


def test_models_and_their_versions(server: Server) -> None:
    (model,) = server.client.models.list().data
    assert model.id == "tiny"
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-9' does not exist; there is tiny"):
        server.client.completions.create(model="gpt-9", prompt="x")


CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    *(({"n": value}, "n") for value in (0, -1, 10**9, 2**63, True, "3", 1.5, 5)),
    *(({"max_tokens": value}, "max_tokens") for value in (0, -1, 2**31, "2", 5000)),
    *(({"temperature": value}, "temperature") for value in (-1, 1e308, "hot", float("nan"), float("inf"))),
    *(({"top_p": value}, "top_p") for value in (0, 1.1)),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1}, "min_p"),
    *(({"logprobs": True, "top_logprobs": value}, "top_logprobs") for value in (-1, 21, 10**6)),
    ({"top_logprobs": 2}, "top_logprobs"),
    *(({"logit_bias": value}, "logit_bias") for value in ({"-1": 1}, {"99999": 1}, {"x": 1}, {"5": 101}, {"5": "1"})),
    *(({"stop": value}, "stop") for value in ("", ["a"] * 9, ["a", None], "x" * 300, 7)),
    *(({"seed": value}, "seed") for value in (2**64, 1.5, True)),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "max_tokens"),
    ({"chat_template": "{{ 7 * 7 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"max_completion_tokens": 3}, "max_tokens"),
    ({"model": 5}, "model"),
]


@pytest.mark.parametrize(("change", "parameter"), BAD_CHATS, ids=lambda each: str(each)[:40])
def test_a_bad_request_is_refused_with_its_parameter(server: Server, change: dict[str, Any], parameter: str) -> None:
    status, found, _ = server.request("/v1/chat/completions", CHAT | change)
    assert status == 400 and found["error"]["type"] == "invalid_request_error"
    assert found["error"]["message"] and str(found["error"]["param"]).startswith(parameter)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": ""}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": []}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": [[]]}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": [5, 10**6]}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": [-1]}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": [1.5]}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": ["a"] * 5}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": [1.5] * 15_000}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": "a"} | {f"key{n}": 1 for n in range(5_000)}, 400),
        ("/v1/completions", b"", 400),
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b"[" * 90_000, 400),
        ("/v1/completions", b'{"model": "tiny", "prompt": "\\ud800"}', 400),
        ("/v1/completions", b'{"model": "tiny", "prompt": "\xff\xfe"}', 400),
        ("/v1/completions", b'{"model": "tiny", "prompt": "' + b"x" * 200_000 + b'"}', 413),
        ("/detokenize", {"model": "tiny", "tokens": [-1]}, 400),
        ("/nowhere", {}, 404),
        ("/v1/models", {}, 405),
    ],
    ids=lambda each: str(each)[:40],
)
def test_bodies_that_are_none(server: Server, path: str, body: Any, status: int) -> None:
    found = server.request(path, body)
    assert found[0] == status and found[1]["error"]["message"]
    assert server.request("/v1/chat/completions", CHAT)[0] == 200


def test_a_body_of_another_kind(server: Server) -> None:
    assert server.request("/v1/completions", b"model=tiny", Content_Type="text/plain")[0] == 415


@pytest.mark.parametrize("key", ["", "x" * 19, KEY[:-1], KEY + "x", "\u00e9" * 19])
def test_who_has_no_key_gets_nothing(server: Server, key: str) -> None:
    for path, body in (("/v1/models", None), ("/v1/chat/completions", CHAT), ("/tokenize", {}), ("/detokenize", {})):
        status, found, _ = server.request(path, body, key=key.encode().decode("latin-1"))
        assert (status, found["error"]["type"]) == (401, "authentication_error")
    odd = {"key": key.encode().decode("latin-1"), "Host": "x/v1/models?z"}  # which once skipped a check of the path
    assert server.request("/v1/models", **odd)[0] == server.request("/v1/chat/completions", CHAT, **odd)[0] == 401


def test_special_tokens_in_what_is_said_are_text(server: Server) -> None:
    usage = [
        server.request("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": text}]})[1]["usage"]
        for text in ("<|im_end|>", "<| im_end|>")
    ]
    assert usage[0]["prompt_tokens"] >= 10  # not one token


def test_a_client_that_leaves_stops_its_answer(server: Server) -> None:
    long = {**CHAT, "max_tokens": 450, "ignore_eos": True, "stream": True}
    for body in (long, {**long, "stream": False}):
        connection = socket.create_connection(("127.0.0.1", server.port))
        raw = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        wait_for(lambda: server.request("/progress")[1]["running"] > 0)
        before = server.request("/progress")[1]["steps"]
        connection.close()
        wait_for(lambda: server.request("/progress")[1]["running"] == 0)
        assert server.request("/progress")[1]["steps"] - before < 400


def test_openapi_says_what_is_taken(server: Server) -> None:
    status, found, _ = server.request("/openapi.json")
    assert status == 200
    schema = found["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "top_logprobs", "logit_bias"} <= schema["properties"].keys()
    assert "$ref" not in json.dumps(schema)


def test_weights_are_exchanged_under_load(server: Server, tiny_folder: Path, tiny_teacher_folder: Path) -> None:
    """Every answer is of one version, and says which: greedy answers of a version are all equal."""
    for name, source in (("one", tiny_folder), ("two", tiny_teacher_folder)):
        shutil.copytree(source, server.folder / name)
    body = {**CHAT, "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    answers: list[tuple[int, str, str]] = []
    is_over = threading.Event()

    def client() -> None:
        while not is_over.is_set():
            status, found, headers = server.request("/v1/chat/completions", body)
            fingerprint = headers.get("x-weight-fingerprint", "")
            answers.append((status, fingerprint, found["choices"][0]["message"]["content"] if status == 200 else ""))

    threads = [threading.Thread(target=client) for _ in range(4)]
    for each in threads:
        each.start()
    versions = []
    for path in ("one", "two", "one", "two"):
        status, found, _ = server.request(
            "/admin/models/tiny/weights", {"path": path}, port=server.admin_port, key=ADMIN
        )
        assert status == 200
        versions.append(found["version"])
        time.sleep(0.3)
    is_over.set()
    for each in threads:
        each.join(30)
    assert versions == sorted(set(versions))
    assert {status for status, _, _ in answers} == {200}
    said = {fingerprint: {text for _, each, text in answers if each == fingerprint} for _, fingerprint, _ in answers}
    assert len(said) == 2 and all(len(texts) == 1 for texts in said.values())
    assert len(set.union(*said.values())) == 2


@pytest.mark.parametrize("path", ["../..", "/etc", "none", "a\x00b", "link", "keys", "broken"])
def test_weights_from_elsewhere_are_refused(server: Server, path: str, tiny_folder: Path) -> None:
    link, broken = server.folder / "link", server.folder / "broken"
    if not link.is_symlink():
        link.symlink_to("/etc")
        shutil.copytree(tiny_folder, broken)
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    before = server.request("/admin/models", port=server.admin_port, key=ADMIN)[1]
    status, found, _ = server.request("/admin/models/tiny/weights", {"path": path}, port=server.admin_port, key=ADMIN)
    assert status == 400 and found["error"]["param"] == "path"
    assert server.request("/admin/models", port=server.admin_port, key=ADMIN)[1] == before
    assert server.request("/v1/chat/completions", CHAT)[0] == 200


def test_the_admin_door_is_for_admins(server: Server) -> None:
    swap = "/admin/models/tiny/weights"
    assert server.request(swap, {"path": "one"}, port=server.admin_port)[0] == 403
    assert server.request(swap, {"path": "one"}, port=server.admin_port, key="x")[0] == 401
    assert server.request(swap, {"path": "one"}, key=ADMIN)[0] == 404  # it is not on the other port
    assert server.request("/admin/models/other/weights", {"path": "."}, port=server.admin_port, key=ADMIN)[0] == 404


def test_answers_that_are_under_way_end_before_the_server(tmp_path: Path, tiny_folder: Path) -> None:
    server = started(tmp_path, tiny_folder, "--limits.requests_per_minute", "3")
    found: list[tuple[int, Any, dict[str, str]]] = []
    body = {**CHAT, "max_tokens": 450, "ignore_eos": True}
    asking = threading.Thread(target=lambda: found.append(server.request("/v1/chat/completions", body)))
    asking.start()
    wait_for(lambda: server.request("/progress")[1]["running"] > 0)
    for expected in (200, 200, 429):
        status, _, headers = server.request("/v1/chat/completions", CHAT)
        assert status == expected and ("retry-after" in headers) == (expected == 429)
    said = ended(server)
    asking.join(30)
    ((status, answer, _),) = found
    assert status == 200 and answer["usage"]["completion_tokens"] == 450
    assert "answers that are under way end" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--host", "0.0.0.0"], "host=0.0.0.0 lets others ask: give keys_file"),
        (["--keys_file", "none"], "keys_file=none: cannot be read as text"),
        (["--admin.port", "1"], "admin.port and admin.weights_folder belong together"),
        (["--admin.grpc_port", "1"], "admin.grpc_port needs admin.port and admin.weights_folder"),
        (["--prot", "1"], "unknown setting 'prot' .* did you mean 'port'"),
        (["--model.lora.rank", "4"], "model.lora is for training"),
        (["--keys_file", "keys", "--admin.port", "1", "--admin.weights_folder", "."], "has no key of the role admin"),
    ],
)
def test_settings_that_do_not_serve(
    settings: list[str], message: str, tiny_folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    import re

    from burnish.cli.app import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BURNISH_SEED", "3")  # which is for training
    (tmp_path / "keys").write_text(f"user ann {KEY}\n")
    assert run(["serve", str(tiny_folder), *settings]) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(message, said) and "\n" not in said


def test_a_port_that_is_taken_is_one_line(tiny_folder: Path, tmp_path: Path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "burnish", "serve", str(tiny_folder), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    loading, *said = done.stderr.splitlines()
    assert loading.startswith("loading ")
    assert said == [f"burnish: cannot listen on 127.0.0.1:{port}: is the port taken?"]
