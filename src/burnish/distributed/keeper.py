"""Run a program for as long as its starter lives, whatever ends that: python keeper.py FOLDER PROGRAM ARGUMENT ...

The starter holds standard input open. When that ends, the program and all of its children are ended, and FOLDER, which
has the program's log, is removed. Standard output is closed when the program ends by itself. Only the standard library.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0


def main(folder: Path, command: list[str]) -> None:
    """See above. It goes on as another process: Ray kills the children of an actor that it kills."""
    if os.fork():
        os._exit(0)
    os.setsid()
    with (folder / "log").open("wb") as log:
        program = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    is_told = False
    while not select.select([0], [], [], _POLL_SECONDS)[0]:
        if not is_told and program.poll() is not None:
            os.close(1)
            is_told = True
    _end(program)
    shutil.rmtree(folder, ignore_errors=True)


def _end(program: "subprocess.Popen[bytes]") -> None:
    """End a program and its children, which are in its group."""
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGTERM)
        _wait(program, _GRACE_SECONDS)
        # Python's tracker outlives the others for a moment, and frees the shared memory that they left
        for process_id in _members(program.pid):
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        _wait(program, _GRACE_SECONDS)
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()


def _wait(program: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Wait for a group. Raises a ProcessLookupError as soon as it is gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        program.poll()
        os.killpg(program.pid, 0)
        time.sleep(0.05)


def _members(group: int) -> list[int]:
    """A group's processes, but for trackers of shared memory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_tracker = b"resource_tracker" in (path / "cmdline").read_bytes()
            if not is_tracker and os.getpgid(int(path.name)) == group:
                found.append(int(path.name))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
