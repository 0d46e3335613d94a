"""What surrounds vLLM, without it."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from burnish.algorithms.dpo import DPOConfig
from burnish.algorithms.grpo import GRPOConfig
from burnish.distributed import keeper
from burnish.distributed.check_cluster import check_cluster
from burnish.distributed.roles import RoleNeeds
from burnish.distributed.vllm_server import VllmServer, _environment, check_vllm, load_vllm
from burnish.distributed.vllm_worker import _tied_names, check_all_loaded
from burnish.errors import ConfigError, MachineError
from burnish.models.load import inspect_model

PROGRAM = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
WAIT_SECONDS = 20


def wait_until(is_so: object, what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def group_of(folder: Path) -> list[int]:
    """Living processes whose working folder it is: the kept program's and its children."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "cwd").removesuffix(" (deleted)") == str(folder):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_what_is_kept_ends_with_its_starter_and_its_children_too(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    starting = (
        "import subprocess, sys, time\n"
        "held = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-I", keeper.__file__, str(folder), sys.executable, "-c", PROGRAM]
    with subprocess.Popen([sys.executable, "-c", starting, *command]) as starter:
        wait_until(
            lambda: (folder / "log").is_file() and (folder / "log").read_text() == "up\n", "the program to start"
        )
        wait_until(lambda: len(group_of(folder)) == 2, "the program to have its child")
        starter.send_signal(signal.SIGKILL)
    wait_until(lambda: not group_of(folder), "the program and its child to end")
    wait_until(lambda: not folder.exists(), "its folder to be removed")


@pytest.mark.slow
def test_shared_memory_of_one_that_does_not_want_to_end_is_freed(tmp_path: Path) -> None:
    program = (
        "import signal, time; from multiprocessing.shared_memory import SharedMemory\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "memory = SharedMemory(create=True, size=10)\n"
        "print(memory.name, flush=True); time.sleep(60)\n"
    )
    folder = tmp_path / "kept"
    folder.mkdir()
    command = [sys.executable, "-I", keeper.__file__, str(folder), sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE):
        wait_until(lambda: (folder / "log").is_file() and (folder / "log").read_text().endswith("\n"), "its start")
        memory = Path("/dev/shm") / (folder / "log").read_text().strip()
        assert memory.exists()
    wait_until(lambda: not folder.exists(), "its end")  # standard input is closed
    assert not memory.exists()
    assert not group_of(folder)


def test_a_program_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-I", keeper.__file__, str(tmp_path), sys.executable, "-c", "print('bye')"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
        assert held.wait(WAIT_SECONDS) == 0
        assert held.stdout is not None
        assert held.stdout.read() == b""  # closed, though standard input is still open
        assert (tmp_path / "log").read_text() == "bye\n"  # and the log can still be read


def test_an_interpreter_without_vllm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.vllm_python: .* has no vLLM: make \.venv-vllm"):
        check_vllm(sys.executable, "cluster")
    with pytest.raises(ConfigError, match=r"cluster\.vllm_python=/no/python cannot be run"):
        check_vllm("/no/python", "cluster")


def test_vllm_is_found_without_being_loaded(tmp_path: Path) -> None:
    """For a dry run: loading it takes long. A server loads it before it reads weights."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise ImportError('planted')\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    check_vllm(str(python), "cluster")
    with pytest.raises(ConfigError, match=r"engine\.vllm_python: .* cannot load vLLM \(ImportError: planted\)"):
        load_vllm(str(python), "engine")


def test_the_end_is_seen_by_one_with_many_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft <= 1024:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1100, hard))
    read, write = os.pipe()
    server = VllmServer.__new__(VllmServer)
    with os.fdopen(fcntl.fcntl(read, fcntl.F_DUPFD, 1024), "rb") as server._told:
        os.close(read)
        assert not server.has_ended()
        os.close(write)
        assert server.has_ended()
    assert server.has_ended()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_environment_is_vllms_own() -> None:
    here = {"PYTHONPATH": "/mine", "VIRTUAL_ENV": "/mine", "HOME": "/home/me", "VLLM_CPU_KVCACHE_SPACE": "9"}
    found = _environment(here, Path("/scratch"), num_threads=3)
    assert not {"PYTHONPATH", "VIRTUAL_ENV"} & found.keys()
    assert (found["HOME"], found["VLLM_CPU_KVCACHE_SPACE"], found["OMP_NUM_THREADS"]) == ("/home/me", "9", "3")
    assert _environment({}, Path("/scratch"), num_threads=3)["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert found["VLLM_LOG_STATS_INTERVAL"] == "3600"  # so that the log of one that runs for months stays small


def test_a_tied_head_is_known_by_its_name(tiny_folder: Path) -> None:
    assert _tied_names(tiny_folder) == {"lm_head.weight": "model.embed_tokens.weight"}


def test_weights_that_vllm_left_out_are_an_error() -> None:
    check_all_loaded("WARNING RotaryEmbedding: Failed to load weights\nINFO Reloading took 1 seconds")
    for line in (
        "WARNING ParallelLMHead: Failed to load weights",
        "Following weights were not loaded from checkpoint: a",
    ):
        with pytest.raises(MachineError, match="vLLM did not take all weights"):
            check_all_loaded(f"INFO fine\n{line}\n")


def config_of(tiny_folder: Path, **changes: object) -> GRPOConfig:
    cluster = {"kind": "ray", "engine": "vllm", "vllm_python": sys.executable}
    model = {"path": str(tiny_folder), **changes.pop("model", {})}  # type: ignore[dict-item]
    return GRPOConfig.model_validate(
        {"name": "any", "model": model, "task": {"source": "any"}, "cluster": cluster, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "needs", "message"),
    [
        ({}, RoleNeeds(), r"cluster\.engine=vllm would be ignored: this algorithm samples nothing"),
        ({"model": {"lora": {}}}, RoleNeeds(max_rows=4), r"cluster\.engine=vllm and model\.lora do not go together"),
        (
            {"rollout": {"lag": 1, "update_weights": "during"}},
            RoleNeeds(max_rows=4),
            r"rollout\.update_weights=during and cluster\.engine=vllm do not go together",
        ),
        ({}, RoleNeeds(max_rows=4, temperature=0.001), r"rollout\.temperature=0\.001: vLLM would sample at 0\.01"),
        ({}, RoleNeeds(max_rows=4), r"has no vLLM"),
    ],
)
def test_what_vllm_cannot_do_is_refused_before_anything_starts(
    tiny_folder: Path, changes: dict[str, object], needs: RoleNeeds, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_cluster(config_of(tiny_folder, **changes), needs, inspect_model(str(tiny_folder)), 8)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"engine": "vllm"}, r"cluster\.engine would be ignored: it belongs to cluster\.kind=ray"),
        (
            {"kind": "ray", "vllm_python": "python"},
            r"cluster\.vllm_python would be ignored: it belongs to cluster\.engine",
        ),
    ],
)
def test_settings_that_nothing_would_read_are_refused(cluster: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DPOConfig.model_validate({"name": "a", "model": {"path": "a"}, "data": {"source": "a"}, "cluster": cluster})
