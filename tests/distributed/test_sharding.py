"""Weights that are spread over processes learn as weights that are not."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, Phi3Config, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig

from burnish.config.schema import ClusterConfig
from burnish.distributed.ray_roles import deal
from burnish.distributed.sharding import check_tensor_parallel
from burnish.errors import ConfigError
from burnish.models.tiny import make_byte_tokenizer

SCRIPT = Path(__file__).with_name("sharded_steps.py")


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its queries and keys are normalised by weights that every process of a product has, for its heads alone."""
    folder = tmp_path_factory.mktemp("qwen3")
    shape = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3ForCausalLM(Qwen3Config(**shape, **heads, tie_word_embeddings=False)).save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


def steps(
    model: Path, out: Path, dtype: str, adapters: str, *, world: int, tensor: int, copies: int
) -> tuple[dict, list[float]]:
    """The weights and gradient norms after some steps of `world` processes; 0 is one that is no group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPT), str(model), str(out), dtype, adapters]
    groups = [[str(rank), str(world), str(tensor), str(copies), str(port)] for rank in range(world)] or [[]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, *group], env=environment, stderr=subprocess.PIPE, text=True) for group in groups
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return load_file(out), json.loads(out.with_suffix(".json").read_text())


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("family", "dtype", "adapters", "world", "tensor", "copies"),
    [
        ("llama", "float32", "", 2, 1, 1),
        ("llama", "float32", "", 4, 2, 1),
        ("llama", "bfloat16", "", 2, 1, 1),
        ("llama", "float32", "lora", 2, 1, 1),
        ("qwen3", "float32", "", 2, 2, 1),
        ("llama", "float32", "", 4, 1, 2),
        ("llama", "float32", "lora", 2, 1, 2),
        ("qwen3", "float32", "", 4, 2, 2),
    ],
)
def test_several_processes_learn_as_one(
    tiny_folder: Path,
    qwen_folder: Path,
    tmp_path: Path,
    family: str,
    dtype: str,
    adapters: str,
    world: int,
    tensor: int,
    copies: int,
) -> None:
    model = {"llama": tiny_folder, "qwen3": qwen_folder}[family]
    alone, norms = steps(model, tmp_path / "alone", dtype, adapters, world=0, tensor=1, copies=1)
    spread, spread_norms = steps(model, tmp_path / "spread", dtype, adapters, world=world, tensor=tensor, copies=copies)
    tolerance = 1e-5 if dtype == "float32" else 2e-2  # bfloat16 rounds what is added in another order
    assert spread_norms == pytest.approx(norms, rel=tolerance)
    assert spread.keys() == alone.keys()
    for name, weight in alone.items():
        # a step of AdamW is as large as the rate wherever a gradient is not 0, so rounding may turn one around
        difference = (spread[name] - weight).norm() / weight.norm().clamp(min=1e-3)
        assert float(difference) < (1e-5 if dtype == "float32" else 5e-3), name


def test_parts_of_like_size_are_computed_at_the_same_time() -> None:
    assert deal([5, 9, 1, 7, 3], 2) == [[1, 0, 2], [3, 4]]  # 9 beside 7, 5 beside 3, and 1 alone


@pytest.mark.parametrize(
    ("shape", "tensor_parallel", "message"),
    [
        (LlamaConfig(num_attention_heads=9, num_key_value_heads=3, hidden_size=576), 2, "model's 9 attention heads"),
        (LlamaConfig(num_attention_heads=8, num_key_value_heads=2), 4, "does not divide the model's 2 key-value heads"),
        (Qwen3MoeConfig(), 2, r"model type 'qwen3_moe' wants .*which is not supported: set it to 1"),
    ],
)
def test_products_that_cannot_be_cut(shape: LlamaConfig, tensor_parallel: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_tensor_parallel(shape, tensor_parallel)


@pytest.mark.parametrize(("learners", "tensor", "replicas"), [(4, 1, 3), (4, 2, 4), (1, 1, 2)])
def test_copies_that_do_not_divide_the_learners(learners: int, tensor: int, replicas: int) -> None:
    message = rf"cluster\.replicas={replicas} does not divide the {learners // tensor} learners that share the batch"
    with pytest.raises(ConfigError, match=message):
        ClusterConfig(kind="ray", learners=learners, tensor_parallel=tensor, replicas=replicas)


def test_products_that_can_be_cut() -> None:
    check_tensor_parallel(Phi3Config(num_attention_heads=8, num_key_value_heads=8), 2)
