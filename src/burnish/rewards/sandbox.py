"""Run Python that a model wrote, in a process of its own that can do little and leaves nothing behind.

What is guaranteed on Linux (x86_64, aarch64; kernel 5.13 with Landlock), for root and anyone else, without namespaces:

- it ends by the deadline, and with it all that it did: it cannot start a process, and its threads end with it;
- it opens no file but Python's own and the system's libraries for reading, and plain files of an empty folder of its
  own, which is removed; so it reads no dataset, no key and no checkpoint, and changes or deletes nothing elsewhere;
- it has no network and no local socket but `socketpair`, sends no signal to another process, and does not see the
  environment variables of its parent;
- its processor time, address space, number of threads, size and number of files and amount of output are bounded.

What is not: it can ask whether a path exists and how large it is (`os.stat`), use the processors until its deadline,
and make use of a fault in the kernel. Its files and output are on disk until it ends. Threads and files are counted 100
times a second, so that there can be more for a moment. Modes and times of files cannot be changed, folders and links
not made: `subprocess`, `multiprocessing` and `shutil.copy` fail inside.

Elsewhere (macOS, other kernels) a call raises ConfigError unless `require_confinement=False`: then the process gets
whatever of this the machine has. On macOS that should be the deadline, rlimits and no further process, which is not
tested; files and network are open to it there.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from burnish.errors import ConfigError

_CONFINE = Path(__file__).with_name("confine.py")
_LOOK_SECONDS = 0.01
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one process may use. `file_bytes` bounds each file, standard output and standard error each by itself."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    file_bytes: int = 4 << 20
    num_files: int = 32
    num_threads: int = 64
    num_open_files: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    """How a process ended. `exit_status` is negative for a signal; `stopped` says which limit we ended it for.

    The kernel ends a process for processor time (`exit_status` -9); memory, file size and open files are errors that
    the program sees.
    """

    exit_status: int
    stdout: str
    stderr: str
    stopped: Literal["deadline", "threads", "files"] | None

    @property
    def ok(self) -> bool:
        """It ended by itself, with status 0."""
        return self.stopped is None and self.exit_status == 0


class Sandbox:
    """A process under way; `start_python` makes it."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, limits: Limits, output: Sequence[IO[bytes]]):
        self._process = process
        self._folder = folder
        self._limits = limits
        self._output = output
        self._deadline = time.monotonic() + limits.wall_seconds

    def wait(self, beside: Sandbox | None = None) -> SandboxResult:
        """Wait for its end, or end it at a limit; the limits of one that runs `beside` it are watched too."""
        stopped = None
        while stopped is None and self._process.poll() is None:
            time.sleep(_LOOK_SECONDS)
            stopped = self._beyond() or (None if beside is None else beside._beyond())
        self._process.kill()
        exit_status = self._process.wait()
        stdout, stderr = (self._read(stream) for stream in self._output)
        return SandboxResult(exit_status=exit_status, stdout=stdout, stderr=stderr, stopped=stopped)

    def _beyond(self) -> Literal["deadline", "threads", "files"] | None:
        if time.monotonic() > self._deadline:
            return "deadline"
        if sum(1 for _ in os.scandir(self._folder)) > self._limits.num_files:
            return "files"
        threads = Path(f"/proc/{self._process.pid}/task")
        if threads.is_dir() and len(os.listdir(threads)) > self._limits.num_threads:
            return "threads"
        return None

    def _read(self, stream: IO[bytes]) -> str:
        stream.seek(0)
        return stream.read(self._limits.file_bytes).decode("utf-8", "replace")


def run_python(
    code: str, *, stdin: str = "", limits: Limits | None = None, require_confinement: bool = True
) -> SandboxResult:
    """Run `code` as a program of its own and wait for its end.

    Raises:
        ConfigError: this machine cannot confine a process as the module's text says, and `require_confinement` is set.
    """
    with start_python(
        {"main.py": code}, stdin=stdin, limits=limits or Limits(), require_confinement=require_confinement
    ) as sandbox:
        return sandbox.wait()


@contextmanager
def start_python(
    files: Mapping[str, str],
    *,
    stdin: str = "",
    limits: Limits,
    pass_fds: Sequence[int] = (),
    require_confinement: bool = True,
) -> Iterator[Sandbox]:
    """Start `main.py` of these files, in the folder that holds them. It is killed when the `with` block ends.

    Raises:
        ConfigError: as `run_python`.
    """
    _require_a_working_sandbox(require_confinement)
    with _started(files, stdin, limits, pass_fds, require_confinement) as (sandbox, _):
        yield sandbox


@functools.cache
def _require_a_working_sandbox(require_confinement: bool) -> None:
    """Once per process: a sandbox in which nothing runs would give every completion of a run the reward 0."""
    files = {"main.py": "print('works')"}
    with _started(files, "", Limits(wall_seconds=60.0), (), require_confinement) as (sandbox, status):
        result = sandbox.wait()
        refusal = os.read(status, 4096).decode()
    if refusal:
        raise ConfigError(
            f"code of a model cannot be confined on this machine: {refusal}. Use another machine, or run it unconfined "
            "(require_confinement=False; as a reward burnish.rewards.code:code_tests_unconfined)"
        )
    if not result.ok or result.stdout != "works\n":
        said = result.stderr.strip().splitlines()
        raise ConfigError(
            f"Python does not start in the sandbox (status {result.exit_status}): {said[-1] if said else 'no message'}"
        )


@contextmanager
def _started(
    files: Mapping[str, str], stdin: str, limits: Limits, pass_fds: Sequence[int], require_confinement: bool
) -> Iterator[tuple[Sandbox, int]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="burnish-", ignore_cleanup_errors=True)))
        for name, text in files.items():
            (folder / name).write_bytes(text.encode("utf-8", "replace"))
        streams = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        streams[0].write(stdin.encode("utf-8", "replace"))
        streams[0].seek(0)
        status, status_of_child = os.pipe()
        stack.callback(os.close, status)
        settings = _settings(folder, limits, status_of_child, require_confinement)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_CONFINE), json.dumps(settings)],
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                cwd=folder,
                env={},
                pass_fds=(*pass_fds, status_of_child),
                start_new_session=True,
            )
        finally:
            os.close(status_of_child)
        try:
            yield Sandbox(process, folder, limits, streams[1:]), status
        finally:
            process.kill()
            process.wait()


def _settings(folder: Path, limits: Limits, status_fd: int, require_confinement: bool) -> dict[str, object]:
    """What `confine.py` needs to know."""
    rlimits = {
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.num_open_files,
        "RLIMIT_CORE": 0,
    }
    if sys.platform == "darwin":
        rlimits["RLIMIT_NPROC"] = 1  # counts processes there; on Linux also threads, of all the user's programs
    return {
        "arguments": [sys.executable, "-s", "main.py"],
        "environment": {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "LANG": "C.UTF-8",
            "PYTHONUTF8": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",  # the same code gets the same reward again
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",  # each further arena takes 64 MiB of the address space
        },
        "limits": rlimits,
        "readable": sorted({*_SYSTEM, sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent)}),
        "folder": str(folder),
        "status_fd": status_fd,
        "require_confinement": require_confinement,
    }
