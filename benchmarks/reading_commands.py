"""How long the commands that read take where there is much to read: 1,000 runs, 100 eval stores, an experiment of 100.

    python benchmarks/reading_commands.py [--runs 1000] [--stores 100] [--repeats 5]

One run of a random model of two layers is trained, and one experiment planned; the other folders are copies of that run
under other names, so that every command finds what it expects. Each command is a process of its own; the table has the
median of its seconds by the clock, and those of the processor.
"""

import argparse
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from cli_start import medians

from burnish.cli.app import run as burnish
from burnish.models.tiny import make_tiny_model

NUM_ITEMS, NUM_STEPS, NUM_SEEDS = 200, 20, 50

COMMANDS = (
    "runs",
    "show last",
    "diff seed0000 seed0001",
    "compare seed0000 seed0001",
    "compare evals/m000- evals/m001-",
    "audit last",
    "monitor check last",
    "config show last",
    "config diff seed0000 seed0001",
    "config schema grpo",
    "eval show m000",
    "eval verify m000",
    "contamination tasks.jsonl tasks.jsonl",
    "watch evals/m000- evals/m001-",
    "experiment status arms.yaml",
    "monitor metrics",
    "power items --effect 0.03",
    "doctor",
    "memory recipe.yaml",
)

FIRST_PAGE = """
from pathlib import Path
from burnish.ui.runs import Runs
assert len(Runs(Path("runs")).all().runs) == {runs}
"""


def main() -> None:
    """Make the folders, time every command, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--stores", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="Commands that contain this.")
    parser.add_argument("--folder", type=Path, help="Keep the folders there; made where they are not.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        is_made = (folder / "arms.yaml").exists()
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        if not is_made:
            make(arguments.runs, arguments.stores)
        print(f"{platform.platform()}, {os.cpu_count()} cores; {arguments.runs:,} runs, {arguments.stores} stores\n")
        print("| command | seconds | CPU seconds |\n|---|---|---|")
        for command in COMMANDS:
            if arguments.only in command:
                report(command, [sys.executable, "-m", "burnish", *resolved(command)], arguments.repeats)
        if arguments.only in "ui":
            code = FIRST_PAGE.format(runs=arguments.runs)
            report("the list of `ui`, first asked", [sys.executable, "-c", code], arguments.repeats)


def make(num_runs: int, num_stores: int) -> None:
    """A project in the working folder."""
    make_tiny_model(Path("tiny"))
    rows = [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(60 + NUM_ITEMS)]
    Path("tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "algorithm": "grpo",
        "model": {"path": "tiny", "compute_dtype": "float32"},
        "task": {"source": "tasks.jsonl", "num_held_out": NUM_ITEMS},
        "rollout": {"num_prompts": 4, "group_size": 4, "max_tokens": 8},
        "train": {"num_steps": NUM_STEPS},
        "evaluation": {"every_steps": NUM_STEPS // 2, "right_at": 0.5},
        "checkpoint": {"every_steps": NUM_STEPS},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(tree))
    first, fast = trained("first"), trained("fast", "--optimizer.learning_rate", "1e-4")
    for index in range(num_runs):
        copy(first, Path("runs") / f"seed{index:04d}-{index:06x}", index)
    rng = np.random.default_rng(0)
    scores = (rng.random((NUM_ITEMS, num_stores)) < 0.6).astype(int)
    names = [f"m{index:03d}" for index in range(num_stores)]
    lines = [",".join(["item", *names]), *(",".join([f"q{i}", *map(str, row)]) for i, row in enumerate(scores))]
    Path("scores.csv").write_text("\n".join(lines) + "\n")
    burnish(["eval", "import", "scores.csv", "--kind", "csv"])
    arms = {
        "name": "many",
        "question": "Does a higher rate learn more?",
        "hypothesis": "Yes.",
        "recipe": "recipe.yaml",
        "arms": {"base": {}, "fast": {"optimizer.learning_rate": 1e-4}},
        "baseline": "base",
        "seeds": NUM_SEEDS,
    }
    Path("arms.yaml").write_text(yaml.safe_dump(arms))
    burnish(["experiment", "plan", "arms.yaml"])
    for arm, run in (("base", first), ("fast", fast)):
        for seed in range(NUM_SEEDS):
            copy(run, Path("experiments/many/runs") / f"{arm}-seed{seed}-{seed:06x}", seed)


def trained(name: str, *flags: str) -> Path:
    """A run of the recipe."""
    if (status := burnish(["train", "recipe.yaml", "--name", name, "--runs_folder", name, *flags])) != 0:
        raise SystemExit(status)
    (run,) = Path(name).iterdir()
    return run


def copy(run: Path, to: Path, index: int) -> None:
    """The same run under another name, without its weights."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("*.safetensors", "*.pt"))
    for name in ("run.json", "summary.json"):
        created = f"2026-01-01T{index // 3600:02d}:{index // 60 % 60:02d}:{index % 60:02d}Z"
        text = (to / name).read_text()
        (to / name).write_text(re.sub(r'("created": )"[^"]*"', rf'\1"{created}"', text, count=1))


def resolved(command: str) -> list[str]:
    """Its words, with the whole path where a word is the beginning of one."""
    words = command.split()
    return [str(next(Path().glob(f"{word}*"))) if "/" in word else word for word in words]


def report(name: str, command: list[str], repeats: int) -> None:
    """A line of the table; the statuses 0 and 1 are answers."""
    print(f"| {name} | {medians(command, repeats, statuses=(0, 1))} |", flush=True)


if __name__ == "__main__":
    main()
