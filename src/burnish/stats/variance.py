"""Where the uncertainty of a difference comes from: seeds, items, or samples; and which to buy more of.

A score is mean + seed + item + seed's own taste for the item + sample. Arms of several seeds are compared over seeds
and items at once, both of them drawn at random.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import t

from burnish.stats.clustered import cluster_sums
from burnish.stats.power import t_power

_LEAST_TAIL = 1e-200  # below, scipy's quantile of t fails


@dataclass(frozen=True, slots=True)
class Part:
    """A squared standard error and its degrees of freedom."""

    squared: float
    freedom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorParts:
    """What each source adds to the squared standard error of B - A, and the factor on that error of buying twice.

    `rest` is a seed's own taste for an item, and the sample where each item has one. A source that the tables cannot
    show is NaN: seeds with one seed, samples with one sample. Items are clusters where they come in such. `cheapest` is
    the purchase that narrows the interval most, all costing the same: twice the seeds, items or samples are twice the
    answers. `squared_error` is the square of the standard error over seeds and items, and `freedom` its degrees of
    freedom, for plans; no part is below 0, and the error is no less than that over seeds or over items alone.

    `over_seeds` (None with one seed) takes the items as given, `over_items` the seeds; both contain `in_both`.
    """

    seed: float
    item: float
    rest: float
    sample: float
    squared_error: float
    freedom: float
    over_seeds: Part | None
    over_items: Part
    in_both: float

    def half_width(self, tail: float) -> float:
        """Of the interval that leaves at most `tail` on each side, by Banerjee's rule (1961): each part of the squared
        error times the square of its own t quantile.

        One t on Satterthwaite's degrees would not do: two seeds that are near each other by chance show next to no
        part of their own, and it would take that as known as well as the items are. Here it is wide by as much as the
        part is unknown. That it covers follows from P(Z^2 <= x) being concave in x, for any number of seeds.
        """
        of_items = float(t.isf(tail, self.over_items.freedom))
        alone = of_items * math.sqrt(self.over_items.squared)
        if self.over_seeds is None:
            return alone
        seeds = float(t.isf(tail, self.over_seeds.freedom)) * math.sqrt(self.over_seeds.squared)
        return max(alone, math.hypot(seeds, of_items * math.sqrt(max(self.over_items.squared - self.in_both, 0.0))))

    def tail(self, distance: float) -> float:
        """One-sided p-value of a difference that lies `distance` above what is tested; the error must not be 0."""
        if distance <= 0:
            return 1 - self.tail(-distance) if distance < 0 else 0.5
        if self.half_width(_LEAST_TAIL) <= distance:
            return 0.0
        # by the logarithm: a p-value may be as small as it likes
        return math.exp(
            brentq(lambda at: self.half_width(math.exp(at)) - distance, math.log(_LEAST_TAIL), math.log(0.5))
        )

    @property
    def factor_seeds(self) -> float:
        """On the error, of twice as many seeds."""
        return math.nan if math.isnan(self.seed) else self._factor(self.seed, self.rest, self.sample)

    @property
    def factor_items(self) -> float:
        """On the error, of twice as many items."""
        return self._factor(self.item, self.rest, self.sample)

    @property
    def factor_samples(self) -> float:
        """On the error, of twice as many samples per item."""
        return math.nan if math.isnan(self.sample) else self._factor(self.sample)

    def more_seeds(self, num_seeds: int) -> "More":
        """What more than `num_seeds` of each arm would do, on these items."""
        inside = _known(self.rest, self.sample)
        return More(now=num_seeds, stays=self.item, shrinks=_known(self.seed) + inside, freedom=self.freedom)

    def more_items(self, num_items: int) -> "More":
        """What more than `num_items` would do, with these seeds."""
        inside = _known(self.rest, self.sample)
        return More(now=num_items, stays=_known(self.seed), shrinks=self.item + inside, freedom=self.freedom)

    @property
    def cheapest(self) -> str:
        """`seeds`, `items` or `samples`."""
        factors = {"seeds": self.factor_seeds, "items": self.factor_items, "samples": self.factor_samples}
        return min((name for name in factors if not math.isnan(factors[name])), key=lambda name: factors[name])

    def _factor(self, *halved: float) -> float:
        total = _known(self.seed, self.item, self.rest, self.sample)
        return math.sqrt(1 - _known(*halved) / total / 2) if total > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class More:
    """A design of which one number grows: `shrinks` of the squared error goes down with it, `stays` does not.

    `now` is that number, and `freedom` are the degrees of freedom; with more they would be more, which is left out.
    """

    now: int
    stays: float
    shrinks: float
    freedom: float
    least = 2
    largest_effect = math.inf

    def power(self, number: float, effect: float, alpha: float) -> float:
        """Of t on the error that both make."""
        return t_power(self.freedom, effect / math.sqrt(self.stays + self.shrinks * self.now / number), alpha)

    def number_within(self, error: float) -> int | None:
        """The smallest number with this standard error; None if what stays is as large."""
        room = error**2 - self.stays
        return math.ceil(self.shrinks * self.now / room) if room > 0 else None


def split_error(
    scores_a_SIK: NDArray[np.float64],
    scores_b_SIK: NDArray[np.float64],
    *,
    clusters: Sequence[Hashable] | None = None,
    is_paired: bool = False,
) -> ErrorParts:
    """Split the squared standard error of B - A on the same I items, each arm with S seeds of its own and K samples.

    A score that is missing is NaN; no item lacks all of a seed's. The item's part is how differently the items take to
    A and B; that items are hard or easy for both cancels. `is_paired` where both arms have the same seeds in the same
    order: what a seed does to both cancels too.

    Method of moments on the mean squares of the two-way random model (Searle, Casella & McCulloch 1992, chapter 4):
    over seeds, plus over items or clusters, less what both contain.

    Raises:
        ValueError: other items, fewer than two, all in one cluster, an item without a score, or an infinite score.
    """
    arms = [_cells(scores_SIK) for scores_SIK in (scores_a_SIK, scores_b_SIK)]
    means_SI = [means for means, _ in arms]
    if means_SI[0].shape[1] != means_SI[1].shape[1]:
        raise ValueError(f"A has {means_SI[0].shape[1]} items and B {means_SI[1].shape[1]}")
    samples = [float(known.mean()) / each.size if len(known := _finite(each)) else math.nan for _, each in arms]
    if is_paired:
        means_SI = [means_SI[1] - means_SI[0]]
        samples = [_known(*samples) if not all(map(math.isnan, samples)) else math.nan]
    own = range(means_SI[0].shape[1]) if clusters is None else clusters
    if len(set(own)) < 2:
        raise ValueError("all items share one cluster, which shows no spread")
    over_seeds = _over_seeds(means_SI)
    squared_items, tastes = _over_items(means_SI, own)
    over_items = Part(squared_items, len(set(own)) - 1.0)
    in_both = _known(*tastes)  # what the error over seeds and that over items both contain
    inside = sum(_known(sample if math.isnan(taste) else taste) for taste, sample in zip(tastes, samples, strict=True))
    parts = [over_items] if over_seeds is None else [over_items, over_seeds]
    squared = max(*(part.squared for part in parts), 0.0, sum(part.squared for part in parts) - in_both)
    return ErrorParts(
        seed=math.nan if over_seeds is None else max(over_seeds.squared - in_both, 0.0),
        item=max(squared_items - inside, 0.0),
        rest=max(inside - _known(*samples), 0.0),
        sample=math.nan if all(map(math.isnan, samples)) else _known(*samples),
        squared_error=squared,
        freedom=_freedom(squared, *parts),
        over_seeds=over_seeds,
        over_items=over_items,
        in_both=in_both,
    )


def _over_seeds(means_SI: Sequence[NDArray[np.float64]]) -> Part | None:
    """Of the difference of means over seeds, as if the items were given; None with one seed."""
    parts = [
        Part(float(arm_SI.mean(axis=1).var(ddof=1)) / len(arm_SI), len(arm_SI) - 1)
        for arm_SI in means_SI
        if len(arm_SI) > 1
    ]
    total = sum(part.squared for part in parts)
    return Part(total, _freedom(total, *parts)) if parts else None


def _over_items(means_SI: Sequence[NDArray[np.float64]], clusters: Sequence[Hashable]) -> tuple[float, list[float]]:
    """Squared error over items, or clusters, as if the seeds were given; and what of it each arm's seeds make by their
    own tastes, NaN with one seed.
    """
    shares_SC = [
        np.stack([cluster_sums(row_I - row_I.mean(), clusters)[0] for row_I in arm_SI]) / arm_SI.shape[1]
        for arm_SI in means_SI
    ]
    correction = shares_SC[0].shape[1] / (shares_SC[0].shape[1] - 1)
    apart_C = shares_SC[-1].mean(axis=0) - (shares_SC[0].mean(axis=0) if len(shares_SC) > 1 else 0.0)
    tastes = [
        correction * float(arm_SC.var(axis=0, ddof=1).sum()) / len(arm_SC) if len(arm_SC) > 1 else math.nan
        for arm_SC in shares_SC
    ]
    return correction * float((apart_C**2).sum()), tastes


def _freedom(total: float, *parts: Part) -> float:
    """Degrees of freedom of a sum of squared errors (Satterthwaite 1946); no fewer than of the least known part."""
    spread = sum(part.squared**2 / part.freedom for part in parts)
    return max(total**2 / spread, min(part.freedom for part in parts)) if spread > 0 else 1.0


def _cells(scores_SIK: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of each seed's samples of each item, and the squared error of that mean, NaN from one sample."""
    if scores_SIK.ndim != 3 or 0 in scores_SIK.shape or scores_SIK.shape[1] < 2:
        raise ValueError(f"the variance of scores needs seeds x items x samples, two items or more: {scores_SIK.shape}")
    has_SIK = ~np.isnan(scores_SIK)
    count_SI = has_SIK.sum(axis=2)
    if np.isinf(scores_SIK).any() or not count_SI.all():
        raise ValueError("a score is not a finite number: leave out the items that have none")
    mean_SI = np.where(has_SIK, scores_SIK, 0.0).sum(axis=2) / count_SI
    squares_SI = np.where(has_SIK, (scores_SIK - mean_SI[:, :, None]) ** 2, 0.0).sum(axis=2)
    pairs_SI = count_SI * (count_SI - 1.0)
    return mean_SI, np.divide(squares_SI, pairs_SI, out=np.full(mean_SI.shape, np.nan), where=pairs_SI > 0)


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def _known(*parts: float) -> float:
    return sum(part for part in parts if not math.isnan(part))
