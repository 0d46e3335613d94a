"""What a large dataset costs: a JSONL file of each size, and two steps of sft on a tiny model, started twice.

    python benchmarks/rows.py [1000 30000 1000000]

Prints a table: seconds from the start of the process to its first step, when the rows are read for the first time and
when they were read before, and the largest resident memory of the process that read them and of the one that did not.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from burnish.models.tiny import make_tiny_model

HEADER = """| rows | JSONL MB | kept MB | first start s | second start s | first peak MB | second peak MB |
|---|---|---|---|---|---|---|"""
WORDS = ("the", "river", "ran", "past", "an", "old", "mill", "where", "two", "men", "were", "mending", "a", "wheel")


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="*", type=int, default=[1_000, 30_000, 1_000_000])
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores\n\n{HEADER}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "model")
        for count in arguments.counts:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                print(row(count, model, Path(own)), flush=True)


def row(count: int, model: Path, folder: Path) -> str:
    """A line of the table."""
    source = folder / "rows.jsonl"
    write_rows(source, count)
    (first, first_peak), (second, second_peak) = (start(source, model, folder) for _ in range(2))
    kept = sum(path.stat().st_size for path in (folder / "cache").rglob("*.examples"))
    sizes = f"{source.stat().st_size / 1e6:.1f} | {kept / 1e6:.1f}"
    return f"| {count:,} | {sizes} | {first:.1f} | {second:.1f} | {first_peak / 1e6:.0f} | {second_peak / 1e6:.0f} |"


def write_rows(path: Path, count: int) -> None:
    """Prompts and answers of six words."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            prompt = f"{index}: {' '.join(rng.choices(WORDS, k=6))}"
            file.write(json.dumps({"prompt": prompt, "completion": " ".join(rng.choices(WORDS, k=6))}) + "\n")


def start(source: Path, model: Path, folder: Path) -> tuple[float, int]:
    """(seconds to the first step, peak memory in bytes) of a run in a process of its own."""
    settings = {"data.source": source, "model.path": model, "train.num_steps": 2, "runs_folder": folder / "runs"}
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "burnish", "train", "sft", *flags]
    environment = {**os.environ, "BURNISH_CACHE": str(folder / "cache")}
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seconds = next((time.perf_counter() - began for line in process.stdout if line.startswith("step 1/2")), None)
        process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if seconds is None or process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, used.ru_maxrss * 1024


if __name__ == "__main__":
    main()
