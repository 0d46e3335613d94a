"""Trainings in processes of their own, as a user would start them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from burnish.config.loading import ENVIRONMENT_PREFIX, RESERVED_ENVIRONMENT
from burnish.errors import MachineError
from burnish.reproducibility.run_folder import RunFolder, read_jsonl
from burnish.reproducibility.work_tree import Place

INTERRUPTED = 130
_POLL_SECONDS = 0.02
_START_SECONDS = 1800.0
_STOP_SECONDS = 120.0


@contextmanager
def burnish_process(arguments: Sequence[str], place: Place, *, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`burnish ARGUMENTS` in a place, ended with the context if it has not ended by itself. It writes to `log`.

    Settings of the environment do not reach it: a recorded configuration is complete.
    """
    is_setting = [name.startswith(ENVIRONMENT_PREFIX) and name not in RESERVED_ENVIRONMENT for name in os.environ]
    environment = {name: value for (name, value), drop in zip(os.environ.items(), is_setting, strict=True) if not drop}
    paths = [*map(str, place.python_path), *filter(None, [environment.get("PYTHONPATH")])]
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "burnish", *arguments],
            cwd=place.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def follow(
    process: subprocess.Popen[bytes],
    runs_folder: Path,
    *,
    log: Path,
    step_seconds: float,
    seen: Callable[[RunFolder, int], bool] = lambda run, step: False,
) -> RunFolder:
    """Wait until a training ends, and return its run. `seen(run, last step)` hears of each step, 0 first, and may say
    True: enough.

    Raises:
        MachineError: it failed, or it made no step for much longer than the recorded run needed for one.
    """
    patience = max(_START_SECONDS, 20 * step_seconds)
    told, read, began = -1, -1, time.monotonic()
    while True:
        ended = process.poll() is not None
        for run in RunFolder.all(runs_folder):
            metrics = run.path / "metrics.jsonl"
            size = metrics.stat().st_size if metrics.exists() else 0
            if size == read:  # nothing new: to read it all again would take time from the training
                continue
            read = size
            step = max((line["step"] for line in read_jsonl(metrics)), default=0)
            if step != told:
                told, began = step, time.monotonic()
                if seen(run, step):
                    return run
        if ended:
            break
        if time.monotonic() - began > patience:
            raise MachineError(f"the training said nothing for {patience:.0f} s after step {max(told, 0)}: {_end(log)}")
        time.sleep(_POLL_SECONDS)
    if process.returncode not in (0, INTERRUPTED) or told < 0:
        raise MachineError(f"the training ended with status {process.returncode}: {_end(log)}")
    return RunFolder.all(runs_folder)[0]


def _end(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
