"""vLLM as the sampler, with a process that stands for it: see fake_vllm.py."""

import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch

from burnish.config.schema import ModelConfig
from burnish.config.serving import ServeConfig
from burnish.errors import ConfigError, MachineError, ModelError
from burnish.serving.asks import EngineGoneError, PromptRead, Token, Weights
from burnish.serving.constraints import ANY_OBJECT, schema_constraint
from burnish.serving.engine import Engine
from burnish.serving.parity import learned_logprobs
from burnish.serving.refusals import RefusedError
from burnish.serving.vllm import VllmSampler, vllm_samplers
from burnish.serving.weights import load_weights

from . import fake_vllm
from .conftest import Heard, ask, submit, wait_for
from .test_rest import ADMIN, Server, started

LEFT = 10  # of the parity text: its prompt, of which nothing is compared


class Fake:
    """A folder with an interpreter, and models that it serves."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self._model = folder, model
        self.python = folder / "python"
        self.python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {fake_vllm.__file__} "$@"\n')
        self.python.chmod(0o755)
        learned = learned_logprobs(load_weights(ModelConfig(path=str(model), compute_dtype="float32"), "", 1).policy)
        self._logprobs = [-1.0] * LEFT + learned.tolist()

    def model(self, name: str, **facts: Any) -> Path:
        """A copy of the tiny model; the facts are the fake's."""
        found = self.folder / name
        shutil.copytree(self._model, found)
        told = {"first": 20, "logprob": self._logprobs, "calls": str(self.folder / f"{name}.calls")}
        (found / "fake.json").write_text(json.dumps(told | {"options": str(self.folder / f"{name}.options")} | facts))
        return found

    def weights(self, name: str, version: int = 1, **facts: Any) -> Weights:
        model = ModelConfig(path=str(self.model(name, **facts)), compute_dtype="float32")
        return load_weights(model, "tiny", version, device=torch.device("meta"))

    def calls(self, name: str) -> list[dict[str, Any]]:
        """What the fake was asked so far, without what was asked at the start, and how each call ended."""
        path = self.folder / f"{name}.calls"
        return [json.loads(line) for line in path.read_text().splitlines()][1:] if path.is_file() else []


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Fake:
    return Fake(tmp_path_factory.mktemp("fake"), tiny_folder)


MakeVllm = Callable[..., Engine]


@pytest.fixture(scope="module")
def make_vllm(fake: Fake) -> Iterator[MakeVllm]:
    made: list[Engine] = []

    def make(weights: Weights, stopping: threading.Event | None = None, **engine: Any) -> Engine:
        options = {"kind": "vllm", "vllm_python": str(fake.python), "max_rows": 8}
        model = {"path": "any", "compute_dtype": "float32", "num_threads": 1}
        config = ServeConfig.model_validate({"model": model, "engine": options | engine})
        sizes = {key: getattr(config.engine, key) for key in ("max_rows", "max_waiting", "cache_tokens")}
        made.append(Engine(vllm_samplers(config, lambda text: None, stopping), **sizes))
        made[-1].install(weights)
        return made[-1]

    yield make
    for engine in made:
        engine.stop(10)


@pytest.fixture(scope="module")
def engine(make_vllm: MakeVllm, fake: Fake) -> Engine:
    return make_vllm(fake.weights("one"))


def answer(engine: Engine, kind: int, **settings: Any) -> Heard:
    heard = Heard()
    submit(engine, [ask((kind, 5, 6), heard, **({"max_tokens": 4} | settings))])
    wait_for(lambda: heard.is_over)
    return heard


def test_what_is_asked_and_what_is_told(engine: Engine, fake: Fake) -> None:
    settings = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "stop": ("zz",),
        "stop_token_ids": (2,),
        "seed": 2**63 + 5,
    }
    shaping = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {7: 3.0}, "num_top": 2}
    heard = answer(engine, fake_vllm.COUNTS, owner="ann", **settings, **shaping)
    assert heard.token_ids == [20, 21, 22, 23]
    assert heard.done is not None and heard.done.reason == "length"
    assert heard.text == engine.models()["tiny"].policy.tokenizer.decode([20, 21, 22, 23])
    tokens = [event for event in heard.events if isinstance(event, Token)]
    assert {token.logprob for token in tokens} == {-0.5}
    assert {token.top for token in tokens} == {((100, 0.0), (token.id, -0.5)) for token in tokens}  # 101 has -1
    wait_for(lambda: bool(fake.calls("one")))
    (call,) = fake.calls("one")
    assert call["body"] == {
        "model": "policy",
        "prompt": [fake_vllm.COUNTS, 5, 6],
        "seed": 5,
        "max_tokens": 4,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.0,
        "stop": [],
        "stop_token_ids": [2],
        "ignore_eos": True,
        "logprobs": 2,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "stream": True,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"7": 3.0},
        "cache_salt": "of ann",
    }


