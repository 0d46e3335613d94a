"""What a comparison of two large evaluations costs: 100,000 items x 16 samples, right or wrong, and real scores.

    python benchmarks/compare_tables.py [--items 100000] [--samples 16]

The stores are written first; measured is `burnish compare A B --margin 0.01` as a process of its own, from its start
to its verdict: seconds by the clock and of the processor, and peak resident memory.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from burnish.evaluation.sealed import SEALED, hashes_of

KINDS = ("right or wrong", "scores", "one sample, right or wrong", "scores in clusters of five")


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measured(*arguments.measure)))
        return
    print(f"{platform.platform()}, {os.cpu_count()} cores; {arguments.items:,} items x {arguments.samples} samples\n")
    print("| stores | seconds | CPU seconds | peak MB | test | verdict |\n|---|---|---|---|---|---|")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            stores = written(kind, Path(folder), arguments.items, arguments.samples)
            # a process whose only child is the comparison, as the peak is that of all children
            done = subprocess.run(
                [sys.executable, __file__, "--measure", *stores],
                capture_output=True,
                text=True,
                check=True,
                timeout=600,
            )
        found = json.loads(done.stdout)
        cost = f"{found['seconds']:.1f} | {found['cpu_seconds']:.1f} | {found['peak_bytes'] / 1e6:.0f}"
        print(f"| {kind} | {cost} | {found['test']} | {found['verdict']} |", flush=True)


def measured(a: str, b: str) -> dict[str, object]:
    """Run the command on two stores."""
    command = [sys.executable, "-m", "burnish", "compare", a, b, "--margin", "0.01", "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    seconds = time.perf_counter() - began
    claim = json.loads(done.stdout)["claims"][0]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "test": claim["differences"][0]["test"],
        "verdict": claim["verdict"],
    }


def written(kind: str, folder: Path, num_items: int, num_samples: int) -> list[str]:
    """Two stores of a kind, as far as a comparison reads them."""
    rng = np.random.default_rng(0)
    hard_I1 = rng.random((num_items, 1))
    stores = []
    for label, shift in (("a", 0.0), ("b", 0.003)):
        drawn_IK = rng.random((num_items, 1 if kind.startswith("one") else num_samples))
        is_score = kind.startswith("scores")
        scores_IK = drawn_IK + hard_I1 + shift if is_score else (drawn_IK < hard_I1 + shift).astype(np.float64)
        store = folder / label
        store.mkdir()
        with (store / "scores.jsonl").open("w") as file:
            file.writelines(_line(index, kind, row) for index, row in enumerate(scores_IK))
        record = {"format": 1, "label": label, "status": "done", "settings": {}, "origin": {}}
        record["samples_per_item"] = drawn_IK.shape[1]
        for name in set(SEALED) - {"scores.jsonl"}:  # which a comparison reads for their hashes alone
            (store / name).write_text("")
        record["sha256"] = hashes_of(store, record)
        (store / "eval.json").write_text(json.dumps(record))
        stores.append(str(store))
    return stores


def _line(index: int, kind: str, scores: NDArray[np.float64]) -> str:
    cluster = str(index // 5) if "clusters" in kind else None
    slices = {"kind": "abcdefgh"[index % 8]}
    line = {"id": f"item-{index}", "cluster": cluster, "slices": slices, "scores": scores.tolist()}
    return json.dumps(line) + "\n"


if __name__ == "__main__":
    main()
