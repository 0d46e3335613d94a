"""How sure a model was of its answers, from what its store holds, and whether it may be that sure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from burnish.evaluation.choosing import measures_of
from burnish.evaluation.figures import Figure, clusters_of, usable_scores
from burnish.evaluation.sample_figures import SampleGrid
from burnish.stats.calibration import Calibration, calibration

OF_CHOICES = "likelihood of the choice"
OF_VOTES = "share of the vote"


def calibration_of(
    grid: SampleGrid, items: Sequence[Mapping[str, Any]], normalise: str | None, *, level: float = 0.95
) -> tuple[str, Calibration] | None:
    """(what was taken as confidence, how it is calibrated) of one answer per item; None where no confidence is known.

    Answers that were compared: the softmax of what they were compared by, `normalise` as there, so for a pair judged by
    a reward model the chance that the Bradley-Terry model gives. Several parsed answers: the share of an item's answers
    that gave the commonest (of several the first), which is right or wrong as its first sample; an item without any
    parsed answer has none.
    """
    if "compared" in grid.samples_IK[0][0]:
        what, found = OF_CHOICES, _of_choices(grid, items, normalise or "none")
    else:
        what, found = OF_VOTES, _of_votes(grid)
    if not found:
        return None
    clusters = clusters_of(grid.table)
    return what, calibration(
        [sure for _, sure, _ in found],
        [right for _, _, right in found],
        items=[clusters[row] for row, _, _ in found],
        level=level,
    )


def calibration_figure(what: str, found: Calibration) -> Figure:
    """The expected calibration error as a figure; its method says what chance alone would give."""
    bins = f"{len(found.bins)} bins of equal mass" if len(found.bins) > 1 else "1 bin"
    return Figure(
        measure="calibration error",
        of=what,
        value=found.error,
        low=found.low,
        high=found.high,
        n=found.n,
        method=f"{bins}; by chance alone {found.error_if_calibrated:.3f}, p {found.p_value:.2g}",
    )


def _of_choices(grid: SampleGrid, items: Sequence[Mapping[str, Any]], normalise: str) -> list[tuple[int, float, float]]:
    right = {item["id"]: item["right"] for item in items}
    found = []
    for row, (name, (line,)) in enumerate(zip(grid.table.ids, grid.samples_IK, strict=True)):
        shares = softmax(np.array(measures_of(line["compared"], normalise)))
        chosen = int(np.argmax(shares))
        found.append((row, float(shares[chosen]), float(chosen == right[name])))
    return found


def _of_votes(grid: SampleGrid) -> list[tuple[int, float, float]]:
    scores_IK, measure = usable_scores(grid.table)
    if measure != "accuracy" or grid.num_samples < 2:
        return []
    found = []
    for row, (lines, scores_K) in enumerate(zip(grid.samples_IK, scores_IK, strict=True)):
        answers = [line.get("parsed") for line in lines]
        votes = Counter(answer for answer in answers if answer is not None)
        if votes:
            answer, count = votes.most_common(1)[0]
            found.append((row, count / len(answers), float(scores_K[answers.index(answer)])))
    return found
