"""What must not be concluded from a comparison, or only with care."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from burnish.evaluation.comparable import Arm, CommonItems
from burnish.evaluation.table import ScoreTable
from burnish.stats.clustered import clustered_mean
from burnish.stats.seeds import FEW_SEEDS
from burnish.stats.selection import luck_of_the_best

_FEW_CLUSTERS = 20


def cautions(arms: Sequence[Arm], items: CommonItems) -> list[str]:
    """A line for each."""
    return [*_of_missing_scores(arms, items), *_of_picking(arms, items), *_of_seeds(arms), *_of_clusters(items)]


def _of_missing_scores(arms: Sequence[Arm], items: CommonItems) -> list[str]:
    tables = [table for arm in arms for table in arm.tables]
    missing = [int(np.isnan(table.scores_IK).sum()) for table in tables]
    if not any(missing):
        return []
    counts = ", ".join(f"{table.label} {count:,}" for table, count in zip(tables, missing, strict=True))
    num_items = len(tables[0].ids)
    lost = num_items - len(items.ids)
    whole = f", and with them {lost:,} of {num_items:,} items that have no score in some table" if lost else ""
    return [f"answers without a score are left out ({counts}){whole}"]


def _of_picking(arms: Sequence[Arm], items: CommonItems) -> list[str]:
    said = []
    means = iter(items.means_TI)
    for table in (table for arm in arms for table in arm.tables):
        means_I = next(means)
        if table.origin.get("was_selected_on"):
            error = clustered_mean(means_I, range(len(means_I)) if items.clusters is None else items.clusters).cr1
            said.append(
                f"{table.label} is not its run's last checkpoint, and the run was evaluated on these items: if it was "
                f"picked by its scores there, luck is part of its mean{_luck(table, error)}; "
                "report it on items that picked nothing"
            )
    return said


def _luck(table: ScoreTable, error: float) -> str:
    count = table.origin.get("selected_among")
    if not isinstance(count, int) or count < 2 or math.isnan(error):
        return ""
    return f" (up to about {luck_of_the_best(count) * error:.3f}, as the best of {count} that are equal)"


def _of_seeds(arms: Sequence[Arm]) -> list[str]:
    sizes = [len(arm.tables) for arm in arms]
    if max(sizes) == 1:
        return ["one run each: this is about these checkpoints; a claim about a method needs several seeds"]
    said = []
    for arm, size in zip(arms, sizes, strict=True):
        if size == 1:
            said.append(f"{arm.label} is one run: it is held as a fixed checkpoint, not as a method")
        elif size < FEW_SEEDS:
            said.append(
                f"{arm.label} has {size} seeds: so few cannot show whether t holds for them, and leave out all "
                "but large differences"
            )
        if size > 1 and any(table.origin.get("seed") is None for table in arm.tables):
            said.append(f"{arm.label}: not every run says its seed, so that nothing shows they are different runs")
    return said


def _of_clusters(items: CommonItems) -> list[str]:
    count = None if items.clusters is None else len(set(items.clusters))
    if count is None or count >= _FEW_CLUSTERS:
        return []
    return [f"{count} clusters are few: the interval is rough, the sign-flip test is not"]
