"""Where the uncertainty of a difference comes from: seeds, items, or samples; and which to buy more of."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class VarianceParts:
    """Variances of one arm's scores: score = mean + seed + item + seed's own taste for the item + sample.

    Method of moments on seeds x items x samples, none below 0. `seed` and `seed_item` are NaN with one seed;
    with one sample per item `sample` is NaN and `seed_item` holds both.
    """

    seed: float
    item: float
    seed_item: float
    sample: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorParts:
    """What each source adds to the squared standard error of B - A, and the factor on that error of buying twice.

    `rest` is a seed's own taste for an item, and the sample where each item has one. A source that the tables cannot
    show is NaN: seeds with one seed, samples with one sample. `cheapest` is the purchase that narrows the interval
    most, all costing the same: twice the seeds, items or samples are twice the answers.
    """

    seed: float
    item: float
    rest: float
    sample: float
    factor_seeds: float
    factor_items: float
    factor_samples: float

    @property
    def cheapest(self) -> str:
        """`seeds`, `items` or `samples`."""
        factors = {"seeds": self.factor_seeds, "items": self.factor_items, "samples": self.factor_samples}
        return min((name for name in factors if not math.isnan(factors[name])), key=lambda name: factors[name])


def split_variance(scores_SIK: NDArray[np.float64]) -> VarianceParts:
    """Split the variance of the scores of one arm: S seeds on the same I items, K samples each.

    Expected mean squares of the two-way random model with replicates (Searle, Casella & McCulloch 1992, chapter 4).

    Raises:
        ValueError: fewer than two items, or a score that is not finite.
    """
    num_seeds, num_items, num_samples = _require(scores_SIK)
    cell_SI = scores_SIK.mean(axis=2)
    sample = float(scores_SIK.var(axis=2, ddof=1).mean()) if num_samples > 1 else math.nan
    within = 0.0 if num_samples == 1 else sample / num_samples
    if num_seeds == 1:
        item = float(cell_SI[0].var(ddof=1))
        return VarianceParts(seed=math.nan, item=max(item - within, 0.0), seed_item=math.nan, sample=sample)
    rest_SI = cell_SI - cell_SI.mean(axis=1, keepdims=True) - cell_SI.mean(axis=0) + cell_SI.mean()
    rest = float((rest_SI**2).sum()) / ((num_seeds - 1) * (num_items - 1))
    seed = float(cell_SI.mean(axis=1).var(ddof=1)) - rest / num_items
    item = float(cell_SI.mean(axis=0).var(ddof=1)) - rest / num_seeds
    return VarianceParts(seed=max(seed, 0.0), item=max(item, 0.0), seed_item=max(rest - within, 0.0), sample=sample)


def split_error(scores_a_SIK: NDArray[np.float64], scores_b_SIK: NDArray[np.float64]) -> ErrorParts:
    """Split the squared standard error of B - A on the same items, each arm with its own seeds and samples.

    The item's part is how differently the items take to A and B; that items are hard or easy for both cancels.

    Raises:
        ValueError: other items, fewer than two, or a score that is not finite.
    """
    if scores_a_SIK.shape[1] != scores_b_SIK.shape[1]:
        raise ValueError(f"A has {scores_a_SIK.shape[1]} items and B {scores_b_SIK.shape[1]}")
    arms = (scores_a_SIK, scores_b_SIK)
    parts = [split_variance(each) for each in arms]
    num_items = scores_a_SIK.shape[1]
    seed = rest = sample = 0.0
    for part, each in zip(parts, arms, strict=True):
        num_seeds, _, num_samples = each.shape
        seed += part.seed / num_seeds
        rest += (0.0 if math.isnan(part.seed_item) else part.seed_item) / (num_seeds * num_items)
        sample += part.sample / (num_seeds * num_items * num_samples)
    apart_I = scores_b_SIK.mean(axis=(0, 2)) - scores_a_SIK.mean(axis=(0, 2))
    item = max(float(apart_I.var(ddof=1)) / num_items - rest - (0.0 if math.isnan(sample) else sample), 0.0)
    known_seed, known_sample = (0.0 if math.isnan(each) else each for each in (seed, sample))
    total = known_seed + item + rest + known_sample

    def factor(halved: float) -> float:
        return math.sqrt(1 - halved / total / 2) if total > 0 else 1.0

    return ErrorParts(
        seed=seed,
        item=item,
        rest=rest,
        sample=sample,
        factor_seeds=math.nan if math.isnan(seed) else factor(seed + rest + known_sample),
        factor_items=factor(item + rest + known_sample),
        factor_samples=math.nan if math.isnan(sample) else factor(known_sample),
    )


def _require(scores_SIK: NDArray[np.float64]) -> tuple[int, int, int]:
    if scores_SIK.ndim != 3 or 0 in scores_SIK.shape or scores_SIK.shape[1] < 2:
        raise ValueError(f"the variance of scores needs seeds x items x samples, two items or more: {scores_SIK.shape}")
    if not np.isfinite(scores_SIK).all():
        raise ValueError("a score is not a finite number: leave out the items that have none")
    num_seeds, num_items, num_samples = scores_SIK.shape
    return num_seeds, num_items, num_samples
