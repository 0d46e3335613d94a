"""Loading a policy: a local folder, a name that `burnish model get` knows, or a hub id.

transformers is imported where it is used: it takes as long as torch, and who only reads a run's settings needs it not.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from burnish.config.extras import requires_extra
from burnish.config.schema import LoRAConfig, ModelConfig
from burnish.errors import ConfigError, ModelError
from burnish.models import attention
from burnish.models.fetch import KNOWN_MODELS, cached_model
from burnish.models.layout import multiplies_bfloat16
from burnish.models.policy import Policy, context_length_of
from burnish.models.quantized import quantize_layers
from burnish.models.trial import try_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ModelKind = Literal["language", "value"]


def find_model(path: str) -> str:
    """The folder of a model, or its hub id; checked without reading the weights into memory.

    A run stands for its newest checkpoint: see model_folder.

    Raises:
        ModelError: no such model, a folder without weights, or a damaged safetensors file.
    """
    if path in KNOWN_MODELS:
        return str(cached_model(path))
    folder = model_folder(Path(path))
    if folder.is_dir():
        check_folder(folder)
        return str(folder)
    # `models/typo` beside a folder `models` is a mistyped folder, not a hub id
    if path.startswith((".", "/", "~")) or path.count("/") != 1 or folder.parent.is_dir():
        raise ModelError(f"model.path: no folder {path!r}, and no model of that name; known: {', '.join(KNOWN_MODELS)}")
    return path


def model_folder(folder: Path) -> Path:
    """The newest checkpoint of a run's folder, or of that with the six digits at its end left out; else the folder."""
    if not folder.exists() and len(runs := sorted(folder.parent.glob(f"{folder.name}-??????/run.json"))) == 1:
        folder = runs[0].parent
    if (folder / "run.json").is_file() and (saved := sorted((folder / "checkpoints").glob("step-*"))):
        return saved[-1]
    return folder


