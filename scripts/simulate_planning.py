"""False alarms of `burnish watch` over all looks, and whether the power that `burnish power` promises is reached.

    python scripts/simulate_planning.py            # twenty seconds on one core
    python scripts/simulate_planning.py --runs 500

Each row is a share of simulated experiments with its 95% Wilson interval. False alarms must not lie above alpha by more
than that interval; power must lie within two points of what the planner promised. What is simulated is the test itself,
never the formula. Exit status 1 if a row fails. Seeded: the same rows every time.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm, t

from burnish.stats.anytime import discordant_log_e, look_at_pairs
from burnish.stats.intervals import wilson_interval
from burnish.stats.power import (
    Clustered,
    OneProportion,
    PairedMeans,
    PairedProportions,
    SampledMeans,
    TwoMeans,
    TwoProportions,
    achieved_power,
    required_number,
)

ALPHA = 0.05
FIRST_LOOK, LAST_LOOK = 20, 400
Found = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Row:
    what: str
    found: int
    runs: int
    promised: float | None = None  # a power; None: false alarms

    @property
    def share(self) -> float:
        return self.found / self.runs

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.found, self.runs)

    @property
    def holds(self) -> bool:
        if self.promised is None:
            return self.interval[0] <= ALPHA
        return abs(self.share - self.promised) <= 0.02


def exact_p(only_b: NDArray[np.int64], discordant: NDArray[np.int64]) -> NDArray[np.float64]:
    """Two-sided exact McNemar."""
    return np.minimum(1, 2 * binom.cdf(np.minimum(only_b, discordant - only_b), discordant, 0.5))


def false_alarms(runs: int, seed: int = 0) -> list[Row]:
    """No difference; a look after every discordant item from the 20th to the 400th."""
    rng = np.random.default_rng([seed, 0])
    only_b = np.cumsum(rng.random((runs, LAST_LOOK)) < 0.5, axis=1)
    looks = np.arange(1, LAST_LOOK + 1)
    p_values = exact_p(only_b, looks)[:, FIRST_LOOK - 1 :]
    log_e = discordant_log_e(looks - only_b, only_b)
    watched = [look_at_pairs(*(rng.random((2, LAST_LOOK)) < 0.5)) for _ in range(runs)]
    scored = [look_at_pairs(*rng.beta(1, 2, (2, LAST_LOOK))) for _ in range(runs)]
    return [
        Row(what="e-process, every look", found=int((log_e.max(axis=1) >= -math.log(ALPHA)).sum()), runs=runs),
        Row(what="watch, right or wrong", found=sum(look.verdict != "go on" for look in watched), runs=runs),
        Row(what="watch, scores", found=sum(look.verdict != "go on" for look in scored), runs=runs),
        Row(what="interval misses, ever", found=sum(not look.low <= 0 <= look.high for look in watched), runs=runs),
        Row(what="exact test, last look only", found=int((p_values[:, -1] <= ALPHA).sum()), runs=runs),
    ]


def peeked(runs: int, seed: int = 0) -> Row:
    """What watch is for: the exact test, looked at after every discordant item. Held to nothing."""
    rng = np.random.default_rng([seed, 0])
    only_b = np.cumsum(rng.random((runs, LAST_LOOK)) < 0.5, axis=1)
    p_values = exact_p(only_b, np.arange(1, LAST_LOOK + 1))[:, FIRST_LOOK - 1 :]
    return Row(what="exact test, every look", found=int((p_values <= ALPHA).any(axis=1).sum()), runs=runs)


def paired_proportions(rng: np.random.Generator, runs: int, n: int) -> Found:
    only_a, only_b, _ = rng.multinomial(n, [0.08, 0.14, 0.78], size=runs).T
    return exact_p(only_b, only_a + only_b) <= ALPHA


def two_proportions(rng: np.random.Generator, runs: int, n: int) -> Found:
    a, b = rng.binomial(n, 0.5, runs) / n, rng.binomial(n, 0.6, runs) / n
    pooled = (a + b) / 2
    return np.abs(b - a) / np.sqrt(2 * pooled * (1 - pooled) / n) > norm.isf(ALPHA / 2)


def one_proportion(rng: np.random.Generator, runs: int, n: int) -> Found:
    return np.abs(rng.binomial(n, 0.37, runs) / n - 0.3) / math.sqrt(0.3 * 0.7 / n) > norm.isf(ALPHA / 2)


def two_means(rng: np.random.Generator, runs: int, n: int) -> Found:
    a, b = rng.normal(0, 1, (runs, n)), rng.normal(1.2, 1, (runs, n))
    pooled = (a.var(axis=1, ddof=1) + b.var(axis=1, ddof=1)) / 2
    return np.abs(b.mean(axis=1) - a.mean(axis=1)) / np.sqrt(2 * pooled / n) > t.isf(ALPHA / 2, 2 * n - 2)


def paired_means(rng: np.random.Generator, runs: int, n: int) -> Found:
    seeds = rng.normal(0, math.sqrt(0.5), (runs, n))  # correlation 0.5 over shared seeds
    a, b = (seeds + rng.normal(shift, math.sqrt(0.5), (runs, n)) for shift in (0, 1))
    return np.abs((b - a).mean(axis=1)) / ((b - a).std(axis=1, ddof=1) / math.sqrt(n)) > t.isf(ALPHA / 2, n - 1)


def sampled_means(rng: np.random.Generator, runs: int, n: int) -> Found:
    """Two scores of the same items, each the mean of four samples."""
    differences = rng.normal(0.06, 0.3, (runs, n)) + rng.normal(0, 0.4 * math.sqrt(2 / 4), (runs, n))
    return np.abs(differences.mean(axis=1)) / (differences.std(axis=1, ddof=1) / math.sqrt(n)) > norm.isf(ALPHA / 2)


def clustered(rng: np.random.Generator, runs: int, n: int) -> Found:
    """Clusters of five, correlation 0.2; two arms, each with the cluster-robust error of its mean."""
    size, share, count = 5, 0.2, n // 5
    means, squares = [], []
    for chance in (0.5, 0.6):
        # an item copies its cluster's coin with chance sqrt(icc), so that two items agree by icc beyond chance
        coin = rng.random((runs, count, 1)) < chance
        own = rng.random((runs, count, size)) < chance
        copies = rng.random((runs, count, size)) < math.sqrt(share)
        by_cluster = np.where(copies, coin, own).mean(axis=2)
        means.append(by_cluster.mean(axis=1))
        squares.append(by_cluster.var(axis=1, ddof=1) / count)
    return np.abs(means[1] - means[0]) / np.sqrt(squares[0] + squares[1]) > norm.isf(ALPHA / 2)


def powers(runs: int, seed: int = 0) -> list[Row]:
    """The planner's number for 80%, then the test on that many, again and again."""
    two = TwoProportions(baseline=0.5)
    plans: list[tuple[str, object, float, Callable[[np.random.Generator, int, int], Found]]] = [
        ("paired proportions, exact McNemar", PairedProportions(discordance=0.22), 0.06, paired_proportions),
        ("two proportions, z test", two, 0.1, two_proportions),
        ("one proportion, score test", OneProportion(baseline=0.3), 0.07, one_proportion),
        ("seeds, t test", TwoMeans(sd=1), 1.2, two_means),
        ("shared seeds, paired t test", PairedMeans(sd_difference=1), 1.0, paired_means),
        ("four samples per item", SampledMeans(item_sd=0.3, sample_sd=0.4, samples=4), 0.06, sampled_means),
        ("two proportions in clusters of 5", Clustered(design=two, cluster_size=5, icc=0.2), 0.1, clustered),
    ]
    rows = []
    for index, (what, design, effect, simulate) in enumerate(plans):
        n = required_number(design, effect)
        n += -n % 5 if isinstance(design, Clustered) else 0  # whole clusters
        promised = achieved_power(design, n, effect)
        rng = np.random.default_rng([seed, 1, index])
        parts = [simulate(rng, share, n) for share in np.diff(np.linspace(0, runs, 11).astype(int)) if share]
        found = np.concatenate(parts)
        rows.append(Row(what=f"{what}, n = {n}", found=int(found.sum()), runs=len(found), promised=promised))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=2_000, help="experiments per row of false alarms; ten times for power"
    )
    runs = parser.parse_args().runs
    alarms, power = false_alarms(runs), powers(10 * runs)
    print(f"| no difference: found anyway at alpha {ALPHA:g} | share | 95% interval | |")
    print("|---|---|---|---|")
    for row in (peeked(runs), *alarms):
        word = "not held to alpha" if row.what == "exact test, every look" else "holds" if row.holds else "FAILS"
        print(f"| {row.what} | {row.share:.3f} | {row.interval[0]:.3f}, {row.interval[1]:.3f} | {word} |")
    print("\n| a difference as planned for | promised | found | 95% interval | |")
    print("|---|---|---|---|---|")
    for row in power:
        word = "holds" if row.holds else "FAILS"
        interval = f"{row.interval[0]:.3f}, {row.interval[1]:.3f}"
        print(f"| {row.what} | {row.promised:.3f} | {row.share:.3f} | {interval} | {word} |")
    return 0 if all(row.holds for row in (*alarms, *power)) else 1


if __name__ == "__main__":
    sys.exit(main())
