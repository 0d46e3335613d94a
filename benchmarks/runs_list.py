"""How long `burnish runs` takes for thousands of finished runs: python benchmarks/runs_list.py [NUMBER]."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from burnish.reproducibility.environment import installed_packages
from burnish.reproducibility.run_folder import RECORD_FORMAT, RunFolder

NUM_STEPS, NUM_ITEMS, REPEATS = 20, 100, 3


def make_run(folder: Path, index: int, packages: dict[str, str]) -> None:
    """A run folder of about the size of a real one, written as a run writes it, but not flushed to disk each time."""
    run = RunFolder.create(folder, f"run{index:05d}")
    record = {
        "format": RECORD_FORMAT,
        "created": f"2026-01-01T{index // 3600:02d}:{index // 60 % 60:02d}:{index % 60:02d}Z",
        "status": "finished",
        "environment": {"packages": packages},
    }
    metrics = [{"step": step, "reward_mean": step / NUM_STEPS, "seconds": 1.0} for step in range(1, NUM_STEPS + 1)]
    items = [{"id": str(item), "score": float(item % 2), "text": "x" * 200} for item in range(NUM_ITEMS)]
    (run.path / "run.json").write_text(json.dumps(record, indent=1))
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    for step in (0, NUM_STEPS):
        path = run.path / "evaluations" / f"step-{step:06d}.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
    (run.path / "summary.json").write_text(json.dumps(run.summary()))


def main() -> None:
    """Make the folders, list them, say the seconds of each listing."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    packages = installed_packages()
    with tempfile.TemporaryDirectory() as name:
        for index in range(number):
            make_run(Path(name), index, packages)
        for _ in range(REPEATS):
            began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, "-m", "burnish", "runs", "--runs-folder", name]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
            seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            lines = done.stdout.count("\n")
            if lines != number + 1:
                raise SystemExit(f"{lines} lines for {number} runs")
            print(f"{number} runs listed in {seconds:.2f} s, {cpu:.2f} s of it on the processor")


if __name__ == "__main__":
    main()
