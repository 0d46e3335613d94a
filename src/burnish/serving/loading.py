"""Bringing other weights in while the server answers: from one folder alone, one at a time, and checked before."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import torch

from burnish.config.schema import ModelConfig
from burnish.errors import BurnishError
from burnish.models.load import model_folder
from burnish.serving.asks import Arm, Weights
from burnish.serving.metrics import ServeMetrics
from burnish.serving.refusals import RefusedError
from burnish.serving.service import Service
from burnish.serving.weights import load_weights


class WeightLoader:
    """Loads weights below `weights_folder` for a service; `model` says how, and `device` whereto (see load_policy)."""

    def __init__(
        self,
        service: Service,
        metrics: ServeMetrics,
        model: ModelConfig,
        weights_folder: Path,
        *,
        device: torch.device | None = None,
    ) -> None:
        self.service, self.weights_folder = service, weights_folder
        self._metrics, self._model, self._device = metrics, model, device
        self._one_at_a_time = asyncio.Lock()
        self._newest = Counter[str]()

    async def swap(self, name: str, path: str) -> Weights:
        """Let other weights answer for a name from here on.

        Raises:
            RefusedError: they cannot be used, or others are being loaded; what serves goes on.
        """
        async with self.load(name, path) as weights:
            await asyncio.to_thread(self.service.engine.install, weights)
            return weights

    @asynccontextmanager
    async def load(self, name: str, path: str, arm: Arm = "stable") -> AsyncIterator[Weights]:
        """Weights with a version that none of this name had before, for as long as they are installed.

        Raises:
            RefusedError: see swap.
        """
        current = self.service.weights(name)
        folder = await asyncio.to_thread(inside, self.weights_folder, path)
        if self._one_at_a_time.locked():
            raise RefusedError("busy", "other weights are being loaded")
        exporter = self._metrics.exporter
        async with self._one_at_a_time:
            exporter.set("burnish_serve_swaps_in_flight", 1)
            began, result = time.monotonic(), "refused"
            try:
                model = self._model.model_copy(update={"path": str(folder)})
                weights = await asyncio.to_thread(load_weights, model, name, 0, device=self._device)
                version = max(current.version, self._newest[name]) + 1
                yield replace(weights, version=version, arm=arm)
                self._newest[name] = version
                result = "done"
            except BurnishError as error:
                goes_on = f"version {current.version} goes on"
                raise RefusedError("invalid", f"{error}; {goes_on}", parameter="path") from error
            finally:
                exporter.set("burnish_serve_swaps_in_flight", 0)
                exporter.count("burnish_serve_swaps_total", 1, result)
                exporter.observe("burnish_serve_swap_seconds", time.monotonic() - began)


def inside(folder: Path, path: str) -> Path:
    """A model's folder below another one, wherever links lead; a run, by its name, stands for its newest checkpoint.

    Raises:
        RefusedError: it is none.
    """
    root = folder.resolve()
    try:
        found = model_folder(root / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # none there, a NUL, a ring of links
        found = None
    if found is None or found == root or not found.is_relative_to(root) or not found.is_dir():
        raise RefusedError("invalid", "path: no folder below admin.weights_folder", parameter="path")
    if any(not file.resolve().is_relative_to(root) for file in found.rglob("*")):
        raise RefusedError("invalid", "path: a link in it leads out of admin.weights_folder", parameter="path")
    if (found / "adapter_config.json").is_file():  # it would name a base, from anywhere
        raise RefusedError("invalid", "path: an adapter cannot be exchanged, only whole weights", parameter="path")
    return found
