"""vLLM as a generator: token ids go to its server's completions, and token ids come back."""

from __future__ import annotations

import http.client
import json
import math
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from burnish.errors import ConfigError, DataError, LostError, MachineError
from burnish.records import Completion, GenerationRequest, SamplingSettings

MODEL = "policy"
"""The name that the server knows the model by."""

LOWEST_TEMPERATURE = 0.01
"""Below it vLLM samples at this temperature instead."""


class VllmClient:
    """Calls of a vLLM server that listens on a Unix socket, which only its owner can reach: vLLM asks for a key on some
    of its paths, and not on those that change the weights.
    """

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    def call(self, method: str, path: str, body: object, *, deadline: float) -> Any:
        """What the server answers, before a deadline by time.monotonic(); None for an empty answer.

        Raises:
            LostError: the server, or its engine, is gone.
            DataError: it refuses what it is asked.
            MachineError: there is no answer in time, or none that can be read.
        """
        connection = _Connection(self.socket_path, max(0.001, deadline - time.monotonic()))
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except TimeoutError as error:
            raise MachineError(f"waited for vLLM's answer to {path} in vain") from error
        except (OSError, http.client.HTTPException) as error:
            raise LostError(f"vLLM's server is gone ({type(error).__name__}: {error})") from error
        finally:
            connection.close()
        _check_status(path, answer.status, text)
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise MachineError(f"vLLM's answer to {path} is no JSON: {_line(text)}") from error


