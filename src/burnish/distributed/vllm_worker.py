"""A generator of a cluster that lets vLLM sample: vLLM's server in an environment of its own, beside the actor."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from burnish.config.schema import RunConfig
from burnish.distributed.facts import Facts, facts
from burnish.distributed.roles import RoleNeeds
from burnish.distributed.vllm_server import VllmServer, check_vllm
from burnish.distributed.worker import Weights, changed, checksum_of, tensor_of
from burnish.errors import LostError, MachineError
from burnish.models.load import find_dtype, inspect_model
from burnish.records import Completion, GenerationRequest
from burnish.reproducibility.files import require_free_space
from burnish.rollout.generators.vllm import VllmGenerator


class VllmWorker:
    """See GeneratorWorker: the same calls."""

    def __init__(self, config: RunConfig, needs: RoleNeeds) -> None:
        self.config = config
        self.needs = needs
        self.version: int | None = None
        self._arrays: dict[str, NDArray[Any]] = {}  # the weights of the version

    def facts(self, probe: str | None) -> Facts:
        """See Facts."""
        return facts(probe, (self.config.model.path,))

    def clock(self) -> float:
        """The time here."""
        return time.time()

    def load_model(self) -> None:
        """Start vLLM with the weights that the run starts from.

        Raises:
            ConfigError: it is not installed here.
            MachineError: it does not come up in time.
        """
        cluster, model = self.config.cluster, inspect_model(self.config.model.path)
        python = cluster.vllm_python or sys.executable
        check_vllm(python, "cluster")
        seconds = 0.95 * cluster.start_seconds  # so that what it says is heard before whoever waits gives up
        self.server = VllmServer(
            python,
            Path(model.source),
            [
                *("--dtype", find_dtype(self.config.model), "--max-num-seqs", str(self.needs.max_rows)),
                *("--logprobs-mode", "processed_logprobs"),  # of what it drew from
            ],
            num_threads=self.config.model.num_threads,
        )
        self._tied = _tied_names(Path(model.source))
        self.server.wait_until_up(seconds)
        self._generator = VllmGenerator(
            self.server.client,
            model.tokenizer,
            max_rows=self.needs.max_rows,
            timeout_seconds=0.95 * cluster.timeout_seconds,
        )

    def load_weights(self, weights: Weights) -> int:
        """See GeneratorWorker.

        Raises:
            ValueError: it is a change of another version than the one that is here, or arrived damaged.
            LostError: vLLM is gone.
            MachineError: there is no room for them, or vLLM does not take them in time.
        """
        if weights.base is not None and weights.base != self.version:
            raise ValueError(f"a change of version {weights.base} for version {self.version}")
        arrays = {name: self._after(name, sent) for name, sent in weights.arrays.items()}
        if checksum_of(arrays) != weights.checksum:
            raise ValueError(f"weights of version {weights.version} arrived damaged: their checksum differs")
        self._arrays, self.version = arrays, None
        tensors = {name: tensor_of(array) for name, array in arrays.items()}
        # vLLM leaves a tied head as it was, unless it finds it in the file too
        tensors |= {tied: tensors[name].clone() for tied, name in self._tied.items() if name in tensors}
        folder = self.server.folder / "weights"
        folder.mkdir(exist_ok=True)
        require_free_space(folder, sum(each.nbytes for each in tensors.values()), "weights for vLLM")
        said = len(self.server.log())
        try:
            save_file(tensors, folder / "model.safetensors")
            self._generator.load_weights(folder)
        except SafetensorError as error:
            raise MachineError(f"cannot write {folder}: {error}") from error
        except LostError as error:
            raise self.server.lost(error) from error
        finally:
            shutil.rmtree(folder)
        check_all_loaded(self.server.log()[said:])
        self.version = weights.version
        return weights.num_bytes

    def sample(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """See Generator."""
        try:
            return self._generator.generate(requests)
        except LostError as error:
            raise self.server.lost(error) from error

    def _after(self, name: str, sent: NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]) -> NDArray[Any]:
        return changed(self._arrays[name], sent) if isinstance(sent, tuple) else np.array(sent)


def check_all_loaded(log: str) -> None:
    """Find out whether weights of a version before are still used: vLLM does no more than say so.

    Raises:
        MachineError: they are.
    """
    for line in log.splitlines():
        if "weights were not loaded" in line or ("Failed to load weights" in line and "RotaryEmbedding" not in line):
            raise MachineError(
                f"vLLM did not take all weights: {line[-300:]}; use cluster.engine=native for this model"
            )


def _tied_names(model: Path) -> dict[str, str]:
    """Names of the weights that are others' (the head, which is the embedding), with the others'."""
    config = AutoConfig.from_pretrained(model)
    if not config.tie_word_embeddings:
        return {}
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return dict(model_class._tied_weights_keys or {})