def test_the_server_is_started_as_the_settings_say(engine: Engine, fake: Fake) -> None:
    words = json.loads((fake.folder / "one.options").read_text())
    told = dict(pairwise(words))
    config = json.loads((fake.folder / "one" / "config.json").read_text())
    context, layers = config["max_position_embeddings"], config["num_hidden_layers"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    a_token = 2 * layers * config["num_key_value_heads"] * head_dim * 4
    assert told["--kv-cache-memory-bytes"] == str((65_536 + 128 * 9) * a_token)
    assert (told["--max-model-len"], told["--max-num-seqs"], told["--dtype"]) == (str(context), "8", "float32")
    assert (told["--logprobs-mode"], told["--max-logprobs"]) == ("raw_logprobs", "20")
    (served,) = engine._served
    folder: Path = served.sampler._server.folder  # type: ignore[attr-defined]  # that of vLLM
    assert not folder.is_relative_to("/dev/shm")  # which its log would fill


def test_a_prompt_is_told_before_the_first_token(engine: Engine, fake: Fake) -> None:
    heard = answer(engine, fake_vllm.COUNTS, max_tokens=0, num_top=1, tells_prompt=True)
    (read,) = [event for event in heard.events if isinstance(event, PromptRead)]
    assert read.logprobs == (-1.0, -1.0)
    assert read.tops == (((5, -1.0),), ((6, -1.0),))  # 7 has -9
    assert heard.token_ids == [] and heard.done is not None and heard.done.reason == "length"


def test_a_stop_string_ends_the_call(engine: Engine, fake: Fake) -> None:
    decode, before = engine.models()["tiny"].policy.tokenizer.decode, len(fake.calls("one"))
    heard = answer(engine, fake_vllm.SLOW, max_tokens=400, stop=(decode([22]),))
    assert heard.text == decode([20, 21])
    assert heard.done is not None and heard.done.reason == "stop"
    wait_for(lambda: len(fake.calls("one")) > before)
    assert fake.calls("one")[-1]["end"] == "cut"
    heard = answer(engine, fake_vllm.COUNTS, stop_token_ids=(21,))
    assert heard.token_ids == [20, 21] and heard.text == decode([20])
    assert heard.done is not None and heard.done.reason == "stop"


def test_nobody_who_has_left_is_answered(engine: Engine, fake: Fake) -> None:
    """Nor one whose time is up. Whoever waits has a place again."""
    left, late, before = Heard(), Heard(), len(fake.calls("one"))
    _, cancel = submit(engine, [ask((fake_vllm.SILENT,), left, max_tokens=9)])
    submit(engine, [ask((fake_vllm.SILENT,), late, max_tokens=9, deadline=time.monotonic() + 0.2)])
    wait_for(lambda: len(left.token_ids) == 2)
    cancel()
    wait_for(lambda: late.is_over and engine.num_left == 0)
    assert isinstance(late.failure, TimeoutError) and not left.is_over
    wait_for(lambda: len(fake.calls("one")) == before + 2)
    assert [call["end"] for call in fake.calls("one")[before:]] == ["cut", "cut"]
    assert answer(engine, fake_vllm.COUNTS).done is not None


def test_a_living_vllm_that_says_nothing_is_not_stalled(engine: Engine, fake: Fake) -> None:
    """It may be reading a long prompt."""
    heard, before = Heard(), len(fake.calls("one"))
    _, cancel = submit(engine, [ask((fake_vllm.SILENT,), heard, max_tokens=9)])
    wait_for(lambda: len(heard.token_ids) == 2)
    time.sleep(0.1)  # the step that took them is over
    engine.stepped_at = 0.0
    wait_for(lambda: engine.stepped_at > 0)
    assert not heard.is_over
    cancel()
    wait_for(lambda: len(fake.calls("one")) > before)


def test_an_echo_of_one_who_has_left_ends(engine: Engine, fake: Fake) -> None:
    before = len(fake.calls("one"))
    _, cancel = submit(engine, [ask((fake_vllm.SILENT, 5), Heard(), num_top=0, tells_prompt=True)])
    wait_for((fake.folder / "one.begun").is_file)
    cancel()
    wait_for(lambda: len(fake.calls("one")) > before)
    (call,) = fake.calls("one")[before:]
    assert call["end"] == "cut" and "prompt_logprobs" in call["body"]


def test_an_echo_as_long_as_the_context_is_refused(engine: Engine) -> None:
    """vLLM makes a token more."""
    context = engine.models()["tiny"].policy.context_length
    with pytest.raises(RefusedError, match=f"max_tokens: .* fills the model's context of {context}"):
        submit(engine, [ask((5,) * context, Heard(), max_tokens=0, num_top=0, tells_prompt=True)])
    assert engine.num_left == 0


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (fake_vllm.BREAKS_OFF, "left off in the middle"),
        (fake_vllm.REFUSED, "vLLM refuses /v1/completions"),
        (fake_vllm.FAILS, "planted"),
        (fake_vllm.NO_JSON, "is no JSON"),
        (fake_vllm.NOTHING, "lacks what was asked for"),
        (fake_vllm.SHORT, "before it was whole"),
    ],
)
def test_an_answer_fails_alone(engine: Engine, caplog: pytest.LogCaptureFixture, kind: int, said: str) -> None:
    good = Heard()
    submit(engine, [ask((fake_vllm.SLOW,), good, max_tokens=10)])
    heard = answer(engine, kind)
    assert str(heard.failure) == "the answer failed; the server's log says how"
    assert said in caplog.text
    wait_for(lambda: good.is_over)
    assert good.done is not None and engine.num_left == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.005}, "temperature: vLLM draws at 0, or at 0.01 and more"),
        ({"temperature": 1.0, "top_p": 0.9, "min_p": 0.1}, "min_p: vLLM takes it or top_p, not both"),
        ({"constraint": object(), "num_top": 0}, "logprobs: vLLM does not tell them of an answer that has a form"),
    ],
)
def test_what_vllm_would_do_otherwise_is_refused(engine: Engine, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusedError, match=said) as raised:
        submit(engine, [ask((fake_vllm.COUNTS,), Heard(), **settings)])
    assert raised.value.kind == "invalid" and raised.value.parameter == said.partition(":")[0]
    assert engine.num_left == 0


