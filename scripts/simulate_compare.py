"""How often `burnish compare` calls a difference where there is none, with the simulation's own interval.

    python scripts/simulate_compare.py [--runs 2000]

In every case A and B are equal; the rate of better or worse must be at most alpha = 0.05 (of anything found, among
ten slices, too). The last rows make A and B differ by the margin exactly: the rate is that of "equivalent".
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from burnish.stats.difference import verdict_of
from burnish.stats.intervals import wilson_interval
from burnish.stats.multiple import benjamini_hochberg, holm
from burnish.stats.paired import compare_paired
from burnish.stats.seeds import compare_seeds

ALPHA = 0.05
DIFFERS = {"better", "worse"}


def paired_binary(rng: np.random.Generator, n: int = 300, discordance: float = 0.2) -> bool:
    a = rng.random(n) < 0.5
    return verdict_of(compare_paired(a, np.where(rng.random(n) < discordance, ~a, a))) in DIFFERS


def paired_scores(rng: np.random.Generator) -> bool:
    """Means of four samples of 60 items."""
    p = rng.beta(1, 1, size=60)
    a, b = (rng.binomial(4, p) / 4 for _ in "ab")
    return verdict_of(compare_paired(a, b)) in DIFFERS


def clustered(rng: np.random.Generator) -> bool:
    """Twenty passages of eight questions, whose differences share a third of their variance."""
    moves = np.repeat(rng.normal(0, 1, size=20), 8) + rng.normal(0, 1.4, size=160)
    clusters = np.repeat(np.arange(20), 8).tolist()
    return verdict_of(compare_paired(np.zeros(160), moves, clusters=clusters)) in DIFFERS


def clusters_ignored(rng: np.random.Generator) -> bool:
    """The same without saying so: what goes wrong."""
    moves = np.repeat(rng.normal(0, 1, size=20), 8) + rng.normal(0, 1.4, size=160)
    return verdict_of(compare_paired(np.zeros(160), moves)) in DIFFERS


def seeds_apart(rng: np.random.Generator) -> bool:
    a, b = rng.normal(0, 0.02, size=3), rng.normal(0, 0.05, size=5)
    return verdict_of(compare_seeds(a, b, is_paired=False)) in DIFFERS


def seeds_shared(rng: np.random.Generator) -> bool:
    shared = rng.normal(0, 0.05, size=5)
    a, b = (shared + rng.normal(0, 0.02, size=5) for _ in "ab")
    return verdict_of(compare_seeds(a, b, is_paired=True)) in DIFFERS


def _many(rng: np.random.Generator, count: int) -> list[float]:
    found = []
    for _ in range(count):
        a = rng.random(100) < 0.5
        found.append(compare_paired(a, np.where(rng.random(100) < 0.3, ~a, a)).p_value)
    return found


def ten_slices(rng: np.random.Generator) -> bool:
    return bool((benjamini_hochberg(_many(rng, 10)) < ALPHA).any())


def five_claims(rng: np.random.Generator) -> bool:
    return bool((holm(_many(rng, 5)) < ALPHA).any())


def at_the_margin_binary(rng: np.random.Generator) -> bool:
    """B loses 0.05 more items than it wins; margin 0.05."""
    a, drawn = np.ones(600), rng.random(600)
    a[drawn < 0.05] = 0  # B wins these
    b = np.where(drawn < 0.05, 1.0, np.where(drawn < 0.15, 0.0, a))
    return verdict_of(compare_paired(a, b, margin=0.05)) == "equivalent"


def at_the_margin_scores(rng: np.random.Generator) -> bool:
    return verdict_of(compare_paired(np.zeros(50), rng.normal(0.5, 1, size=50), margin=0.5)) == "equivalent"


NULL: dict[str, Callable[[np.random.Generator], bool]] = {
    "right or wrong, 300 items, exact McNemar": paired_binary,
    "scores, 60 items x 4 samples, sign flips": paired_scores,
    "20 clusters of 8, cluster sign flips": clustered,
    "seeds, 3 against 5, Welch": seeds_apart,
    "seeds, 5 shared, paired t": seeds_shared,
    "any of 10 slices, Benjamini-Hochberg": ten_slices,
    "any of 5 claims, Holm": five_claims,
    "called equivalent at the margin, right or wrong": at_the_margin_binary,
    "called equivalent at the margin, scores": at_the_margin_scores,
}
CONTROL = {"(control) the clusters ignored": clusters_ignored}


def false_alarms(case: Callable[[np.random.Generator], bool], runs: int, seed: int) -> int:
    rng = np.random.default_rng([seed, runs])
    return sum(case(rng) for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    print(f"{arguments.runs} runs each, alpha {ALPHA}\n\n| case | false alarms | 95% CI | at most nominal |")
    print("|---|---|---|---|")
    for name, case in (NULL | CONTROL).items():
        count = false_alarms(case, arguments.runs, arguments.seed)
        low, high = wilson_interval(count, arguments.runs)
        word = "yes" if low <= ALPHA else "NO"
        print(f"| {name} | {count / arguments.runs:.2%} | {low:.2%} to {high:.2%} | {word} |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
