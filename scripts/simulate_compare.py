"""How often `burnish compare` says more than is true, with the simulation's own interval.

    python scripts/simulate_compare.py [--runs 1000] [--only seeds]

In the first cases no arm differs from another, and the rate is that of better or worse, of any claim or slice; in the
next B is off by the margin exactly, and the rate is that of "equivalent". Both must be at most alpha = 0.05. The last
case does what should not be done, and shows that the simulation would see it.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from burnish.evaluation.comparable import Arm
from burnish.evaluation.comparison import Comparison, compare_arms
from burnish.evaluation.table import ScoreTable
from burnish.stats.intervals import wilson_interval

ALPHA = 0.05
DIFFERS = {"better", "worse"}


def arm(
    *scores_I: ArrayLike, clusters: Sequence[str] | None = None, kinds: Sequence[str] = (), first_seed: int = 0
) -> Arm:
    """One run for each row of scores, items x samples or items."""
    tables: list[ScoreTable] = []
    for scores in scores_I:
        array = np.asarray(scores, dtype=np.float64)
        table = ScoreTable(
            label="",
            ids=tuple(map(str, range(len(array)))),
            scores_IK=array.reshape(len(array), -1),
            clusters=None if clusters is None else tuple(clusters),
            slices={"kind": tuple(kinds)} if kinds else {},
            settings={},
            origin={"seed": first_seed + len(tables)},
        )
        tables.append(table)
    return Arm(label="", tables=tuple(tables))


def differs(found: Comparison) -> bool:
    """Whether any claim says better or worse."""
    return any(claim.verdict in DIFFERS for claim in found.claims)


def coins(rng: np.random.Generator, n: int) -> NDArray[np.bool_]:
    return rng.random(n) < 0.5


def flipped(rng: np.random.Generator, a: NDArray[np.bool_], discordance: float) -> NDArray[np.bool_]:
    """A system as good as `a` that differs on a share of items."""
    return np.where(rng.random(len(a)) < discordance, ~a, a)


def right_or_wrong(rng: np.random.Generator) -> bool:
    a = coins(rng, 300)
    return differs(compare_arms([arm(a), arm(flipped(rng, a, 0.2))]))


def scores(rng: np.random.Generator) -> bool:
    p = rng.beta(1, 1, size=60)[:, None]
    a, b = (rng.random((60, 4)) < p for _ in "ab")
    return differs(compare_arms([arm(a), arm(b)]))


def passages(rng: np.random.Generator) -> tuple[NDArray[np.float64], list[str]]:
    """Twenty passages of eight questions, whose differences share a third of their variance."""
    moves = np.repeat(rng.normal(0, 1, size=20), 8) + rng.normal(0, 1.4, size=160)
    return moves, np.repeat(np.arange(20), 8).astype(str).tolist()


def clustered(rng: np.random.Generator) -> bool:
    moves, clusters = passages(rng)
    return differs(compare_arms([arm(np.zeros(160), clusters=clusters), arm(moves, clusters=clusters)]))


def clusters_ignored(rng: np.random.Generator) -> bool:
    moves, _ = passages(rng)
    return differs(compare_arms([arm(np.zeros(160)), arm(moves)]))


def trained(rng: np.random.Generator, shifts_S: NDArray[np.float64], hard_I: NDArray[np.float64]) -> list[ArrayLike]:
    """Right answers of runs that are better or worse by their seed."""
    return [rng.random(len(hard_I)) < np.clip(hard_I + shift, 0, 1) for shift in shifts_S]


def seeds_apart(rng: np.random.Generator) -> bool:
    hard_I = rng.beta(2, 2, size=100)
    a, b = (trained(rng, rng.normal(0, 0.05, size=size), hard_I) for size in (3, 5))
    return differs(compare_arms([arm(*a), arm(*b)]))


def seeds_shared(rng: np.random.Generator) -> bool:
    hard_I, shared_S = rng.beta(2, 2, size=100), rng.normal(0, 0.05, size=5)
    a, b = (trained(rng, shared_S + rng.normal(0, 0.03, size=5), hard_I) for _ in "ab")
    return differs(compare_arms([arm(*a), arm(*b)]))


def few_seeds(rng: np.random.Generator, num_seeds: int, *, are_shared: bool) -> bool:
    """Items and seeds that matter alike, and seeds that are near each other by chance."""
    hard_I = rng.normal(0, 1, size=100)
    both = []
    for first_seed in (0, 0 if are_shared else num_seeds):
        own_I, own_S = hard_I + rng.normal(0, 0.22, size=100), rng.normal(0, 0.06, size=num_seeds)
        scores_SI = own_I + own_S[:, None] + rng.normal(0, 0.05, size=(num_seeds, 100))
        both.append(arm(*scores_SI, first_seed=first_seed))
    return differs(compare_arms(both))


def tastes(rng: np.random.Generator) -> Comparison:
    """Methods that are equal over all seeds and items; what these seeds and these items do matters alike."""
    hard_I = rng.normal(0, 1, size=100)
    both = []
    for first_seed in (0, 5):
        own_I, own_S = hard_I + rng.normal(0, 0.22, size=100), rng.normal(0, 0.05, size=5)
        both.append(arm(*(own_I + own_S[:, None] + rng.normal(0, 0.1, size=(5, 100))), first_seed=first_seed))
    return compare_arms(both)


def seeds_and_tastes(rng: np.random.Generator) -> bool:
    return differs(tastes(rng))


def each_alone(rng: np.random.Generator) -> bool:
    """Both tests find a difference, each of which takes for sure what the other draws."""
    (claim,) = tastes(rng).claims
    return all(each.p_value < ALPHA for each in claim.differences[1:])


def ten_slices(rng: np.random.Generator) -> bool:
    """Any slice; the claim over all items is not counted."""
    a, kinds = coins(rng, 400), [str(index % 10) for index in range(400)]
    both = [arm(a, kinds=kinds), arm(flipped(rng, a, 0.5), kinds=kinds)]
    found = compare_arms(both, slice_field="kind")
    return any(each.verdict in DIFFERS for each in found.claims[0].slices)


def three_claims(rng: np.random.Generator) -> bool:
    """Against one baseline."""
    a = coins(rng, 200)
    return differs(compare_arms([arm(a), *(arm(flipped(rng, a, 0.3)) for _ in range(3))]))


def margin_right_or_wrong(rng: np.random.Generator) -> bool:
    """B loses 0.05 more items than it wins; margin 0.05."""
    drawn = rng.random(600)
    a = drawn >= 0.05  # B wins the others
    b = np.where(drawn < 0.05, True, np.where(drawn < 0.15, False, a))
    return compare_arms([arm(a), arm(b)], margin=0.05).claims[0].verdict == "equivalent"


def margin_scores(rng: np.random.Generator) -> bool:
    both = [arm(np.zeros(50)), arm(np.round(rng.normal(0.5, 1, size=50), 1))]
    return compare_arms(both, margin=0.5).claims[0].verdict == "equivalent"


def margin_seeds(rng: np.random.Generator) -> bool:
    """Arms that differ by 0.1 but for their seeds; margin 0.1."""
    hard_I = rng.beta(2, 2, size=100) * 0.8
    a, b = (trained(rng, shift + rng.normal(0, 0.03, size=5), hard_I) for shift in (0.05, 0.15))
    return compare_arms([arm(*a), arm(*b)], margin=0.1).claims[0].verdict == "equivalent"


NULL: dict[str, Callable[[np.random.Generator], bool]] = {
    "right or wrong, 300 items": right_or_wrong,
    "scores, 60 items x 4 samples": scores,
    "20 clusters of 8 items": clustered,
    "3 seeds against 5 others, 100 items": seeds_apart,
    "2 shared seeds, 100 items": partial(few_seeds, num_seeds=2, are_shared=True),
    "3 shared seeds, 100 items": partial(few_seeds, num_seeds=3, are_shared=True),
    "4 shared seeds, 100 items": partial(few_seeds, num_seeds=4, are_shared=True),
    "2 seeds of each arm, 100 items": partial(few_seeds, num_seeds=2, are_shared=False),
    "5 seeds that both arms share, 100 items": seeds_shared,
    "5 seeds of each arm, 100 items that suit one or the other": seeds_and_tastes,
    "any of 10 slices (Benjamini-Hochberg)": ten_slices,
    "any of 3 claims against one baseline (Holm)": three_claims,
    "equivalent at the margin, right or wrong, 600 items": margin_right_or_wrong,
    "equivalent at the margin, scores, 50 items": margin_scores,
    "equivalent at the margin, 5 seeds of each arm": margin_seeds,
}
CONTROL = {
    "(control) 20 clusters of 8 items, the clusters ignored": clusters_ignored,
    "(control) 5 seeds, 100 items that suit one or the other, seeds and items each alone": each_alone,
}


def false_alarms(case: Callable[[np.random.Generator], bool], runs: int, seed: int) -> int:
    """In how many of `runs` comparisons the case says what is not true."""
    rng = np.random.default_rng([seed, runs])
    return sum(case(rng) for _ in range(runs))


def main() -> None:
    """Read the arguments, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args()
    began = time.process_time()
    print(f"{arguments.runs} comparisons each, alpha {ALPHA}, seed {arguments.seed}\n")
    print("| case | false | 95% CI | at most nominal |\n|---|---|---|---|")
    for name, case in (NULL | CONTROL).items():
        if arguments.only not in name:
            continue
        count = false_alarms(case, arguments.runs, arguments.seed)
        low, high = wilson_interval(count, arguments.runs)
        word = "yes" if low <= ALPHA else "NO"
        print(f"| {name} | {count / arguments.runs:.2%} | {low:.2%} to {high:.2%} | {word} |", flush=True)
    print(f"\n{time.process_time() - began:.0f} s of one core")


if __name__ == "__main__":
    main()
