"""vLLM for real: as itself, and as the generator of a run. `make test-vllm` makes its environment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from burnish.algorithms.grpo import GRPOConfig
from burnish.distributed.roles import RoleNeeds
from burnish.distributed.vllm_worker import VllmWorker
from burnish.distributed.worker import GeneratorWorker, Weights, bits_of, change_of, checksum_of
from burnish.errors import LostError
from burnish.models.tiny import make_tiny_model
from burnish.records import Completion, GenerationRequest, SamplingSettings

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("TEST_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
END_SECONDS = 30

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(
        not PYTHON.is_file(), reason=f"no vLLM at {PYTHON}: make .venv-vllm/.done, or set TEST_VLLM_PYTHON"
    ),
]

GREEDY = SamplingSettings(max_tokens=24, temperature=0.0)
REQUESTS = [GenerationRequest(token_ids=tuple(range(5 + i, 25 + 3 * i)), sampling=GREEDY, seeds=(1,)) for i in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM's attention on a CPU takes heads of 32 and more."""
    return make_tiny_model(tmp_path_factory.mktemp("vllm") / "tiny", hidden_size=128)


@pytest.fixture(scope="module")
def config(model: Path) -> GRPOConfig:
    return GRPOConfig.model_validate(
        {
            "name": "any",
            "model": {"path": str(model), "compute_dtype": "float32", "num_threads": 1},
            "task": {"source": "any"},
            "cluster": {"kind": "ray", "engine": "vllm", "vllm_python": str(PYTHON)},
        }
    )


@pytest.fixture(scope="module")
def native(config: GRPOConfig) -> GeneratorWorker:
    worker = GeneratorWorker(config, RoleNeeds(max_rows=8))
    worker.load_model()
    return worker


@pytest.fixture(scope="module")
def worker(config: GRPOConfig) -> Iterator[VllmWorker]:
    worker = VllmWorker(config, RoleNeeds(max_rows=8))
    worker.load_model()
    yield worker
    worker.server.close()


def drawn_weights(native: GeneratorWorker, version: int, seed: int) -> Weights:
    random = torch.Generator().manual_seed(seed)
    found = {
        name: bits_of(weight.detach() + 0.1 * torch.randn(weight.shape, generator=random))
        for name, weight in native._policy.trainable().items()
    }
    return Weights(version, None, found, checksum_of(found))


def assert_equal(mine: list[tuple[Completion, ...]], theirs: list[tuple[Completion, ...]]) -> None:
    for (one,), (other,) in zip(mine, theirs, strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
        assert one.finish_reason == other.finish_reason
        assert one.sampling_logprobs == (0.0,) * len(one.token_ids)
        assert one.model_logprobs == pytest.approx(other.model_logprobs, abs=1e-3)


def test_greedy_tokens_are_the_native_generators_whatever_weights_are_published(
    worker: VllmWorker, native: GeneratorWorker
) -> None:
    before = worker.sample(REQUESTS)
    assert_equal(before, native.sample(REQUESTS))
    first, second = drawn_weights(native, 1, seed=1), drawn_weights(native, 2, seed=2)
    for weights in (first, replace(second, base=1, arrays=changes_of(first, second))):
        assert worker.load_weights(weights) == weights.num_bytes
        native.load_weights(weights)
        assert worker.version == weights.version
        after = worker.sample(REQUESTS)  # the prompts are those of before: their keys are in the prefix cache
        assert_equal(after, native.sample(REQUESTS))
        assert after != before
        before = after
    with pytest.raises(ValueError, match="a change of version 1 for version 2"):
        worker.load_weights(replace(second, base=1))


def changes_of(first: Weights, second: Weights) -> dict:
    """One tensor as places and values, as after a step of training; the others whole."""
    changes = {name: change_of(first.arrays[name], array) for name, array in second.arrays.items()}
    name = "model.norm.weight"
    places = torch.arange(first.arrays[name].size, dtype=torch.int32).numpy()
    return changes | {name: (places, second.arrays[name].ravel())}


def test_sampled_tokens_have_the_log_probabilities_of_what_they_are_drawn_from(
    worker: VllmWorker, native: GeneratorWorker
) -> None:
    settings = SamplingSettings(max_tokens=16, temperature=0.7, stop_token_ids=(7, 9), stop=("A", "b"))
    requests = [replace(request, sampling=settings, seeds=(2**63 + 5, 6)) for request in REQUESTS]
    found = worker.sample(requests)
    again = worker.sample(requests)
    assert [[each.token_ids for each in group] for group in again] == [
        [each.token_ids for each in group] for group in found
    ]
    assert len({each.token_ids for group in found for each in group}) > len(found)  # the seed matters
    for request, group in zip(requests, found, strict=True):
        for each in group:
            ended = each.token_ids[-1] in (7, 9) or any(stop in native_text(native, each) for stop in ("A", "b"))
            assert each.finish_reason == ("stop" if ended else "length")
            expected = logprobs_of(native, request.token_ids, each.token_ids, temperature=0.7)
            assert each.sampling_logprobs == pytest.approx(expected, abs=1e-3)


def native_text(native: GeneratorWorker, completion: Completion) -> str:
    return str(native._policy.tokenizer.decode(list(completion.token_ids), skip_special_tokens=True))


@torch.no_grad()
def logprobs_of(native: GeneratorWorker, prompt: tuple[int, ...], said: tuple[int, ...], temperature: float) -> list:
    """By transformers' own model, whole."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(native.config.model.path, dtype=torch.float32)
    weights = {name: weight.detach() for name, weight in native._policy.trainable().items()}
    model.load_state_dict(weights, strict=False)
    logits_TV = model(torch.tensor([[*prompt, *said]])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits_TV.log_softmax(1).gather(1, torch.tensor(said)[:, None])[:, 0].tolist()


def processes_of(folder: str) -> list[int]:
    """Every living process whose command line or environment names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            said = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
        except OSError:
            continue
        if folder.encode() in said:
            found.append(int(path.name))
    return found


def test_nothing_is_left_of_it_when_its_starter_is_killed(config: GRPOConfig) -> None:
    code = (
        "import sys, time\n"
        "from burnish.algorithms.grpo import GRPOConfig\n"
        "from burnish.distributed.roles import RoleNeeds\n"
        "from burnish.distributed.vllm_worker import VllmWorker\n"
        "worker = VllmWorker(GRPOConfig.model_validate_json(sys.argv[1]), RoleNeeds(max_rows=4))\n"
        "worker.load_model()\n"
        "print(worker.server.folder, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, config.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        folder = starter.stdout.readline().strip()
        assert len(processes_of(folder)) >= 3  # the keeper, the server, its engine
        starter.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + END_SECONDS
    while (left := processes_of(folder)) or Path(folder).exists():
        assert time.monotonic() < deadline, f"processes {left} are left, or {folder}"
        time.sleep(0.2)


def test_a_server_that_is_killed_is_a_lost_generator(config: GRPOConfig) -> None:
    worker = VllmWorker(config, RoleNeeds(max_rows=4))
    worker.load_model()
    try:
        for process_id in processes_of(str(worker.server.client.socket_path)):
            if b"api_server" in Path(f"/proc/{process_id}/cmdline").read_bytes().split(b"keeper.py")[0]:
                os.kill(process_id, signal.SIGKILL)
        with pytest.raises(LostError, match=r"vLLM's server is gone .*its log ends: "):
            worker.sample(REQUESTS)
    finally:
        worker.server.close()
