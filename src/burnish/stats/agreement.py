"""How far judges agree beyond chance."""

from collections.abc import Hashable, Sequence

import numpy as np


def cohen_kappa(labels_a: Sequence[Hashable], labels_b: Sequence[Hashable]) -> float:
    """Cohen's kappa (1960) of two judges who labelled the same items: 1 for always, 0 for no more than chance.

    NaN where both gave one and the same label to everything, so that chance alone agrees always.

    Raises:
        ValueError: no items, or not the same number.
    """
    if len(labels_a) != len(labels_b) or not labels_a:
        raise ValueError(f"two judges need labels of the same items, got {len(labels_a)} and {len(labels_b)}")
    names = {label: index for index, label in enumerate(dict.fromkeys([*labels_a, *labels_b]))}
    table = np.zeros((len(names), len(names)))
    for a, b in zip(labels_a, labels_b, strict=True):
        table[names[a], names[b]] += 1
    table /= len(labels_a)
    return _beyond_chance(float(np.trace(table)), float(table.sum(axis=0) @ table.sum(axis=1)))


def fleiss_kappa(labels_IJ: Sequence[Sequence[Hashable]]) -> float:
    """Fleiss' kappa (1971) of the same number J of judges for each item, not always the same persons.

    Raises:
        ValueError: no items, fewer than two judges, or not the same number for each item.
    """
    num_judges = len(labels_IJ[0]) if labels_IJ else 0
    if num_judges < 2 or any(len(labels) != num_judges for labels in labels_IJ):
        raise ValueError("every item needs labels of the same number of judges, two or more")
    names = {label: index for index, label in enumerate(dict.fromkeys(label for row in labels_IJ for label in row))}
    counts_IC = np.zeros((len(labels_IJ), len(names)))
    for item, labels in enumerate(labels_IJ):
        for label in labels:
            counts_IC[item, names[label]] += 1
    agreeing = float(np.mean((counts_IC * (counts_IC - 1)).sum(axis=1) / (num_judges * (num_judges - 1))))
    shares_C = counts_IC.sum(axis=0) / counts_IC.sum()
    return _beyond_chance(agreeing, float(shares_C @ shares_C))


def _beyond_chance(observed: float, expected: float) -> float:
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")