class VllmStream:
    """A call whose answer is read while it is made, or whole where it is not asked to stream. `close`, from any thread,
    ends it, and vLLM then makes no more.
    """

    def __init__(self, client: VllmClient, path: str, body: object, *, silence_seconds: float) -> None:
        """`silence_seconds` without a word are an error."""
        self._path, self._body = path, body
        self._connection = _Connection(client.socket_path, silence_seconds)
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def events(self) -> Iterator[Any]:
        """What the server says, until it has said all, or this is closed; one thing where it was not asked to stream.

        Raises:
            LostError: the server, or its engine, is gone.
            DataError: it refuses what it is asked.
            MachineError: it is silent for too long, or is not to be understood.
        """
        connection = self._connection
        try:
            with self._lock:
                if self._is_closed:
                    return
                connection.connect()
                self._socket = connection.sock
            connection.request("POST", self._path, json.dumps(self._body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status >= 400:
                _check_status(self._path, answer.status, answer.read())
            if answer.headers.get_content_type() == "application/json":  # not a stream
                yield _event(self._path, answer.read())
                return
            for line in answer:
                if line == b"data: [DONE]\n":
                    return
                if line.startswith(b"data: "):
                    yield _event(self._path, line)
            if not self._is_closed:
                raise LostError(f"vLLM's server left off in the middle of {self._path}")
        except TimeoutError as error:
            raise MachineError(f"waited for vLLM's answer to {self._path} in vain") from error
        except (OSError, http.client.HTTPException) as error:
            if not self._is_closed:
                raise LostError(f"vLLM's server is gone ({type(error).__name__}: {error})") from error
        finally:
            connection.close()

    def close(self) -> None:
        """End it."""
        with self._lock:
            self._is_closed = True
            if self._socket is not None:
                with suppress(OSError):  # it has ended by itself
                    self._socket.shutdown(socket.SHUT_RDWR)


def _event(path: str, line: bytes) -> Any:
    try:
        event = json.loads(line.removeprefix(b"data: "))
    except ValueError as error:
        raise MachineError(f"vLLM's answer to {path} is no JSON: {_line(line)}") from error
    if "error" in event:
        raise LostError(f"vLLM failed at {path}: {_line(line)}")
    return event


def _check_status(path: str, status: int, text: bytes) -> None:
    if status >= 500:
        raise LostError(f"vLLM failed at {path} ({status}): {_line(text)}")
    if status >= 400:
        raise DataError(f"vLLM refuses {path} ({status}): {_line(text)}")


class _Connection(http.client.HTTPConnection):
    def __init__(self, socket_path: Path, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._socket_path = str(socket_path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)


class VllmGenerator:
    """Completions of a vLLM server.

    One call of the server for each seed, up to `max_rows` at once. Greedy tokens are the native generator's where
    rounding lets them; sampled ones are not, for vLLM makes other noise of a seed. They are repeated by the same
    version of vLLM as far as its sums do not depend on what is batched.

    The server must run with `--logprobs-mode processed_logprobs`, so that what it tells is what it drew from, and with
    `--generation-config vllm`, so that nothing else than a request says how it samples.
    """

    def __init__(
        self, client: VllmClient, tokenizer: PreTrainedTokenizerBase, *, max_rows: int, timeout_seconds: float
    ) -> None:
        self.client = client
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.timeout_seconds = timeout_seconds

    def generate(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """See Generator.

        Raises:
            DataError: vLLM refuses a request, or would not do exactly what it says.
            LostError: vLLM is gone. The other requests are given up.
            MachineError: it does not answer in time, or not what was asked.
        """
        asked = [(request, seed) for request in requests for seed in request.seeds]
        if not asked:
            return [() for _ in requests]
        bodies = [body_of(request, seed) for request, seed in asked]
        deadline = time.monotonic() + self.timeout_seconds
        with ThreadPoolExecutor(min(self.max_rows, len(asked)), "vllm") as pool:
            calls = [
                pool.submit(self.client.call, "POST", "/v1/completions", body, deadline=deadline) for body in bodies
            ]
            done, _ = wait(calls, return_when=FIRST_EXCEPTION)
            if (failed := next((call for call in done if call.exception() is not None), None)) is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                failed.result()
        found = iter(
            [self._completion(call.result(), request.sampling) for call, (request, _) in zip(calls, asked, strict=True)]
        )
        return [tuple(next(found) for _ in request.seeds) for request in requests]

    def load_weights(self, folder: Path) -> None:
        """Let the server read the safetensors of a folder, and forget what it computed with the weights before.

        Raises:
            LostError: it is gone.
            MachineError: it does not, in time.
        """
        deadline = time.monotonic() + self.timeout_seconds
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self.client.call("POST", "/collective_rpc", body, deadline=deadline)
        # it fails while requests that have just ended still hold their part of the cache
        while self.client.call("POST", "/reset_prefix_cache", {}, deadline=deadline) != {"success": True}:
            if time.monotonic() > deadline:
                raise MachineError("vLLM does not let go of its prefix cache: keys of older weights would be used")
            time.sleep(0.05)

    def _completion(self, answer: Any, sampling: SamplingSettings) -> Completion:
        try:
            (choice,) = answer["choices"]
            token_ids, logprobs = tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"])
            reason = choice["finish_reason"]
        except (KeyError, TypeError, ValueError) as error:
            raise MachineError(f"vLLM's answer lacks what was asked for ({type(error).__name__}: {error})") from error
        is_whole = 0 < len(token_ids) == len(logprobs) <= sampling.max_tokens
        if not is_whole or reason not in ("stop", "length") or not all(isinstance(each, float) for each in logprobs):
            raise MachineError(
                f"vLLM's answer cannot be used: {len(token_ids)} tokens, {len(logprobs)} log-probabilities, "
                f"finish_reason={reason}"
            )
        text = str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
        stops = [text.find(stop) for stop in sampling.stop if stop in text]
        unknown = (math.nan,) * len(token_ids)
        return Completion(
            token_ids=token_ids,
            text=text[: min(stops, default=None)],
            sampling_logprobs=(0.0,) * len(token_ids) if sampling.temperature == 0 else logprobs,
            model_logprobs=logprobs if _draws_from_model(sampling) else unknown,
            finish_reason=reason,
        )


def body_of(request: GenerationRequest, seed: int) -> dict[str, Any]:
    """What the server is asked for one completion.

    Raises:
        DataError: vLLM would not do what the request says.
    """
    sampling = request.sampling
    check_temperature(sampling.temperature, "a request's temperature")
    if swaps_filters(sampling):
        raise DataError(
            f"top_p={sampling.top_p} and min_p={sampling.min_p} in one request: vLLM applies min_p first, and here "
            "top_p is: leave one of them out, or use the native generator"
        )
    return {
        "model": MODEL,
        "prompt": list(request.token_ids),
        "seed": seed % 2**63,  # vLLM's is signed
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "stop": list(sampling.stop),
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": True,  # only what is asked for ends a completion
        "logprobs": 0,  # the sampled token's alone
        "return_token_ids": True,
    }


def swaps_filters(sampling: SamplingSettings) -> bool:
    """Whether vLLM would apply min_p before top_p, and not after it."""
    return sampling.temperature > 0 and sampling.top_p < 1 and sampling.min_p > 0


def check_temperature(temperature: float, name: str) -> None:
    """Refuse one that vLLM would change.

    Raises:
        ConfigError: it would.
    """
    if 0 < temperature < LOWEST_TEMPERATURE:
        raise ConfigError(
            f"{name}={temperature}: vLLM would sample at {LOWEST_TEMPERATURE}; give at least that, or "
            "cluster.engine=native"
        )


def _draws_from_model(sampling: SamplingSettings) -> bool:
    """Whether what vLLM tells is the model at temperature 1. Of a greedy token it is."""
    is_whole = sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0
    return sampling.temperature == 0 or (sampling.temperature == 1 and is_whole)


def _line(text: bytes) -> str:
    return " ".join(text.decode("utf-8", "replace").split())[:400]
