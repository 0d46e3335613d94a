"""Which of several answers a model chose, from what each of them got. Loads no torch: stores are read with it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def measures_of(answers: Sequence[Mapping[str, Any]], normalise: str) -> list[float]:
    """What answers are compared by: a reward model's value, or a log-probability divided by what `normalise` says."""
    if "value" in answers[0]:
        return [float(each["value"]) for each in answers]
    return [each["logprob"] / (1 if normalise == "none" else max(1, each[normalise])) for each in answers]


def choice_score(measures: Sequence[float], right: int) -> float:
    """1 if the right answer has the highest measure, a share of 1 where several do, else 0."""
    highest = max(measures)
    best = [number for number, measure in enumerate(measures) if measure == highest]
    return 1 / len(best) if right in best else 0.0
