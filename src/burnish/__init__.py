"""Post-training of language models, with the evidence that it worked. See README.md.

The public names load what they need when they are first used: `import burnish` does not import torch.
"""

import logging
import os
from importlib import import_module
from typing import Any

# Read by huggingface_hub when it is imported, so it must be set before anything imports that.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not message.startswith("Failed to load ") and "register_constant() on Enum" not in message


# Where torchao is installed transformers imports it. torchao 0.18 then warns of its kernels for other machines, and
# torch 2.13 of torchao's enums.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(_is_news)

__version__ = "0.1.0"

_HOMES = {
    "Completion": "burnish.records",
    "GRPOConfig": "burnish.algorithms.grpo",
    "GenerationRequest": "burnish.records",
    "Learner": "burnish.training.learner",
    "Message": "burnish.records",
    "NativeGenerator": "burnish.rollout.generators.native",
    "PolicyLoss": "burnish.losses.policy_gradient",
    "PreferenceLoss": "burnish.losses.preference",
    "RunFolder": "burnish.reproducibility.run_folder",
    "SamplingSettings": "burnish.records",
    "ScriptedGenerator": "burnish.rollout.generators.scripted",
    "Task": "burnish.records",
    "TokenBatch": "burnish.records",
    "compare_paired": "burnish.stats.paired",
    "check_loss": "burnish.training.check_loss",
    "load_policy": "burnish.models.load",
    "loss": "burnish.losses.loss",
    "make_tiny_model": "burnish.models.tiny",
    "resume": "burnish.algorithms.session",
    "train": "burnish.algorithms.session",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
