"""Weights to serve, from a folder that is checked before a tensor of it is used."""

from __future__ import annotations

from pathlib import Path

import torch

from burnish.config.schema import ModelConfig
from burnish.errors import ModelError
from burnish.models.load import inspect_model, load_policy
from burnish.reproducibility.record import quick_fingerprint
from burnish.serving.asks import Weights
from burnish.training.checkpoint import changed_files, is_checkpoint


def load_weights(config: ModelConfig, name: str, version: int, *, device: torch.device | None = None) -> Weights:
    """Load a model, a run's newest checkpoint, or a checkpoint, whose files must be those that it was saved with.
    `device` is as for load_policy.

    Raises:
        ModelError: it cannot be loaded, or a file of a checkpoint was changed.
    """
    facts = inspect_model(config.path)
    if is_checkpoint(folder := Path(facts.source)):
        for path in changed_files(folder, with_optimizer=False):
            raise ModelError(f"model.path: {path} is missing or is not what the checkpoint was saved with")
    # by its folder: a run that is still training may have a newer checkpoint by now
    policy = load_policy(config.model_copy(update={"path": facts.source}), seed=0, device=device)
    fingerprint = quick_fingerprint(facts.source, base=facts.base, commit=facts.commit)
    return Weights(name=name, version=version, fingerprint=fingerprint, policy=policy)