def test_a_form_goes_along_and_is_followed(engine: Engine, fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """The fake knows no forms: what it says has none, so its answer fails, and not that of another. What it tells of
    its tokens is not the model's.
    """
    constraint = schema_constraint(engine.models()["tiny"], ANY_OBJECT, parameter="any")
    heard = answer(engine, fake_vllm.COUNTS, constraint=constraint)
    assert str(heard.failure) == "the answer failed; the server's log says how"
    assert "token 20 breaks the form" in caplog.text
    (token,) = [event for event in heard.events if isinstance(event, Token)]
    assert math.isnan(token.logprob)
    wait_for(lambda: "structured_outputs" in fake.calls("one")[-1]["body"])
    held = json.loads(fake.calls("one")[-1]["body"]["structured_outputs"]["json"])
    assert held == {"type": "object", "x-guidance": {"whitespace_flexible": False}}


def test_new_weights_take_what_is_asked_from_then_on(make_vllm: MakeVllm, fake: Fake) -> None:
    """While answers are under way: each is whole, and of the version that it was asked of."""
    engine = make_vllm(fake.weights("old"), max_rows=2)
    (served,) = engine._served
    folder: Path = served.sampler._server.folder  # type: ignore[attr-defined]  # that of vLLM
    heard: list[tuple[int, Heard]] = []

    def some() -> None:
        for _ in range(3):  # one waits
            each = Heard()
            weights, _ = submit(engine, [ask((fake_vllm.SLOW,), each, max_tokens=50)])
            heard.append((weights.version, each))

    some()
    engine.install(fake.weights("new", 2, first=120))
    some()
    assert folder.exists()
    wait_for(lambda: all(each.is_over for _, each in heard))
    assert [version for version, _ in heard] == [1, 1, 1, 2, 2, 2]
    for version, each in heard:
        first = {1: 20, 2: 120}[version]
        assert each.token_ids == list(range(first, first + 50))
    wait_for(lambda: engine.num_sets == 1 and not folder.exists())  # the old process has ended
    assert engine.models()["tiny"].version == 2


def test_when_vllm_dies_so_does_the_engine(make_vllm: MakeVllm, fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    engine, waiting = make_vllm(fake.weights("dying"), max_rows=1), Heard()
    dying = Heard()
    submit(engine, [ask((fake_vllm.DIES,), dying)])
    submit(engine, [ask((fake_vllm.COUNTS,), waiting)])
    wait_for(lambda: not engine.is_alive)
    assert dying.failure is not None and waiting.is_over
    with pytest.raises(EngineGoneError):
        submit(engine, [ask((fake_vllm.COUNTS,), Heard())])
    assert "vLLM has ended; its log ends: Error: planted death" in caplog.text
    assert "vLLM's log ends:\nError: planted death" in caplog.text


def test_what_is_only_tried_dies_alone(make_vllm: MakeVllm, fake: Fake) -> None:
    engine = make_vllm(fake.weights("serving"))
    engine.install(replace(fake.weights("tried", 2), arm="canary"))
    for _ in range(2):  # the second meets nobody
        heard = Heard()
        with engine.lease("tiny", "canary") as weights:
            engine.submit(weights, [ask((fake_vllm.DIES,), heard)])
        wait_for(lambda heard=heard: heard.is_over)
        assert heard.failure is not None
    server = engine._current["tiny", "canary"].sampler._server  # type: ignore[attr-defined]  # vLLM's
    wait_for(server.has_ended)
    assert answer(engine, fake_vllm.COUNTS).done is not None
    with pytest.raises(EngineGoneError, match="planted death"):
        engine.promote("tiny", "canary")
    assert engine.models()["tiny"].version == 1
    engine.remove("tiny", "canary")
    assert answer(engine, fake_vllm.COUNTS).done is not None
    wait_for(lambda: engine.num_sets == 1)


def test_nobody_waits_for_a_vllm_once_the_server_stops(make_vllm: MakeVllm, fake: Fake) -> None:
    stopping = threading.Event()
    engine = make_vllm(fake.weights("running"), stopping)
    stopping.set()
    with pytest.raises(MachineError, match="vLLM is waited for no more: the server stops"):
        engine.install(fake.weights("starting", 2, start_seconds=300))


def test_an_end_that_takes_too_long_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise MachineError("vLLM does not end")

    sampler: Any = VllmSampler.__new__(VllmSampler)
    sampler._calls, sampler._server = {}, SimpleNamespace(close=broken)
    sampler.close()
    wait_for(lambda: "vLLM does not end" in caplog.text)


def test_weights_that_cannot_be_served_are_refused(engine: Engine, fake: Fake) -> None:
    """What serves goes on."""
    with pytest.raises(MachineError, match=r"vLLM ended before it answered \(engine\.vllm_python\): ValueError: plan"):
        engine.install(fake.weights("broken", 2, is_broken=True))
    with pytest.raises(ModelError, match="served log-probabilities differ from the learner's"):
        engine.install(fake.weights("other", 2, logprob=[-1.0] * 16))
    adapted = fake.weights("adapted", 2)
    with pytest.raises(ConfigError, match=r"engine\.kind=vllm serves whole models, and .*adapted is an adapter"):
        engine.install(replace(adapted, policy=replace(adapted.policy, module=torch.nn.Identity())))
    assert engine.mismatches() == {("tiny", "stable"): pytest.approx(0.0, abs=1e-6)}
    assert answer(engine, fake_vllm.COUNTS).token_ids == [20, 21, 22, 23]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": {"vllm_python": "python"}}, "engine.vllm_python would be ignored: it belongs to engine.kind=vllm"),
        ({"engine": {"kind": "vllm", "prefill_tokens": 64}}, "engine.prefill_tokens would be ignored: .*=native"),
        ({"engine": {"kind": "vllm", "prefix_bytes": 0}}, "engine.prefix_bytes would be ignored: .*=native"),
        ({"engine": {"kind": "vllm"}, "model": {"path": "any", "device": "cpu"}}, "model.device would be ignored"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ServeConfig.model_validate({"model": {"path": "any"}} | settings)


def test_a_vllm_that_cannot_be_loaded_is_refused(
    make_vllm: MakeVllm, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_IS_BROKEN", "1")
    with pytest.raises(ConfigError, match=r"python cannot load vLLM \(ImportError: libtorch\.so: cannot open shared"):
        make_vllm(fake.weights("unloaded"))


@pytest.mark.slow
def test_without_vllm_the_command_says_so_in_a_line(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "burnish", "serve", str(tiny_folder), "--engine", "vllm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"burnish: engine.vllm_python: {sys.executable} has no vLLM: make .venv-vllm/.done makes an environment with "
        "it; set engine.vllm_python to its python"
    ]


@pytest.fixture
def served(fake: Fake) -> Iterator[Callable[[Path], Server]]:
    made: list[Server] = []

    def serve(model: Path) -> Server:
        made.append(started(fake.folder, model, "--engine", "vllm", "--engine.vllm_python", str(fake.python)))
        return made[-1]

    yield serve
    for server in made:
        server.process.kill()
        server.process.communicate()


def streamed(server: Server, kind: int, max_tokens: int) -> Iterator[str | None]:
    """Why an answer ended, while it comes: None until it has."""
    asked = {"model": "tiny", "prompt": [kind], "max_tokens": max_tokens}
    with (
        server.client as client,
        client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}) as pieces,
    ):
        for piece in pieces:
            yield piece.choices[0].finish_reason


@pytest.mark.slow
def test_the_doors_are_as_they_are(fake: Fake, served: Callable[[Path], Server]) -> None:
    """Answers, refusals, an exchange of weights, what is measured, and the end at SIGTERM, which no answer notices."""
    server = served(fake.model("first"))
    fake.model("second", first=120)
    body = {"model": "tiny", "prompt": [fake_vllm.COUNTS], "max_tokens": 3, "logprobs": 1, "n": 2, "ignore_eos": True}
    status, found, headers = server.request("/v1/completions", body)
    assert (status, headers["x-weight-version"]) == (200, "1")
    assert [each["logprobs"]["token_logprobs"] for each in found["choices"]] == [[-0.5] * 3] * 2
    status, found, _ = server.request("/v1/completions", body | {"temperature": 0.001})
    assert status == 400 and found["error"]["param"] == "temperature"
    path = "/admin/models/tiny/weights"
    status, found, _ = server.request(path, {"path": "second"}, port=server.admin_port, key=ADMIN)
    assert status == 200 and found["version"] == 2
    status, _, headers = server.request("/v1/completions", body)
    assert (status, headers["x-weight-version"]) == (200, "2")
    wait_for(lambda: "burnish_serve_sets_of_weights 1" in server.request("/metrics", key=ADMIN)[1])
    assert 'burnish_serve_mismatch{arm="stable",model="tiny"} ' in server.request("/metrics", key=ADMIN)[1]
    pieces = streamed(server, fake_vllm.SLOW, 60)
    next(pieces)
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.request("/readyz")[0] == 503)
    assert server.request("/v1/completions", body)[0] == 503
    assert [*pieces][-1] == "length"
    said = server.process.communicate(timeout=60)[1]
    assert server.process.returncode == 0 and "Traceback" not in said
    assert said.splitlines()[:2] == [
        "loading " + str(fake.folder / "first"),
        "vLLM 0.0.1 starts for tiny: a minute or two",
    ]


@pytest.mark.slow
def test_the_end_of_a_server_waits_for_no_vllm_that_starts(fake: Fake, served: Callable[[Path], Server]) -> None:
    server = served(fake.model("steady"))
    fake.model("never", start_seconds=300)
    told: list[Any] = []

    def exchange() -> None:
        path = "/admin/models/tiny/weights"
        told.append(server.request(path, {"path": "never"}, port=server.admin_port, key=ADMIN)[1])

    asking = threading.Thread(target=exchange)
    asking.start()
    wait_for(lambda: (fake.folder / "never.options").is_file())
    server.process.send_signal(signal.SIGTERM)
    said = server.process.communicate(timeout=60)[1]
    asking.join(30)
    assert server.process.returncode == 0 and "Traceback" not in said
    assert "vLLM is waited for no more: the server stops; version 1 goes on" in str(told)


@pytest.mark.slow
def test_a_server_whose_vllm_dies_ends(fake: Fake, served: Callable[[Path], Server]) -> None:
    server = served(fake.model("mortal"))
    with pytest.raises(openai.APIError, match=r"the server stops|the answer failed"):
        assert [*streamed(server, fake_vllm.DIES, 9)] == []
    said = server.process.communicate(timeout=60)[1]
    assert server.process.returncode == 3
    assert said.splitlines()[-1].startswith("burnish: the engine has failed")
    assert "vLLM has ended; its log ends: " in said
