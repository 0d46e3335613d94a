"""The server on vLLM for real. `make test-vllm` makes its environment."""

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
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from burnish.config.schema import ModelConfig
from burnish.config.serving import EngineConfig, ServeConfig
from burnish.models.fetch import cache_folder
from burnish.models.tiny import make_tiny_model
from burnish.serving.asks import PromptRead, Token
from burnish.serving.constraints import schema_constraint
from burnish.serving.engine import Engine
from burnish.serving.native import native_samplers
from burnish.serving.sampler import MakeSampler
from burnish.serving.vllm import vllm_samplers
from burnish.serving.weights import load_weights

from .conftest import Heard, ask, submit, wait_for
from .test_engine import prompts
from .test_rest import ADMIN, Server, started

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("TEST_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
REAL_MODEL = cache_folder() / "models" / "smollm2-135m"
ANSWER_SECONDS = 120
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yy"]}},
    "required": ["a", "b"],
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(
        not PYTHON.is_file(), reason=f"no vLLM at {PYTHON}: make .venv-vllm/.done, or set TEST_VLLM_PYTHON"
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM's attention on a CPU takes heads of 32 and more."""
    return make_tiny_model(tmp_path_factory.mktemp("vllm") / "tiny", hidden_size=128)


def config_of(model: Path) -> ServeConfig:
    own = {"path": str(model), "compute_dtype": "float32", "num_threads": 1}
    engine = {"kind": "vllm", "vllm_python": str(PYTHON), "max_rows": 8}
    return ServeConfig.model_validate({"model": own, "engine": engine})


def engine_of(make_sampler: MakeSampler, model: Path, device: torch.device | None = None) -> Engine:
    engine = Engine(make_sampler, max_rows=8, max_waiting=64, cache_tokens=65_536)
    engine.install(load_weights(ModelConfig(path=str(model), compute_dtype="float32"), "tiny", 1, device=device))
    return engine


@pytest.fixture(scope="module")
def vllm(model: Path) -> Iterator[Engine]:
    made = engine_of(vllm_samplers(config_of(model), lambda text: None), model, torch.device("meta"))
    yield made
    made.stop(10)


@pytest.fixture(scope="module")
def native(model: Path) -> Iterator[Engine]:
    made = engine_of(native_samplers(EngineConfig(max_rows=8)), model)
    yield made
    made.stop(10)


def answers(engine: Engine, asked: list[dict[str, Any]]) -> list[Heard]:
    """To one prompt after the other, all asked at once."""
    heard = [Heard() for _ in asked]
    for prompt, settings, each in zip(prompts(), asked, heard, strict=False):
        submit(engine, [ask(prompt, each, **settings)])
    wait_for(lambda: all(each.is_over for each in heard), ANSWER_SECONDS)
    return heard


def tokens_of(heard: Heard) -> list[Token]:
    return [event for event in heard.events if isinstance(event, Token)]


def assert_equal(ours: list[Heard], theirs: list[Heard]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.done is not None and other.done is not None, (one.failure, other.failure)
        assert one.token_ids == other.token_ids
        assert (one.text, one.done.reason) == (other.text, other.done.reason)
        for mine, its in zip(tokens_of(one), tokens_of(other), strict=True):
            assert mine.logprob == pytest.approx(its.logprob, abs=1e-3)
            assert [token for token, _ in mine.top] == [token for token, _ in its.top]
            assert [value for _, value in mine.top] == pytest.approx([value for _, value in its.top], abs=1e-3)


def test_greedy_answers_are_our_own_engines(vllm: Engine, native: Engine) -> None:
    """With what shapes them, what ends them, and what is told of them; several at once."""
    decode = native.models()["tiny"].policy.tokenizer.decode
    plain = answers(native, [{"max_tokens": 30}] * 7)
    asked: list[dict[str, Any]] = [
        {"max_tokens": 30, "num_top": 3},
        {"max_tokens": 20, "logit_bias": {42: 90.0, 43: 88.0}, "presence_penalty": 2.0, "num_top": 2},
        {"max_tokens": 20, "logit_bias": {42: 90.0, 43: 87.0}, "frequency_penalty": 1.0},
        {"max_tokens": 200},
        {"max_tokens": 30, "stop": (decode(plain[4].token_ids[5:7]),)},
        {"max_tokens": 30, "stop_token_ids": (plain[5].token_ids[3],)},
        {"max_tokens": 1, "num_top": 0},
    ]
    ours = answers(vllm, asked)
    assert_equal(ours, answers(native, asked))
    assert ours[4].done is not None and ours[4].done.reason == "stop" and len(ours[4].token_ids) < 30
    assert ours[5].done is not None and ours[5].done.reason == "stop" and len(ours[5].token_ids) <= 4
    assert set(ours[1].token_ids) == {42, 43}


def test_what_is_told_of_a_prompt_is_what_our_own_engine_tells(vllm: Engine, native: Engine) -> None:
    asked = [{"max_tokens": tokens, "num_top": 3, "tells_prompt": True} for tokens in (0, 5, 3)]
    ours, theirs = answers(vllm, asked), answers(native, asked)
    assert_equal(ours, theirs)
    for one, other in zip(ours, theirs, strict=True):
        (mine,), (its,) = [[each for each in heard.events if isinstance(each, PromptRead)] for heard in (one, other)]
        assert mine.logprobs == pytest.approx(its.logprobs, abs=1e-3)
        assert [[token for token, _ in top] for top in mine.tops] == [[token for token, _ in top] for top in its.tops]


def test_log_probabilities_are_the_models_own_and_seeds_repeat(vllm: Engine, model: Path) -> None:
    """Also where what is drawn from is another distribution."""
    settings = {"max_tokens": 16, "temperature": 0.5, "top_k": 20, "logit_bias": {7: 3.0}}
    asked = [settings | {"seed": seed} for seed in (1, 2**63 + 5, 3)]
    first, again = answers(vllm, asked), answers(vllm, asked)
    assert [each.token_ids for each in first] == [each.token_ids for each in again]
    other = answers(vllm, [settings | {"seed": seed} for seed in (4, 7, 6)])
    assert all(one.token_ids != two.token_ids for one, two in zip(first, other, strict=True))
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for prompt, heard in zip(prompts(), first, strict=False):
        ids = torch.tensor([[*prompt, *heard.token_ids]])
        with torch.no_grad():
            logprobs_TV = plain(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logprobs_TV.gather(1, torch.tensor(heard.token_ids)[:, None])[:, 0].tolist()
        assert [token.logprob for token in tokens_of(heard)] == pytest.approx(expected, abs=1e-3)


def test_a_form_is_followed(vllm: Engine) -> None:
    constraint = schema_constraint(vllm.models()["tiny"], json.dumps(SCHEMA), parameter="any")
    settings = {"max_tokens": 300, "temperature": 1.0, "stop_token_ids": vllm.models()["tiny"].policy.stop_token_ids}
    for heard in answers(vllm, [settings | {"seed": seed, "constraint": constraint.copy()} for seed in range(6)]):
        assert heard.done is not None, heard.failure
        if heard.done.reason == "stop":
            found = json.loads(heard.text)
            assert isinstance(found["a"], int) and found["b"] in ("x", "yy")


def running(engine: Engine) -> float:
    """Requests that vLLM itself computes, or has waiting."""
    (served,) = engine._served
    with socket.socket(socket.AF_UNIX) as its:
        its.connect(str(served.sampler._server.client.socket_path))  # type: ignore[attr-defined]  # vLLM's
        connection = http.client.HTTPConnection("localhost")
        connection.sock = its
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))


def test_vllm_computes_nothing_for_who_has_left(vllm: Engine) -> None:
    left, late = Heard(), Heard()
    _, cancel = submit(vllm, [ask(prompts()[0], left, max_tokens=500)])
    submit(vllm, [ask(prompts()[0], late, max_tokens=500, deadline=time.monotonic() + 0.3)])
    wait_for(lambda: len(left.token_ids) > 3, ANSWER_SECONDS)
    cancel()
    wait_for(lambda: late.is_over and vllm.num_left == 0)
    assert isinstance(late.failure, TimeoutError) and not left.is_over
    wait_for(lambda: running(vllm) == 0)
    assert len(left.token_ids) < 500


def test_a_checkpoint_with_an_optimizers_state_is_served(model: Path, tmp_path: Path, native: Engine) -> None:
    """vLLM would read whatever tensors lie in a folder."""
    folder = shutil.copytree(model, tmp_path / "step-1")
    save_file({"model.layers.0.exp_avg": torch.ones(3)}, folder / "optimizer.safetensors")
    engine = engine_of(vllm_samplers(config_of(folder), lambda text: None), folder, torch.device("meta"))
    try:
        assert_equal(answers(engine, [{"max_tokens": 5}]), answers(native, [{"max_tokens": 5}]))
    finally:
        engine.stop(10)


@pytest.mark.skipif(not REAL_MODEL.is_dir(), reason="the model is not here: burnish model get smollm2-135m")
def test_greedy_answers_of_a_real_model() -> None:
    """In float32, token by token, until the first that differs, if there is one."""
    found = {}
    for kind, make_sampler, device in (
        ("native", native_samplers(EngineConfig(max_rows=8)), None),
        ("vllm", vllm_samplers(config_of(REAL_MODEL), lambda text: None), torch.device("meta")),
    ):
        engine = engine_of(make_sampler, REAL_MODEL, device)
        found[kind] = answers(engine, [{"max_tokens": 64}] * 6)
        engine.stop(10)
    equal = sum(
        next((i for i, (a, b) in enumerate(zip(one.token_ids, other.token_ids, strict=True)) if a != b), 64)
        for one, other in zip(found["native"], found["vllm"], strict=True)
    )
    assert equal >= 0.98 * 6 * 64, f"{equal} of {6 * 64} tokens"


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Server]:
    copy = shutil.copytree(model, tmp_path / "weights")
    made = started(tmp_path, copy, "--engine", "vllm", "--engine.vllm_python", str(PYTHON), "--model.num_threads", "1")
    yield made
    made.process.kill()
    made.process.communicate()


def processes_of(server: Server) -> dict[int, str]:
    """vLLM's processes that serve the server's weights, with their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            values = dict(each.partition("=")[::2] for each in (path / "environ").read_text().split("\0"))
            words = (path / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        weights = Path(values.get("VLLM_RPC_BASE_PATH", "/none")) / "model" / "config.json"
        if weights.resolve().is_relative_to(server.folder) and "keeper.py" not in words:
            found[int(path.name)] = words
    return found


def test_the_end_of_a_server_waits_for_its_answers(server: Server) -> None:
    """And its vLLM is gone with it."""
    its = processes_of(server)
    assert len(its) >= 2
    asked = {"model": "tiny", "prompt": "Hello", "max_tokens": 400}
    with (
        server.client as client,
        client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}) as pieces,
    ):
        next(iter(pieces))
        server.process.send_signal(signal.SIGTERM)
        assert [*pieces][-1].choices[0].finish_reason == "length"
    said = server.process.communicate(timeout=60)[1]
    assert server.process.returncode == 0 and "Traceback" not in said, said
    wait_for(lambda: not [each for each in its if Path(f"/proc/{each}").exists()])  # killed, and a moment later gone


def test_a_server_whose_vllm_is_killed_ends(server: Server) -> None:
    asked = {"model": "tiny", "prompt": "Hello", "max_tokens": 500, "n": 4, "ignore_eos": True}
    (engine,) = [each for each, words in processes_of(server).items() if "EngineCore" in words]
    found: list[int] = []
    asking = threading.Thread(target=lambda: found.append(server.request("/v1/completions", asked)[0]))
    asking.start()
    wait_for(lambda: "burnish_serve_running 4" in server.request("/metrics", key=ADMIN)[1])
    os.kill(engine, signal.SIGKILL)
    asking.join(60)
    assert found == [500]
    said = server.process.communicate(timeout=90)[1]
    assert server.process.returncode == 3
    assert said.splitlines()[-1].startswith("burnish: the engine has failed")


def test_no_answer_is_lost_or_mixed_up_by_an_exchange(model: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/swap_under_load.py"), "--model", str(model)]
    command += ["--seconds", "10", "--every", "2", "--vllm-python", str(PYTHON)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0 and " 0 failed, 0 mixed, " in done.stdout, done.stdout + done.stderr
