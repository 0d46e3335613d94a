"""A generator of a cluster that lets vLLM sample: vLLM's server in an environment of its own, beside the actor."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from burnish.config.schema import RunConfig
from burnish.distributed import keeper
from burnish.distributed.facts import Facts, facts
from burnish.distributed.roles import RoleNeeds
from burnish.distributed.worker import Weights, changed, checksum_of, tensor_of
from burnish.errors import ConfigError, LostError, MachineError
from burnish.models.load import find_dtype, inspect_model
from burnish.records import Completion, GenerationRequest
from burnish.reproducibility.files import require_free_space
from burnish.rollout.generators.vllm import MODEL, VllmClient, VllmGenerator

_PROBE_SECONDS = 60.0
_HEALTH_SECONDS = 5.0
_POLL_SECONDS = 0.25
_END_SECONDS = 30.0
_IN_MEMORY = Path("/dev/shm")
_SPARE = 3  # times the size of the model's files: they may be in bfloat16 and what is published in float32


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
        check_vllm(python)
        seconds = 0.95 * cluster.start_seconds  # so that what it says is heard before whoever waits gives up
        self.server = VllmServer(
            python,
            Path(model.source),
            ["--dtype", find_dtype(self.config.model), "--max-num-seqs", str(self.needs.max_rows)],
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


class VllmServer:
    """vLLM's OpenAI server on a Unix socket in a folder of its own. It ends with this process, whatever ends that; see
    keeper.py.
    """

    def __init__(self, python: str, model: Path, options: Sequence[str], *, num_threads: int) -> None:
        self.folder = _scratch_folder(model)
        self.client = VllmClient(self.folder / "http")
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--served-model-name", MODEL, "--uds", str(self.client.socket_path)]
        command += ["--enforce-eager", "--enable-prefix-caching", "--disable-uvicorn-access-log"]
        command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", *options]
        holding = subprocess.Popen(
            [sys.executable, "-I", keeper.__file__, str(self.folder), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(os.environ, self.folder, num_threads),
        )
        holding.wait(_PROBE_SECONDS)  # it goes on as another process
        self._held: Any = holding.stdin
        self._told: Any = holding.stdout

    def wait_until_up(self, seconds: float) -> None:
        """Wait until the server answers. If it does not, it is ended.

        Raises:
            MachineError: it ends, or is not there in time; with what its log says.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.client.call("GET", "/health", None, deadline=time.monotonic() + _HEALTH_SECONDS)
                return
            except MachineError:  # not yet
                is_gone = self.has_ended()
            if is_gone or time.monotonic() > deadline:
                what = "ended before it answered" if is_gone else f"did not come up in {seconds:.0f} s"
                said = self.last_words()
                self.close()
                raise MachineError(f"vLLM {what} (cluster.start_seconds, cluster.vllm_python): {said}")
            time.sleep(_POLL_SECONDS)

    def has_ended(self) -> bool:
        """Whether the server is gone."""
        return bool(select.select([self._told], [], [], 0)[0])

    def lost(self, error: LostError) -> LostError:
        """The error with the end of the server's log."""
        return LostError(f"{error}; its log ends: {self.last_words()}")

    def log(self) -> str:
        """What the server has said so far."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def last_words(self) -> str:
        """What the log says last, of errors where it has some, on one line."""
        lines = self.log().splitlines()
        return " | ".join(([line for line in lines if "Error" in line] or lines)[-2:])[-600:] or "nothing"

    def close(self) -> None:
        """End the server, and wait until nothing of it is left.

        Raises:
            MachineError: that takes too long.
        """
        self._held.close()
        self._told.close()
        deadline = time.monotonic() + _END_SECONDS
        while self.folder.exists():
            if time.monotonic() > deadline:
                raise MachineError(f"vLLM does not end in {_END_SECONDS:.0f} s; see {self.folder / 'log'}")
            time.sleep(_POLL_SECONDS)


def check_vllm(python: str) -> None:
    """Refuse an interpreter that has no vLLM, without loading it.

    Raises:
        ConfigError: it has none, or is none.
    """
    fix = "make .venv-vllm/.done makes an environment with it; set cluster.vllm_python to its python"
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        found = subprocess.run(
            [python, "-c", code], env=_clean(os.environ), capture_output=True, timeout=_PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"cluster.vllm_python={python} cannot be run ({error}): {fix}") from error
    if found.returncode:
        raise ConfigError(f"cluster.engine=vllm: {python} has no vLLM: {fix}")


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


def _scratch_folder(model: Path) -> Path:
    """A folder that only this user can enter; in memory where that has room for the weights."""
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    is_there = _IN_MEMORY.is_dir() and os.access(_IN_MEMORY, os.W_OK)
    has_room = is_there and shutil.disk_usage(_IN_MEMORY).free > _SPARE * size
    return Path(tempfile.mkdtemp(prefix="burnish-vllm-", dir=_IN_MEMORY if has_room else None))


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what leads to this environment's packages."""
    return {key: value for key, value in environment.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _environment(environment: Mapping[str, str], folder: Path, num_threads: int) -> dict[str, str]:
    return (
        {"VLLM_CPU_KVCACHE_SPACE": "4"}  # GiB; nine tenths of the memory otherwise
        | _clean(environment)
        | {
            "VLLM_SERVER_DEV_MODE": "1",  # the paths that change the weights
            "VLLM_RPC_BASE_PATH": str(folder),
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or each of several servers takes the same cores
            "OMP_NUM_THREADS": str(num_threads),
            "TORCHDYNAMO_DISABLE": "1",  # the sampler is compiled otherwise, half a minute on two cores
        }
    )