def check_folder(folder: Path) -> None:
    """Raise a ModelError unless `folder` holds a config and whole safetensors files."""
    is_adapter = (folder / "adapter_config.json").is_file()
    if not is_adapter and not (folder / "config.json").is_file():
        raise ModelError(f"model.path: {folder} has no config.json: it is not a Hugging Face model folder")
    shards = sorted(folder.glob("adapter_model.safetensors" if is_adapter else "model*.safetensors"))
    if not shards:
        others = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf")]
        hint = f"; {others[0]} is not read: only safetensors are" if others else ""
        raise ModelError(f"model.path: {folder} has no weights (*.safetensors){hint}")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        wanted = set(weight_map.values()) if isinstance(weight_map, dict) else set()
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
    base: str | None
    """The model that an adapter stands on."""
    commit: str | None
    """The hub's commit; None for a folder."""
    context_length: int
    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer: the tokenizer's and the generation config's end of sequence."""
    is_value_model: bool
    """Whether it is a reward model or critic: a sequence classification model."""
    tokenizer: PreTrainedTokenizerBase


def inspect_model(path: str) -> ModelFacts:
    """Find a model, check that it is supported, and load its tokenizer.

    Raises:
        ModelError: it cannot be used.
    """
    source = find_model(path)
    base = _adapter_base(Path(source))

    from transformers import AutoConfig, AutoTokenizer

    config = _from_pretrained(AutoConfig, base or source)
    attention.check_supported(config)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"model.path: the weights of {source} are quantised, and such weights are not trained here; "
            "take the model they were made from, with model.lora and model.lora.base_bits 8 or 4"
        )
    has_own = (Path(source) / "tokenizer_config.json").is_file()  # an adapter may come without one
    tokenizer = _from_pretrained(AutoTokenizer, source if base is None or has_own else base)
    return ModelFacts(
        source=source,
        base=base,
        commit=getattr(config, "_commit_hash", None),
        context_length=context_length_of(config),
        stop_token_ids=_stop_token_ids(base or source, tokenizer),
        is_value_model=any(name.endswith("ForSequenceClassification") for name in config.architectures or ()),
        tokenizer=tokenizer,
    )


def _stop_token_ids(source: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:  # a folder may do without one
        configured = None
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None}))


def load_policy(
    config: ModelConfig, *, seed: int, kind: ModelKind = "language", device: torch.device | None = None
) -> Policy:
    """Load model and tokenizer, switch to burnish's attention, add adapters where asked.

    `device` is where `config.device` says, if it is not given. On torch's "meta" device nothing is read and nothing is
    computed: everything has its shape alone, which is what a plan of the memory needs.

    A model of kind "value" has a value head in place of the language head: the one it was saved with, or one of zeros
    on the trunk of a causal LM, so that it says 0 of everything until it is trained.

    Raises:
        ModelError: the model cannot be loaded or is not supported.
    """
    facts = inspect_model(config.path)
    if facts.is_value_model and kind == "language":
        raise ModelError(f"model.path: {facts.source} is a reward model: it has no language head to sample from")
    device = find_device(config.device) if device is None else device
    model = _load_weights(facts, getattr(torch, find_dtype(config)), kind, device)
    attention.install(model)
    try_out(model)
    if kind == "value":
        model.score.float()
    # Where the padding token is also the end of a turn, an embedding with a padding index would never learn that one.
    embedding: Any = model.get_input_embeddings()
    embedding.padding_idx = None
    module: nn.Module = model
    if facts.base is not None:
        if config.lora is not None:
            raise ModelError(
                f"model.lora: {facts.source} is an adapter already; set lora to null, or train on {facts.base}"
            )
        with _peft() as peft:
            if device.type == "meta":
                module = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(facts.source, inference_mode=False))
            else:
                module = peft.PeftModel.from_pretrained(model, facts.source, is_trainable=True)
    elif config.lora is not None:
        if config.lora.base_bits != 16:
            quantize_layers(model, config.lora.base_bits)
        module = _with_adapters(model, config.lora, seed, kind)
    if kind == "language":
        _check_head(model)
    module.eval()  # dropout off: the learner must score what the sampler sampled
    return Policy(
        module=module,
        model=model,
        tokenizer=facts.tokenizer,
        source=facts.source,
        stop_token_ids=facts.stop_token_ids,
    )


def with_value_head(policy: Policy) -> Policy:
    """The policy with a value head of zeros on the same trunk."""
    head = nn.Linear(policy.model.config.hidden_size, 1, bias=False, dtype=torch.float32, device=policy.device)
    nn.init.zeros_(head.weight)
    return replace(policy, own_value_head=head)


def compute_repeatably(num_threads: int) -> None:
    """Settings of torch for this process, before weights load: the same work then gives the same bits."""
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    # Filling what is about to be written costs a twentieth of a step; nothing here reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch sets it up so


def find_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Where a model goes.

    Raises:
        ConfigError: there is no such device.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ConfigError("model.device=cuda: torch finds no CUDA device on this machine; set it to cpu or auto")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def find_dtype(config: ModelConfig) -> Literal["float32", "bfloat16"]:
    """The type that a model computes in.

    A processor without AVX-512 or its like computes bfloat16 by way of float32, five times slower than float32 itself.
    """
    if config.compute_dtype != "auto":
        return config.compute_dtype
    if find_device(config.device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if multiplies_bfloat16() else "float32"


def _load_weights(facts: ModelFacts, dtype: torch.dtype, kind: ModelKind, device: torch.device) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    source = facts.base or facts.source
    auto = AutoModelForCausalLM if kind == "language" else AutoModelForSequenceClassification
    heads: dict[str, Any] = {} if kind == "language" else {"num_labels": 1}
    if device.type == "meta":
        with device:
            config = _from_pretrained(AutoConfig, source, **heads)
            shape: PreTrainedModel = auto.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        return shape
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, **heads}
    with torch.random.fork_rng(devices=[]):
        model, report = _from_pretrained(auto, source, **options)
    missing = {fault: set(map(str, report[fault])) for fault in ("missing_keys", "mismatched_keys")}
    if kind == "value" and not facts.is_value_model:
        missing["missing_keys"] -= {"score.weight"}
        torch.nn.init.zeros_(model.score.weight)
    for fault, names in missing.items():
        if names:
            # transformers would fill them with random numbers and go on
            what = fault.replace("_keys", "")
            raise ModelError(f"model.path: {source} has {what} weights: {', '.join(sorted(names)[:3])}")
    loaded: PreTrainedModel = model.to(device)
    return loaded


def _check_head(model: PreTrainedModel) -> None:
    """Only the head's matrix and bias are read, so an adapter on it would be ignored."""
    if type(model.get_output_embeddings()) is not nn.Linear:
        raise ModelError(
            f"model type {model.config.model_type!r} is not supported with an output head beyond one linear layer: "
            "lm_head in model.lora.target_modules"
        )


def _adapter_base(folder: Path) -> str | None:
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    base = _read_json(path).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise ModelError(f"model.path: {path} does not name its base_model_name_or_path")
    return find_model(base)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"model.path: {path} is not valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _from_pretrained(kind: Any, source: str, **options: Any) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # what a damaged folder makes transformers raise has no common class
        reason = " ".join(str(error).split())
        raise ModelError(f"model.path: cannot load {source!r}: {reason[:300]}") from error


def _with_adapters(model: PreTrainedModel, config: LoRAConfig, seed: int, kind: ModelKind) -> nn.Module:
    with torch.random.fork_rng(devices=[]), _peft() as peft:
        torch.manual_seed(seed % 2**63)
        settings = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=list(config.target_modules),
            lora_dropout=0.0,
            use_dora=config.dora,
            task_type="CAUSAL_LM" if kind == "language" else "SEQ_CLS",
            modules_to_save=None if kind == "language" else ["score"],  # the value head is trained whole
        )
        try:
            adapted: nn.Module = peft.get_peft_model(model, settings)
            return adapted
        except ValueError as error:
            raise ModelError(f"model.lora.target_modules: {error}") from error


def require_peft() -> None:
    """Before weights load.

    Raises:
        ConfigError: it is not installed.
    """
    with _peft():
        pass


@contextmanager
def _peft() -> Iterator[Any]:
    """The module peft, without the deprecation warnings that peft 0.21 causes in transformers 5.24."""
    with requires_extra("lora", "adapters need peft"):
        import peft
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")  # _check_head refuses those adapters
        yield peft
