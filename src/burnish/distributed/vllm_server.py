"""vLLM's own server as a process beside ours, in an environment of its own, spoken to over a Unix socket."""

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

from burnish.distributed import keeper
from burnish.errors import ConfigError, LostError, MachineError
from burnish.rollout.generators.vllm import MODEL, VllmClient

_PROBE_SECONDS = 60.0
_HEALTH_SECONDS = 5.0
_POLL_SECONDS = 0.25
_END_SECONDS = 30.0
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
    ) -> None:
        """`cache_bytes` of keys and values; None leaves it to vLLM, or on a CPU to VLLM_CPU_KVCACHE_SPACE. `settings`
        are those that are named if it does not come up.
        """
        self.folder = _scratch_folder(model)
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
                raise MachineError(f"vLLM {what} ({self._settings}): {said}")
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


def check_vllm(python: str, section: str) -> str:
    """The version of an interpreter's vLLM, which is loaded for it. `section` is that of the settings to mend.

    Raises:
        ConfigError: it has none, or one that cannot be loaded, or is no interpreter.
    """
    fix = f"make .venv-vllm/.done makes an environment with it; set {section}.vllm_python to its python"
    try:
        found = subprocess.run(
            [python, "-c", "import vllm; print(vllm.__version__)"],
            env=_environment(os.environ, Path("/"), 1),
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{section}.vllm_python={python} cannot be run ({error}): {fix}") from error
    if found.returncode:
        said = found.stderr.strip().rpartition("\n")[2]
        what = "has no vLLM" if "No module named 'vllm'" in said else f"cannot load vLLM ({said[-300:]})"
        raise ConfigError(f"{section}.vllm_python: {python} {what}: {fix}")
    return found.stdout.strip().rpartition("\n")[2]


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
        {_CPU_CACHE: "4"}  # nine tenths of the memory otherwise
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
