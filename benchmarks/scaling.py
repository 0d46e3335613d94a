"""What more processes bring: the same steps in one process and on Ray, with 1, 2 and 4 learners and generators.

    python benchmarks/scaling.py [--steps 4] [--model smollm2-135m] [--threads 1] [LAYOUT ...]

A layout is `local`, or learners x tensor-parallel x generators such as `2x1x2`, x lag where it is not 0. Prints a
table of medians over the steps after the first: seconds, tokens a second of both sides, what was sent, how long the
sides had nothing to do. Where `local` came before, what `simulate.py` makes of its times stands beside it: each side's
divided by the number of its processes, and this layout's own seconds of publishing.
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
from simulate import Schedule, schedule

HEADER = """| layout | step s | predicted | sampling tok/s | learning tok/s | publish s | MB | learners idle \
| predicted | generators idle | predicted |
|---|---|---|---|---|---|---|---|---|---|---|"""
Line = dict[str, float]
_ASIDE = 1e6  # tokens a second: what was sampled before the step began takes no time of it

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
    local: list[Line] = []
    for layout in arguments.layouts:
        with tempfile.TemporaryDirectory() as folder:
            lines = run(layout, arguments, Path(folder))
        if layout == "local":
            local = lines
        print(row(layout, lines, predicted(layout, local, lines) if local else None), flush=True)


def run(layout: str, arguments: argparse.Namespace, folder: Path) -> list[Line]:
    """The metrics of each step after the first."""
    settings = RECIPE | {"model.path": arguments.model, "model.num_threads": str(arguments.threads)}
    settings |= {"train.num_steps": str(arguments.steps + 1), "runs_folder": str(folder)}
    if layout != "local":
        learners, tensor_parallel, generators, lag = (*layout.split("x"), "0")[:4]
        settings |= {"cluster.kind": "ray", "cluster.learners": learners, "cluster.generators": generators}
        settings |= {"cluster.tensor_parallel": tensor_parallel, "rollout.lag": lag}
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "burnish", "train", "grpo", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    found = re.search(r"run (\S+): step 0", done.stdout)
    if done.returncode != 0 or found is None:
        raise SystemExit(f"{layout}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
    metrics = (Path(found[1]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in metrics][1:]


def median(lines: list[Line], key: str) -> float:
    """Of the steps of a run."""
    return statistics.median(line.get(key, 0.0) for line in lines)


def predicted(layout: str, local: list[Line], lines: list[Line]) -> Schedule:
    """What the times of one process say about a layout."""
    learners, _, generators, lag = map(int, (*layout.split("x"), "0")[:4]) if layout != "local" else (1, 1, 1, 0)
    sample, learn = median(local, "seconds_sample") / generators, median(local, "seconds_learn") / learners
    return schedule(sample, learn, median(lines, "seconds_publish"), lag)


def row(layout: str, lines: list[Line], expected: Schedule | None) -> str:
    """A line of the table."""
    rates = [
        statistics.median(line["tokens"] / line[key] for line in lines) for key in ("seconds_sample", "seconds_learn")
    ]
    seconds, learners, generators = (
        ("", "", "")
        if expected is None
        else (
            f"{expected.step_seconds:.2f}",
            f"{expected.idle_learners:.0%}",
            f"{expected.idle_generators:.0%}",
        )
    )
    cells = [
        layout,
        f"{median(lines, 'seconds'):.2f}",
        seconds,
        *("aside" if rate > _ASIDE else f"{rate:.0f}" for rate in rates),
    ]
    cells += [f"{median(lines, 'seconds_publish'):.2f}", f"{median(lines, 'bytes_published') / 1e6:.0f}"]
    cells += [f"{median(lines, 'idle_learners'):.0%}", learners, f"{median(lines, 'idle_generators'):.0%}", generators]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
