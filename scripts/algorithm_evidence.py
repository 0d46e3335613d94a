"""Train SmolLM2-135M with every algorithm on real or generated data and print what each run found on held-out items.

    python scripts/algorithm_evidence.py --data DATA --runs runs-evidence [NAME ...]

DATA holds gsm8k/train.jsonl and pref_pandalm/testset-v1.json (people's labels, Wang et al. 2023). The table in
docs/log.md comes from here. A run that fails, or finds nothing, is a row too.
"""

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path

from burnish.algorithms.session import report
from burnish.reproducibility.run_folder import RunFolder

SUMS = [
    "--task.source=reasoning-gym:chain_sum",
    '--task.options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "size": 4000}',
    "--rollout.max_tokens=24",
    "--optimizer.warmup_steps=2",
]
LABELS = [
    "--data.source={data}/pref_pandalm/testset-v1.json",
    "--data.transform=burnish.data.formats:pandalm",
    "--data.max_tokens=400",
    "--data.num_held_out=100",
]
RUNS = {
    "grpo": ["quickstart"],
    "ppo": ["ppo", *SUMS, "--train.num_steps=25", "--optimizer.learning_rate=2e-5", "--critic.learning_rate=5e-5"],
    "rejection_sampling": ["rejection_sampling", *SUMS, "--train.num_steps=20", "--optimizer.learning_rate=2e-5"],
    "online_dpo": ["online_dpo", *SUMS, "--train.num_steps=40", "--optimizer.learning_rate=3e-5"],
    "distillation": [
        "distillation",
        *SUMS,
        "--train.num_steps=20",
        "--optimizer.learning_rate=3e-5",
        '--teachers=[{"path": "{teacher}"}]',
    ],
    "reward_model": ["reward_model", *LABELS, "--train.num_steps=50", "--optimizer.learning_rate=2e-5"],
    "dpo": ["dpo", *LABELS, "--train.num_steps=40", "--optimizer.learning_rate=1e-5"],
    "kto": ["kto", *LABELS, "--train.num_steps=40", "--optimizer.learning_rate=1e-5"],
    "sft": [
        "sft",
        "--data.source={data}/gsm8k/train.jsonl",
        "--data.transform=burnish.data.formats:gsm8k",
        "--train.num_steps=25",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RUNS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs-evidence"))
    arguments = parser.parse_args()
    print(f"{platform.platform()}\n\n| algorithm | result | minutes in all |\n|---|---|---|")
    for name in arguments.names or RUNS:
        teacher = ""
        if name == "distillation":  # the model that grpo made
            teacher = str(next((arguments.runs / "grpo").glob("*/checkpoints/step-*")))
        command = _filled_in(RUNS[name][1:], arguments.data, teacher)
        began = time.monotonic()
        runs = arguments.runs / name
        done = subprocess.run(
            [sys.executable, "-m", "burnish", "train", RUNS[name][0], *command, f"--runs_folder={runs}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=3600,
        )
        minutes = (time.monotonic() - began) / 60
        found = (
            report(RunFolder.find("last", runs)) if done.returncode == 0 else f"failed: {done.stderr.strip()[-200:]}"
        )
        print(f"| {name} | {found} | {minutes:.1f} |", flush=True)


def _filled_in(command: list[str], data: Path, teacher: str) -> list[str]:
    return [each.replace("{data}", str(data)).replace("{teacher}", teacher) for each in command]


if __name__ == "__main__":
    main()
