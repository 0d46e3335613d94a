"""The machine, the interpreter and the packages of a run, and which of their differences cost exactness."""

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.reproducibility.redaction import redacted

EXACT_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "peft",
    "torchao",
    "reasoning-gym",
)
"""Packages whose version can change a number, or what is asked."""

_EXACT_KEYS = ("python", "implementation", "system", "machine", "libc", "cpu", "isa", "num_threads", "torch")
_EXACT_VARIABLES = ("ATEN_", "DNNL_", "ONEDNN_", "MKL_CBWR", "MKL_ENABLE_", "OPENBLAS_CORETYPE", "CUBLAS_", "NCCL_ALGO")
_VARIABLES = (
    *_EXACT_VARIABLES,
    *("OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "TORCH_", "PYTORCH_", "CUDA_", "CUDNN_", "NCCL_", "GLOO_"),
    *("NVIDIA_", "MALLOC_", "LD_PRELOAD", "PYTHONPATH", "PYTHONHASHSEED", "HF_HOME", "HF_HUB_OFFLINE"),
    *("TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM", "BURNISH_", "RAY_", "SLURM_JOB_ID", "LANG", "LC_ALL", "TZ"),
)
_OF_EXTRA = re.compile(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]")
_ISA = ("sse", "ssse", "avx", "fma", "f16c", "amx", "asimd", "sve", "bf16", "i8mm", "neon")


@dataclass(frozen=True, slots=True)
class Difference:
    """A leaf of two environments that is not the same, and whether bit-exact repetition can then not be promised."""

    key: str
    before: Any
    after: Any
    breaks_exactness: bool

    def __str__(self) -> str:
        """The key with both values, short enough for a line."""
        return f"{self.key} {_short(self.before)} -> {_short(self.after)}"


def environment_record(num_threads: int) -> dict[str, Any]:
    """Machine, interpreter, packages and the variables that numerical libraries read."""
    flags, cpu = _cpu()
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "cpu": cpu,
        "isa": flags,
        "cpu_count": os.cpu_count(),
        "num_threads": num_threads,
        "torch": _torch_record(),
        "packages": installed_packages(),
        "variables": _variables(os.environ),
    }


def environment_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """What is not the same, those that cost exactness first."""
    flat_before, flat_after = _leaves(before), _leaves(after)
    found = [
        Difference(key, flat_before.get(key), flat_after.get(key), _breaks_exactness(key))
        for key in dict.fromkeys([*flat_before, *flat_after])
        if flat_before.get(key) != flat_after.get(key)
    ]
    return sorted(found, key=lambda each: not each.breaks_exactness)


def installed_packages() -> dict[str, str]:
    """Every installed distribution with its version, sorted by name. What a package carries inside itself is not
    installed: Ray, once imported, adds such a folder to the search path.
    """
    own = [each for each in sys.path if "site-packages" not in Path(each).parts[:-1]]
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=own):
        metadata = distribution.metadata  # parsed at each access
        if metadata["Name"]:  # a broken installation may have none
            found.setdefault(metadata["Name"].lower().replace("_", "-"), metadata["Version"])
    return dict(sorted(found.items()))


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each; None where there is none."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def missing_of_extras() -> dict[str, list[str]]:
    """Which packages of each extra are not installed. Empty where burnish itself is not, but found on a path."""
    try:
        asked = importlib.metadata.requires("burnish") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for text in asked:
        if match := _OF_EXTRA.match(text):
            name, extra = match.groups()
            if extra != "dev":
                found.setdefault(extra, []).extend([] if versions([name])[name] else [name])
    return dict(sorted(found.items()))


def _torch_record() -> dict[str, Any]:
    """How torch was built, and what it computes on."""
    import torch  # whoever only reads records does without

    driver = Path("/proc/driver/nvidia/version")
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "version": torch.__version__,
        "build": " ".join(torch.__config__.show().split()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "interop_threads": torch.get_num_interop_threads(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
        "driver": driver.read_text(encoding="utf-8").splitlines()[0] if driver.is_file() else None,
        "gpus": [gpu.name for gpu in gpus],
        "gpu_ids": [str(getattr(gpu, "uuid", "")) for gpu in gpus],
    }


def _breaks_exactness(key: str) -> bool:
    section, _, name = key.partition(".")
    if section == "packages":
        return name in EXACT_PACKAGES
    if section == "variables":
        return name.startswith(_EXACT_VARIABLES)
    return section in _EXACT_KEYS and key != "torch.gpu_ids"


def _leaves(environment: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{name}": each for name, each in value.items()}
        else:
            found[key] = value
    return found


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: redacted(name, value) for name, value in sorted(environment.items()) if name.startswith(_VARIABLES)}


def _cpu() -> tuple[list[str], str]:
    """The instruction sets that arithmetic may use, and the processor's name."""
    name, flags = platform.processor(), set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = dict(
            line.split(":", 1) for line in reversed(info.read_text(encoding="utf-8").splitlines()) if ":" in line
        )
        values = {key.strip(): value.strip() for key, value in fields.items()}
        name = values.get("model name", name)
        flags = set(values.get("flags", values.get("Features", "")).split())
    return sorted(flag for flag in flags if flag.startswith(_ISA)), name


def _short(value: Any) -> str:
    text = "(absent)" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
