"""What more processes bring: the same steps in one process and on Ray, with 1, 2 and 4 learners and generators.

    python benchmarks/scaling.py [--steps 4] [--model smollm2-135m] [--threads 1] [LAYOUT ...]

A layout is `local`, or learners x tensor-parallel x generators such as `2x1x2`. Prints a table of medians over the
steps after the first: seconds, tokens a second of both sides, what was sent, how long the sides had nothing to do.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from compare import processor

HEADER = """| layout | step s | sampling tok/s | learning tok/s | publish s | MB | learners idle | generators idle |
|---|---|---|---|---|---|---|---|"""
RECIPE = {
    "task.source": "reasoning-gym:chain_sum",
    "task.options": '{"min_digits": 1, "max_digits": 1, "min_terms": 2, "max_terms": 2, "size": 200}',
    "task.num_held_out": "4",
    "rollout.max_tokens": "24",
    "rollout.num_prompts": "8",
    "rollout.group_size": "8",
    "loss.entropy_coefficient": "0.001",  # so that every group is learnt from
    "evaluation.every_steps": "1000",
    "checkpoint.every_steps": "1000",
}


def main() -> None:
    """Read the arguments, run every layout, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layouts", nargs="*", default=["local", "1x1x1", "2x1x1", "1x1x2", "2x1x2", "4x1x1"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {processor()}, {os.cpu_count()} cores, {arguments.threads} threads a process\n")
    print(HEADER, flush=True)
    for layout in arguments.layouts:
        with tempfile.TemporaryDirectory() as folder:
            lines = run(layout, arguments, Path(folder))
        print(row(layout, lines), flush=True)


def run(layout: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """The metrics of each step after the first."""
    settings = RECIPE | {"model.path": arguments.model, "model.num_threads": str(arguments.threads)}
    settings |= {"train.num_steps": str(arguments.steps + 1), "runs_folder": str(folder)}
    if layout != "local":
        learners, tensor_parallel, generators = layout.split("x")
        settings |= {"cluster.kind": "ray", "cluster.learners": learners, "cluster.generators": generators}
        settings |= {"cluster.tensor_parallel": tensor_parallel}
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "burnish", "train", "grpo", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    found = re.search(r"run (\S+): step 0", done.stdout)
    if done.returncode != 0 or found is None:
        raise SystemExit(f"{layout}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
    metrics = (Path(found[1]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in metrics][1:]


def row(layout: str, lines: list[dict[str, float]]) -> str:
    """A line of the table."""

    def median(key: str) -> float:
        return statistics.median(line.get(key, 0.0) for line in lines)

    rates = [
        statistics.median(line["tokens"] / line[key] for line in lines) for key in ("seconds_sample", "seconds_learn")
    ]
    sent = f"{median('seconds_publish'):.2f} | {median('bytes_published') / 1e6:.0f}"
    idle = f"{median('idle_learners'):.0%} | {median('idle_generators'):.0%}"
    return f"| {layout} | {median('seconds'):.2f} | {rates[0]:.0f} | {rates[1]:.0f} | {sent} | {idle} |"


if __name__ == "__main__":
    main()
