"""vLLM as the sampler: a process of its own for each set of weights, asked for one answer at a time, in token ids."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from burnish.config.serving import LOAD_SECONDS, ServeConfig
from burnish.distributed.vllm_server import VllmServer, load_vllm
from burnish.errors import ConfigError, MachineError
from burnish.models.load import find_dtype, load_policy
from burnish.models.policy import Policy
from burnish.records import GenerationRequest
from burnish.rollout.generators.vllm import LOWEST_TEMPERATURE, MODEL, VllmStream, body_of, swaps_filters
from burnish.serving.asks import Ask, EngineGoneError, PromptRead, Weights
from burnish.serving.parity import checked_mismatch, learned_logprobs, parity_tokens
from burnish.serving.refusals import RefusedError
from burnish.serving.sampler import Drawn, Made, MakeSampler, Row

_LOG = logging.getLogger(__name__)
_START_SECONDS = 0.95 * LOAD_SECONDS  # so that whoever waits for the weights hears what came of them
_SILENCE_SECONDS = 3600.0  # an answer's own deadline comes before
_COMPLETIONS = "/v1/completions"
_BLOCK_TOKENS = 128  # of keys and values, at most: so many more than its tokens may an answer take
_FORMS = json.dumps({"backend": "guidance"})  # what holds our own sampler to a schema, too


def vllm_samplers(
    config: ServeConfig, say: Callable[[str], None], stopping: threading.Event | None = None
) -> MakeSampler:
    """Samplers whose weights are compared with the learner first. None is waited for once `stopping` is set.

    Raises:
        ConfigError: there is no vLLM, or one that cannot be loaded.
    """
    python = config.engine.vllm_python or sys.executable
    if os.sep in python:
        python = os.path.abspath(python)  # not resolved: an environment's interpreter is a link
    version = load_vllm(python, "engine")
    told = stopping or threading.Event()

    def make(weights: Weights, wake: Callable[[], None]) -> VllmSampler:
        say(f"vLLM {version} starts for {weights.name}: a minute or two")
        return VllmSampler(weights, wake, config=config, python=python, stopping=told)

    return make


class VllmSampler:
    """See Sampler. A thread for each answer reads what its server says of it."""

    def __init__(
        self,
        weights: Weights,
        wake: Callable[[], None],
        *,
        config: ServeConfig,
        python: str,
        stopping: threading.Event,
    ) -> None:
        """Start a server and wait for it.

        Raises:
            ConfigError: the weights are an adapter.
            MachineError: it does not come up, or is waited for no more.
            ModelError: it serves the weights otherwise than they were trained.
        """
        policy = weights.policy
        if policy.is_adapted:
            raise ConfigError(f"engine.kind=vllm serves whole models, and {policy.source} is an adapter: take native")
        self._wake = wake
        self._context_length = policy.context_length
        self._inbox: deque[tuple[Row, Made]] = deque()
        self._calls: dict[Row, list[VllmStream]] = {}
        self._server = VllmServer(
            python,
            Path(policy.source),
            _options(config, policy),
            num_threads=config.model.num_threads,
            cache_bytes=_cache_bytes(config, policy),
            settings="engine.vllm_python",
            gets_weights=False,
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            whole = config.model.model_copy(update={"path": policy.source})
            learned_S = learned_logprobs(load_policy(whole, seed=0, device=torch.device("cpu")))  # while it starts
            self._server.wait_until_up(deadline - time.monotonic(), stopping)
            prompt_ids = parity_tokens(policy)
            call = self._prompt_call(prompt_ids, 0, max(1.0, deadline - time.monotonic()))
            read = _prompt_read(call, prompt_ids, 0)
            self.mismatch = checked_mismatch(policy, torch.tensor(read.logprobs), learned_S)
        except BaseException:
            self._server.close()
            raise

    @property
    def is_ready(self) -> bool:
        """See Sampler."""
        return bool(self._inbox)

    @property
    def works_elsewhere(self) -> bool:
        """See Sampler."""
        return not self._server.has_ended()

    def check(self, ask: Ask) -> None:
        """See Sampler."""
        sampling = ask.sampling
        if len(ask.prompt_ids) >= self._context_length:  # only where no token is asked for
            why = f"vLLM makes one all the same, and the prompt fills the model's context of {self._context_length}"
            raise RefusedError("invalid", f"max_tokens: {why}", parameter="max_tokens")
        if 0 < sampling.temperature < LOWEST_TEMPERATURE:
            why = f"vLLM draws at 0, or at {LOWEST_TEMPERATURE} and more"
            raise RefusedError("invalid", f"temperature: {why}", parameter="temperature")
        if swaps_filters(sampling):
            raise RefusedError("invalid", "min_p: vLLM takes it or top_p, not both", parameter="min_p")
        if ask.constraint is not None and ask.num_top is not None:
            why = (
                "vLLM does not tell them of an answer that has a form (response_format, or a tool that must be called)"
            )
            raise RefusedError("invalid", f"logprobs: {why}", parameter="logprobs")

    def check_alive(self) -> None:
        """See Sampler."""
        if self._server.has_ended():
            self._server.note_log()
            raise EngineGoneError(f"vLLM has ended; its log ends: {self._server.last_words()}")

    def begin(self, row: Row) -> None:
        """See Sampler."""
        ask = row.ask
        calls = [VllmStream(self._server.client, _COMPLETIONS, _body(ask), silence_seconds=_SILENCE_SECONDS)]
        if ask.tells_prompt:
            calls.insert(0, self._prompt_call(ask.prompt_ids, ask.num_top or 0, _SILENCE_SECONDS))
        self._calls[row] = calls
        threading.Thread(target=self._listen, args=(row, calls), name="burnish-vllm", daemon=True).start()

    def end(self, row: Row) -> None:
        """See Sampler."""
        for call in self._calls.pop(row, ()):
            call.close()

    def step(self) -> list[tuple[Row, Made]]:
        """See Sampler."""
        return [self._inbox.popleft() for _ in range(len(self._inbox))]

    def close(self) -> None:
        """See Sampler. The server is gone before this process is."""
        for row in list(self._calls):
            self.end(row)
        threading.Thread(target=self._end_server, name="burnish-vllm-end").start()

    def _end_server(self) -> None:
        try:
            self._server.close()
        except MachineError as error:
            _LOG.error("%s", error)

    def _listen(self, row: Row, calls: list[VllmStream]) -> None:
        num_top = row.ask.num_top or 0
        has_form = row.ask.constraint is not None
        *of_prompt, stream = calls
        try:
            for call in of_prompt:
                self._tell(row, _prompt_read(call, row.ask.prompt_ids, num_top))
            for event in stream.events():
                for drawn in _drawn(event, num_top):
                    # of a form vLLM tells what the form left, which is not the model's
                    self._tell(row, drawn._replace(logprob=math.nan) if has_form else drawn)
            self._tell(row, MachineError("vLLM ended an answer before it was whole"))  # unheard where it was
        except Exception as error:  # whatever it was, whoever asked must not wait
            self._tell(row, error)

    def _tell(self, row: Row, made: Made) -> None:
        self._inbox.append((row, made))
        self._wake()

    def _prompt_call(self, prompt_ids: tuple[int, ...], num_top: int, silence_seconds: float) -> VllmStream:
        """What asks for the log-probabilities of a prompt, for which vLLM reads all of it."""
        asked = {"prompt": list(prompt_ids), "prompt_logprobs": num_top, "max_tokens": 1, "temperature": 0}
        body = {"model": MODEL, **asked}
        return VllmStream(self._server.client, _COMPLETIONS, body, silence_seconds=silence_seconds)


def _prompt_read(call: VllmStream, prompt_ids: tuple[int, ...], num_top: int) -> PromptRead:
    answers = list(call.events())
    with _understood():
        (answer,) = answers  # none if it was closed: then nobody hears of this either
        (choice,) = answer["choices"]
        found = [
            {int(token): float(each["logprob"]) for token, each in place.items()}
            for place in choice["prompt_logprobs"][1:]  # nothing stands before the first
        ]
        logprobs = tuple(place[token] for place, token in zip(found, prompt_ids[1:], strict=True))
    return PromptRead(logprobs, tuple(_likeliest(place, num_top) for place in found))


def _body(ask: Ask) -> dict[str, Any]:
    """What the server is asked. Stop strings are sought in our own text, and end the call."""
    request = GenerationRequest(token_ids=ask.prompt_ids, sampling=ask.sampling, seeds=(ask.seed,))
    body = body_of(request, ask.seed) | {
        "max_tokens": max(1, ask.sampling.max_tokens),  # none is told of an answer that has none
        "stop": [],
        "stream": True,
        "logprobs": ask.num_top or 0,
        "return_tokens_as_token_ids": True,
        "presence_penalty": ask.presence_penalty,
        "frequency_penalty": ask.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in ask.logit_bias.items()},
        "cache_salt": f"of {ask.owner}",  # nobody begins with what another asked
    }
    if ask.constraint is not None:
        body["structured_outputs"] = {"json": _compact(ask.constraint.schema)}
    return body


def _compact(schema: str) -> str:
    """A schema of JSON without spaces. Our own form allows a few, which vLLM's llguidance (1.7) does not know to do."""
    content = json.loads(schema)
    return json.dumps(content | {"x-guidance": {**content.get("x-guidance", {}), "whitespace_flexible": False}})


