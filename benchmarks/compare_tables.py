"""What a comparison of two large tables costs: 100,000 items x 16 samples, right or wrong, and real scores.

    python benchmarks/compare_tables.py [--items 100000] [--samples 16]

Each kind is compared in a process of its own. Printed are the seconds of the comparison and the peak resident memory.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time

import numpy as np

from burnish.evaluation.comparison import Arm, compare_arms
from burnish.evaluation.table import ScoreTable

KINDS = ("binary", "scores", "one binary sample", "clustered scores")


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--kind", choices=KINDS, help="measure this one here")
    arguments = parser.parse_args()
    if arguments.kind is not None:
        print(json.dumps(measure(arguments.kind, arguments.items, arguments.samples)))
        return
    print(f"{platform.platform()}, {os.cpu_count()} cores; {arguments.items:,} items x {arguments.samples} samples\n")
    print("| tables | seconds | peak MB | test | verdict |\n|---|---|---|---|---|")
    for kind in KINDS:
        command = [sys.executable, __file__, "--kind", kind]
        command += ["--items", str(arguments.items), "--samples", str(arguments.samples)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        found = json.loads(done.stdout)
        shown = f"{found['seconds']:.1f} | {found['peak_bytes'] / 1e6:.0f} | {found['test']} | {found['verdict']}"
        print(f"| {kind} | {shown} |", flush=True)


def measure(kind: str, num_items: int, num_samples: int) -> dict[str, object]:
    """Compare two random tables of a kind."""
    rng = np.random.default_rng(0)
    ids = tuple(f"item-{index}" for index in range(num_items))
    clusters = tuple(str(index // 5) for index in range(num_items)) if kind.startswith("clustered") else None
    hard_I1 = rng.random((num_items, 1))
    tables = []
    for label, shift in (("a", 0.0), ("b", 0.003)):
        shape = (num_items, 1 if kind.startswith("one") else num_samples)
        drawn = rng.random(shape)
        scores_IK = drawn + hard_I1 + shift if "scores" in kind else (drawn < hard_I1 + shift).astype(np.float64)
        tables.append(
            ScoreTable(label=label, ids=ids, scores_IK=scores_IK, clusters=clusters, slices={}, settings={}, origin={})
        )
    began = time.perf_counter()
    found = compare_arms([Arm(label=table.label, tables=(table,)) for table in tables], margin=0.01)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "test": found.claims[0].over_items.test,
        "verdict": found.claims[0].verdict,
    }


if __name__ == "__main__":
    main()
