"""Run the quickstart recipe with seeds 0 to N - 1, one after the other, and print what each run found.

    python scripts/quickstart_seeds.py 10 --runs runs-seeds

The table in docs/log.md comes from here. A run that fails is a row too.
"""

import argparse
import platform
import subprocess
import sys
from pathlib import Path

from burnish.evaluation.held_out import compare_items
from burnish.reproducibility.run_folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs-seeds"))
    arguments = parser.parse_args()
    print("| seed | items | before | after | difference | 95% CI | McNemar p | training s | peak GB |")
    print("|---|---|---|---|---|---|---|---|---|")
    excluded = 0
    for seed in range(arguments.seeds):
        command = [sys.executable, "-m", "burnish", "train", "quickstart", "--seed", str(seed)]
        command += ["--name", f"seed-{seed}", "--runs_folder", str(arguments.runs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
        if done.returncode != 0:
            print(f"| {seed} | failed: {done.stderr.strip()[-200:]} |", flush=True)
            continue
        run = RunFolder.find(f"seed-{seed}-", arguments.runs)
        first, last = (run.read_step("evaluations", run.steps("evaluations")[index]) for index in (0, -1))
        result = compare_items(first, last)
        seconds = sum(line["seconds"] for line in run.metrics())
        peak = max(line["peak_memory_bytes"] for line in run.metrics()) / 1e9
        excluded += result.low > 0
        print(
            f"| {seed} | {result.n} | {result.mean_a:.2f} | {result.mean_b:.2f} | {result.difference:+.2f} | "
            f"[{result.low:+.3f}, {result.high:+.3f}] | {result.p_value:.1e} | {seconds:.0f} | {peak:.2f} |",
            flush=True,
        )
    print(f"\ninterval above 0: {excluded} of {arguments.seeds}; {platform.platform()}")


if __name__ == "__main__":
    main()