def _drawn(event: Any, num_top: int) -> list[Drawn]:
    """The tokens of a piece of an answer."""
    with _understood():
        (choice,) = event["choices"]
        if not choice["token_ids"]:
            return []
        told = choice["logprobs"]
        tops = [
            {int(name.removeprefix("token_id:")): value for name, value in top.items()} for top in told["top_logprobs"]
        ]
        return [
            Drawn(token, float(logprob), _likeliest(top, num_top))
            for token, logprob, top in zip(choice["token_ids"], told["token_logprobs"], tops, strict=True)
        ]


def _likeliest(logprobs: Mapping[int, float], num_top: int) -> tuple[tuple[int, float], ...]:
    """Of what vLLM tells, which has the token itself too."""
    return tuple(sorted(logprobs.items(), key=lambda each: -each[1])[:num_top])


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MachineError(f"vLLM's answer lacks what was asked for ({type(error).__name__}: {error})") from error


def _options(config: ServeConfig, policy: Policy) -> list[str]:
    return [
        *("--dtype", find_dtype(config.model)),
        *("--max-model-len", str(policy.context_length)),
        *("--max-num-seqs", str(config.engine.max_rows)),
        *("--max-logprobs", str(config.limits.logprobs)),
        *("--logprobs-mode", "raw_logprobs"),  # the model's, before temperature, bias and penalties
        *("--structured-outputs-config", _FORMS),
        *("--gpu-memory-utilization", "0.01"),  # asked for beside what _cache_bytes says; two must have room at once
    ]


def _cache_bytes(config: ServeConfig, policy: Policy) -> int:
    """Keys and values of so many tokens as may be there at once; vLLM wants at least one answer of any length."""
    model: Any = policy.model.config
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    head_dim = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    num_tokens = max(config.engine.cache_tokens, policy.context_length) + _BLOCK_TOKENS * (config.engine.max_rows + 1)
    return int(num_tokens * 2 * model.num_hidden_layers * heads * head_dim * policy.model.dtype.itemsize)
