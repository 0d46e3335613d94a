"""vLLM's client against a server that says what a test wants. The real one: tests/distributed/test_vllm.py."""

import json
import math
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import BurnishError, ConfigError, DataError, LostError, MachineError
from burnish.models.tiny import make_byte_tokenizer
from burnish.records import GenerationRequest, SamplingSettings
from burnish.rollout.generators.vllm import VllmClient, VllmGenerator, body_of

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]
GREEDY = SamplingSettings(max_tokens=4, temperature=0.0)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
    answer: Answer
    asked: list[tuple[str, dict[str, Any]]]

    def handle_error(self, *_: object) -> None:
        """Nobody may wait for an answer any more."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        status, said = self.server.answer(self.path, body)
        text = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(str(tmp_path / "http"), Handler) as server:
        server.asked = []
        server.answer = lambda path, body: (200, choice([5, 6]))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def generator(server: Server) -> VllmGenerator:
    client = VllmClient(Path(str(server.server_address)))
    return VllmGenerator(client, make_byte_tokenizer(), max_rows=4, timeout_seconds=5)


def choice(token_ids: list[int], logprobs: list[Any] | None = None, reason: str = "length") -> dict[str, Any]:
    found = logprobs if logprobs is not None else [-0.5] * len(token_ids)
    return {"choices": [{"token_ids": token_ids, "logprobs": {"token_logprobs": found}, "finish_reason": reason}]}


def ask(sampling: SamplingSettings, seeds: tuple[int, ...] = (1,), prompt: tuple[int, ...] = (9,)) -> GenerationRequest:
    return GenerationRequest(token_ids=prompt, sampling=sampling, seeds=seeds)


def test_what_is_asked() -> None:
    sampling = SamplingSettings(max_tokens=7, temperature=0.5, top_k=3, top_p=0.9, stop=("x",), stop_token_ids=(2,))
    assert body_of(ask(sampling, prompt=(9, 8)), 2**63 + 5) == {
        "model": "policy",
        "prompt": [9, 8],
        "seed": 5,
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.0,
        "stop": ["x"],
        "stop_token_ids": [2],
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
    }
    assert body_of(ask(sampling), 2**64 - 1)["seed"] == 2**63 - 1  # never -1, which is no seed to vLLM


def test_each_seed_gets_its_completion_in_order(server: Server, generator: VllmGenerator) -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.02 * (5 - body["seed"]))  # the last is answered first
        return 200, choice([body["prompt"][0], body["seed"]])

    server.answer = answer
    found = generator.generate([ask(GREEDY, (1, 2), (10,)), ask(GREEDY, (), (20,)), ask(GREEDY, (3, 4), (30,))])
    assert [[each.token_ids for each in group] for group in found] == [[(10, 1), (10, 2)], [], [(30, 3), (30, 4)]]
    assert generator.generate([]) == []


def test_no_more_than_max_rows_at_once(server: Server, generator: VllmGenerator) -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return 200, choice([5])

    server.answer = answer
    generator.generate([ask(GREEDY, tuple(range(12)))])
    assert most[0] == 4


@pytest.mark.parametrize(
    ("sampling", "drawn_from", "of_the_model"),
    [
        (GREEDY, 0.0, -0.5),
        (SamplingSettings(max_tokens=4), -0.5, -0.5),
        (SamplingSettings(max_tokens=4, temperature=0.7), -0.5, math.nan),
        (SamplingSettings(max_tokens=4, top_k=5), -0.5, math.nan),
        (SamplingSettings(max_tokens=4, top_p=0.5), -0.5, math.nan),
        (SamplingSettings(max_tokens=4, min_p=0.1), -0.5, math.nan),
    ],
    ids=["greedy", "model", "temperature", "top_k", "top_p", "min_p"],
)
def test_whose_log_probabilities_they_are(
    generator: VllmGenerator, sampling: SamplingSettings, drawn_from: float, of_the_model: float
) -> None:
    ((found,),) = generator.generate([ask(sampling)])
    assert found.sampling_logprobs == (drawn_from,) * 2
    assert found.model_logprobs == pytest.approx((of_the_model,) * 2, nan_ok=True)


def test_text_is_without_special_tokens_and_cut_before_a_stop_string(server: Server, generator: VllmGenerator) -> None:
    token_ids = generator.tokenizer("one two three", add_special_tokens=False)["input_ids"]
    (end,) = generator.tokenizer.convert_tokens_to_ids(["<|im_end|>"])
    server.answer = lambda path, body: (200, choice([*token_ids, end], reason="stop"))
    for stop, text in (((), "one two three"), (("hree", " t"), "one"), (("four",), "one two three")):
        ((found,),) = generator.generate([ask(SamplingSettings(max_tokens=20, stop=stop))])
        assert (found.text, found.finish_reason, found.token_ids) == (text, "stop", (*token_ids, end))


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((400, {"error": "prompt too long"}), DataError, r"vLLM refuses /v1/completions \(400\): .*prompt too long"),
        ((500, {"error": "EngineCore"}), LostError, r"vLLM failed at /v1/completions \(500\): .*EngineCore"),
        ((200, b"<html>"), MachineError, "is no JSON: <html>"),
        ((200, {"choices": []}), MachineError, "lacks what was asked for"),
        ((200, {"choices": [{"token_ids": [5], "logprobs": None}]}), MachineError, "lacks what was asked for"),
        ((200, choice([])), MachineError, "cannot be used: 0 tokens, 0 log-probabilities"),
        ((200, choice([5, 6], [-0.5])), MachineError, "cannot be used: 2 tokens, 1 log-probabilities"),
        ((200, choice([5], [None])), MachineError, "cannot be used"),
        ((200, choice([5] * 5)), MachineError, "cannot be used: 5 tokens"),
        ((200, choice([5], reason="abort")), MachineError, "finish_reason=abort"),
    ],
)
def test_one_that_fails_fails_the_call(
    server: Server, generator: VllmGenerator, answer: tuple[int, Any], error: type[BurnishError], message: str
) -> None:
    server.answer = lambda path, body: answer if body["seed"] == 3 else (200, choice([5]))
    with pytest.raises(error, match=message):
        generator.generate([ask(GREEDY, tuple(range(6)))])


def test_a_server_that_says_nothing_is_not_waited_for_longer(server: Server, generator: VllmGenerator) -> None:
    ended = threading.Event()
    server.answer = lambda path, body: (200, choice([5]) if ended.wait(5) else None)
    generator.timeout_seconds = 0.1
    began = time.monotonic()
    with pytest.raises(MachineError, match="waited for vLLM's answer to /v1/completions in vain"):
        generator.generate([ask(GREEDY, tuple(range(9)))])
    assert time.monotonic() - began < 2
    ended.set()


def test_no_server_is_a_lost_one(tmp_path: Path) -> None:
    generator = VllmGenerator(VllmClient(tmp_path / "none"), make_byte_tokenizer(), max_rows=4, timeout_seconds=5)
    with pytest.raises(LostError, match="vLLM's server is gone"):
        generator.generate([ask(GREEDY)])


@pytest.mark.parametrize(
    ("sampling", "error", "message"),
    [
        (SamplingSettings(max_tokens=4, top_p=0.9, min_p=0.1), DataError, "vLLM applies min_p first"),
        (SamplingSettings(max_tokens=4, temperature=0.001), ConfigError, "vLLM would sample at 0.01"),
    ],
)
def test_what_vllm_would_do_otherwise_is_refused(
    server: Server, generator: VllmGenerator, sampling: SamplingSettings, error: type[BurnishError], message: str
) -> None:
    with pytest.raises(error, match=message):
        generator.generate([ask(sampling)])
    assert server.asked == []


def test_new_weights_empty_the_prefix_cache(server: Server, generator: VllmGenerator, tmp_path: Path) -> None:
    refused = [{"success": False}]

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/reset_prefix_cache":
            return 200, refused.pop() if refused else {"success": True}
        return 200, {"results": [None]}

    server.answer = answer
    generator.load_weights(tmp_path)
    reload = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path)}}
    assert server.asked == [("/collective_rpc", reload), ("/reset_prefix_cache", {}), ("/reset_prefix_cache", {})]


def test_a_prefix_cache_that_stays_is_an_error(server: Server, generator: VllmGenerator, tmp_path: Path) -> None:
    server.answer = lambda path, body: (200, {"success": False})
    generator.timeout_seconds = 0.1
    with pytest.raises(MachineError, match=r"keys of older weights would be used|in vain"):
        generator.load_weights(tmp_path)
