"""Loading a policy: a local folder, a name that `burnish model get` knows, or a hub id."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from burnish.config.schema import LoRAConfig, ModelConfig
from burnish.errors import ModelError
from burnish.models import attention
from burnish.models.fetch import KNOWN_MODELS, cached_model
from burnish.models.policy import Policy

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def find_model(path: str) -> str:
    """The folder of a model, or its hub id; checked without reading the weights into memory.

    Raises:
        ModelError: no such model, a folder without weights, or a damaged safetensors file.
    """
    if path in KNOWN_MODELS:
        return str(cached_model(path))
    folder = Path(path)
    if folder.is_dir():
        check_folder(folder)
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelError(f"model.path: no folder {path!r}, and no model of that name; known: {', '.join(KNOWN_MODELS)}")
    return path


def check_folder(folder: Path) -> None:
    """Raise a ModelError unless `folder` holds a config and whole safetensors files."""
    is_adapter = (folder / "adapter_config.json").is_file()
    if not is_adapter and not (folder / "config.json").is_file():
        raise ModelError(f"model.path: {folder} has no config.json: it is not a Hugging Face model folder")
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        others = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf")]
        hint = f"; {others[0]} is not read: only safetensors are" if others else ""
        raise ModelError(f"model.path: {folder} has no weights (*.safetensors){hint}")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := wanted - {shard.name for shard in shards}:
            raise ModelError(f"model.path: {folder} lacks {sorted(missing)[0]}, which its index names")
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:  # reads and checks the header against the file's length
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"model.path: {shard} is damaged ({error}); fetch it again") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known of a model without its weights."""

    source: str
    context_length: int
    tokenizer: PreTrainedTokenizerBase


def inspect_model(path: str) -> ModelFacts:
    """Find a model, check that it is supported, and load its tokenizer.

    Raises:
        ModelError: it cannot be used.
    """
    source = find_model(path)
    config = _from_pretrained(AutoConfig, _adapter_base(Path(source)) or source)
    attention.check_supported(config)
    tokenizer = _from_pretrained(AutoTokenizer, source)
    return ModelFacts(source=source, context_length=int(config.max_position_embeddings), tokenizer=tokenizer)


def load_policy(config: ModelConfig, *, seed: int) -> Policy:
    """Load model and tokenizer, switch to burnish's attention, add adapters where asked.

    Raises:
        ModelError: the model cannot be loaded or is not supported.
    """
    facts = inspect_model(config.path)
    base = _adapter_base(Path(facts.source))
    model = _load_weights(base or facts.source, _DTYPES[config.compute_dtype])
    attention.install(model)
    # Where the padding token is also the end of a turn, an embedding with a padding index would never learn that one.
    embedding: Any = model.get_input_embeddings()
    embedding.padding_idx = None
    module: nn.Module = model
    if base is not None:
        if config.lora is not None:
            raise ModelError(f"model.lora: {facts.source} is an adapter already; set lora to null, or train on {base}")
        from peft import PeftModel

        with _peft_is_behind_transformers():
            module = PeftModel.from_pretrained(model, facts.source, is_trainable=True)
    elif config.lora is not None:
        module = _with_adapters(model, config.lora, seed)
    module.eval()  # dropout off: the learner must score what the sampler sampled
    return Policy(module=module, causal_lm=model, tokenizer=facts.tokenizer, source=facts.source)


def _load_weights(source: str, dtype: torch.dtype) -> PreTrainedModel:
    model, report = _from_pretrained(AutoModelForCausalLM, source, dtype=dtype, output_loading_info=True)
    for fault in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, report[fault])):
            # transformers would fill them with random numbers and go on
            raise ModelError(f"model.path: {source} has {fault.replace('_keys', '')} weights: {', '.join(names[:3])}")
    loaded: PreTrainedModel = model
    return loaded


def _adapter_base(folder: Path) -> str | None:
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return None
    return find_model(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])


def _from_pretrained(kind: Any, source: str, **options: Any) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError, SafetensorError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"model.path: cannot load {source!r}: {reason[:300]}") from error


def _with_adapters(model: PreTrainedModel, config: LoRAConfig, seed: int) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError(f"model.lora needs peft ({error}): pip install 'burnish[lora]'") from error
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.target_modules),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), _peft_is_behind_transformers():
        torch.manual_seed(seed % 2**63)
        try:
            adapted: nn.Module = get_peft_model(model, settings)
            return adapted
        except ValueError as error:
            raise ModelError(f"model.lora.target_modules: {error}") from error


@contextmanager
def _peft_is_behind_transformers() -> Iterator[None]:
    """Hide the deprecation warnings that peft 0.21 causes in transformers 5.24; they are not the user's to mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        yield
