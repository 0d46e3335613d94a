"""How long `--help` of every command takes, as processes of their own: python benchmarks/cli_start.py [REPEATS]."""

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from cyclopts import App

from burnish.cli.app import app


def commands(parent: App = app, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    yield path
    for name in parent:
        if not name.startswith("-"):
            yield from commands(parent[name], (*path, name))


def main() -> None:
    """Time each, print the table."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(f"{platform.platform()}, {os.cpu_count()} cores, median of {repeats}\n")
    print("| command | seconds | CPU seconds |\n|---|---|---|")
    for path in commands():
        command = [sys.executable, "-m", "burnish", *path, "--help"]
        print(f"| burnish {' '.join(path)} | {medians(command, repeats, statuses=(0,))} |", flush=True)


def medians(command: list[str], repeats: int, statuses: tuple[int, ...]) -> str:
    """Two cells: seconds and CPU seconds of a process.

    Raises:
        SystemExit: it ended with another status.
    """
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        seconds.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode not in statuses:
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return f"{statistics.median(seconds):.2f} | {statistics.median(cpu_seconds):.2f}"


if __name__ == "__main__":
    main()
