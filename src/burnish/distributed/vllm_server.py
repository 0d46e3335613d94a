"""vLLM's own server as a process beside ours, in an environment of its own, spoken to over a Unix socket."""

from __future__ import annotations

import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.distributed import keeper
from burnish.errors import ConfigError, LostError, MachineError
from burnish.rollout.generators.vllm import MODEL, VllmClient

_LOG = logging.getLogger(__name__)
_PROBE_SECONDS = 60.0  # for an interpreter to start
_IMPORT_SECONDS = 300.0  # its packages are gigabytes, on a slow disk
_FIND = (
    "import sys; from importlib.util import find_spec\n"
    "getattr(find_spec('vllm'), 'origin', None) or sys.exit(\"No module named 'vllm'\")"
)
_LOAD = "import vllm; print(vllm.__version__)"
_HEALTH_SECONDS = 5.0
_POLL_SECONDS = 0.25
_END_SECONDS = 30.0
_TAIL_BYTES = 4096
_IN_MEMORY = Path("/dev/shm")
_SPARE = 3  # times the size of the model's files: they may be in bfloat16 and what is published in float32
_CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"  # GiB; on a CPU it goes before the option


class VllmServer:
    """vLLM's OpenAI server on a Unix socket in a folder of its own. It ends with this process, whatever ends that; see
    keeper.py.
    """

    def __init__(
        self,
        python: str,
        model: Path,
        options: Sequence[str],
        *,
        num_threads: int,
        cache_bytes: int | None = None,
        settings: str = "cluster.start_seconds, cluster.vllm_python",
        gets_weights: bool = True,
    ) -> None:
        """`cache_bytes` of keys and values; None leaves it to vLLM, or on a CPU to VLLM_CPU_KVCACHE_SPACE. `settings`
        are those that are named if it does not come up. With `gets_weights` its folder, to which they are written, is
        in memory where that has room.
        """
        self.folder = _scratch_folder(model, in_memory=gets_weights)
        self.client = VllmClient(self.folder / "http")
        self._settings = settings
        environment = _environment(os.environ, self.folder, num_threads)
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(_linked(model, self.folder))]
        command += ["--served-model-name", MODEL, "--uds", str(self.client.socket_path)]
        command += ["--enforce-eager", "--enable-prefix-caching", "--disable-uvicorn-access-log"]
        command += ["--generation-config", "vllm", *options]
        if cache_bytes is not None:
            del environment[_CPU_CACHE]
            command += ["--kv-cache-memory-bytes", str(cache_bytes)]
        holding = subprocess.Popen(
            [sys.executable, "-I", keeper.__file__, str(self.folder), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        holding.wait(_PROBE_SECONDS)  # it goes on as another process
        self._held: Any = holding.stdin
        self._told: Any = holding.stdout

    def wait_until_up(self, seconds: float, stopping: threading.Event | None = None) -> None:
        """Wait until the server answers, or `stopping` is set. If it does not answer, it is ended.

        Raises:
            MachineError: it ends, is not there in time, or is waited for no more; with what its log says.
        """
        deadline = time.monotonic() + seconds
        stopping = stopping or threading.Event()
        while True:
            try:
                self.client.call("GET", "/health", None, deadline=time.monotonic() + _HEALTH_SECONDS)
                return
            except MachineError:  # not yet
                is_gone = self.has_ended()
            if stopping.is_set():
                self.close()
                raise MachineError("vLLM is waited for no more: the server stops")
            if is_gone or time.monotonic() > deadline:
                what = "ended before it answered" if is_gone else f"did not come up in {seconds:.0f} s"
                said = self.last_words()
                self.note_log()
                self.close()
                raise MachineError(f"vLLM {what} ({self._settings}): {said}")
            stopping.wait(_POLL_SECONDS)

    def has_ended(self) -> bool:
        """Whether the server is gone."""
        if self._told.closed:
            return True
        told = select.poll()  # select.select takes no descriptor above 1023
        told.register(self._told, select.POLLIN)
        return bool(told.poll(0))

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

    def note_log(self) -> None:
        """Write the end of the server's log, which goes with its folder, to our own."""
        tail = self.log().encode()[-_TAIL_BYTES:].decode(errors="replace")
        if tail:
            _LOG.error("vLLM's log ends:\n%s", tail)

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


def check_vllm(python: str, section: str) -> None:
    """Find out whether an interpreter has vLLM, without loading it. `section` is that of the settings to mend.

    Raises:
        ConfigError: it has none, or is no interpreter.
    """
    _said_by(python, _FIND, _PROBE_SECONDS, section)


def load_vllm(python: str, section: str) -> str:
    """The version of an interpreter's vLLM, which is loaded for it, in seconds to minutes. See check_vllm.

    Raises:
        ConfigError: it has none, or one that cannot be loaded, or is no interpreter.
    """
    return _said_by(python, _LOAD, _IMPORT_SECONDS, section).strip().rpartition("\n")[2]


def _said_by(python: str, code: str, seconds: float, section: str) -> str:
    fix = f"make .venv-vllm/.done makes an environment with it; set {section}.vllm_python to its python"
    try:
        found = subprocess.run(
            [python, "-c", code],
            env=_environment(os.environ, Path("/"), 1),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{section}.vllm_python: {python} was not ready in {seconds:.0f} s: {fix}") from error
    except OSError as error:
        raise ConfigError(f"{section}.vllm_python={python} cannot be run ({error}): {fix}") from error
    if found.returncode:
        said = found.stderr.strip().rpartition("\n")[2]
        what = "has no vLLM" if "No module named 'vllm'" in said else f"cannot load vLLM ({said[-300:]})"
        raise ConfigError(f"{section}.vllm_python: {python} {what}: {fix}")
    return found.stdout


def _linked(model: Path, folder: Path) -> Path:
    """A folder with a model's own files: vLLM reads whatever tensors it finds, and a checkpoint has an optimizer's."""
    if not model.is_dir():  # a hub's id
        return model
    linked = folder / "model"
    linked.mkdir()
    for path in model.iterdir():
        if path.suffix != ".safetensors" or path.name.startswith("model"):
            (linked / path.name).symlink_to(path.resolve())
    return linked


def _scratch_folder(model: Path, *, in_memory: bool) -> Path:
    """A folder that only this user can enter; if wanted, in memory where that has room for the weights."""
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    is_there = _IN_MEMORY.is_dir() and os.access(_IN_MEMORY, os.W_OK)
    has_room = is_there and shutil.disk_usage(_IN_MEMORY).free > _SPARE * size
    return Path(tempfile.mkdtemp(prefix="burnish-vllm-", dir=_IN_MEMORY if in_memory and has_room else None))


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what leads to this environment's packages."""
    return {key: value for key, value in environment.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _environment(environment: Mapping[str, str], folder: Path, num_threads: int) -> dict[str, str]:
    return (
        {
            _CPU_CACHE: "4",  # nine tenths of the memory otherwise
            "VLLM_LOG_STATS_INTERVAL": "3600",  # seconds; the log grows by a line every ten of them otherwise
        }
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
