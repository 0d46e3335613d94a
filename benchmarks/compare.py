"""burnish and TRL side by side: the same work, alternating, medians, as ratios.

    python benchmarks/compare.py --peer-scripts DIR [--peer-python PY] [--pairs 3] [sft dpo grpo]

`make bench` makes both environments and calls it. The peer's scripts (trl_sft.py, trl_dpo.py, trl_grpo.py) print a line
`RESULT name {json}` as `burnish_side.py` does. Each program is started `--pairs` times, in turn; the median of each
side and the ratio of the medians are printed as a table. burnish scores the reference of dpo once before training, TRL
in every step: beside the ratio of their steps stands that of TRL's to a step and its batch's share of that pass.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from burnish.config.schema import ModelConfig
from burnish.models.load import find_dtype, find_model

PEER = {"sft": ["trl_sft.py"], "dpo": ["trl_dpo.py"], "grpo": ["trl_grpo.py", "--beta", "0"]}
HERE = Path(__file__).parent
HEADER = """| work | TRL 1.16, s | burnish, s | ratio | TRL GB | burnish GB | more |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Read the arguments, run both sides in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=list(PEER))
    parser.add_argument("--peer-scripts", type=Path, required=True)
    parser.add_argument("--peer-python", type=os.path.abspath, default=sys.executable)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    if missing := [PEER[work][0] for work in arguments.works if not (arguments.peer_scripts / PEER[work][0]).is_file()]:
        parser.error(f"--peer-scripts {arguments.peer_scripts}: has no {', '.join(missing)}")
    model = find_model("smollm2-135m")
    dtype = find_dtype(ModelConfig(path=model))  # of both sides: what this processor multiplies fastest
    print(f"{platform.platform()}, {processor()}, {os.cpu_count()} cores, {dtype}\n")
    print(HEADER)
    for work in arguments.works:
        ours, theirs = [], []
        for _ in range(arguments.pairs):
            shared = ["--steps", str(arguments.steps)]
            peer = [arguments.peer_python, *PEER[work], "--dtype", dtype, *shared]
            theirs.append(result(peer, arguments.peer_scripts, model))
            ours.append(result([sys.executable, str(HERE / "burnish_side.py"), work, *shared], HERE, model))
        print(row(work, theirs, ours), flush=True)


def result(command: list[str], folder: Path, model: str) -> dict[str, Any]:
    """What a program's RESULT line says.

    Raises:
        SystemExit: it printed none.
    """
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "BENCH_MODEL": model}, capture_output=True, text=True, timeout=1800
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT"):
            found: dict[str, Any] = json.loads(line.split(" ", 2)[2])
            return found
    raise SystemExit(f"{' '.join(command)} printed no result:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")


def row(work: str, theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    """A line of the table."""

    def median(runs: list[dict[str, Any]], key: str) -> float:
        return statistics.median(run[key] for run in runs)

    step = median(theirs, "step"), median(ours, "step")
    more = ""
    if work == "grpo":
        rate = median(theirs, "gen_tok_s"), median(ours, "gen_tok_s")
        more = f"generation {rate[0]:.0f} and {rate[1]:.0f} tok/s, {rate[1] / rate[0]:.2f}x"
    if reference := median(ours, "reference"):
        more = f"{step[0] / (step[1] + reference):.2f}x with the reference, {reference:.2f} s"
    return (
        f"| {work} | {step[0]:.2f} | {step[1]:.2f} | {step[0] / step[1]:.2f}x | {median(theirs, 'peak_rss_gb'):.2f} | "
        f"{median(ours, 'peak_rss_gb'):.2f} | {more} |"
    )


def processor() -> str:
    """Its name, where Linux says it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
