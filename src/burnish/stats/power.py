"""How many items, seeds or samples an experiment needs, what difference it can see, and with what chance.

A design knows its power; the number and the smallest effect are found from it. All tests are two-sided. An effect is
the difference in what is measured: 0.03 is three points of accuracy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.stats import binom, nct, norm, t

from burnish.stats.levels import require_alpha

_MOST = 10**9
_HALVINGS = 60


class Design(Protocol):
    """What is compared, and by which test."""

    @property
    def least(self) -> int:
        """The smallest number with which the test can be done."""

    @property
    def largest_effect(self) -> float:
        """The largest difference that is possible."""

    def power(self, number: float, effect: float, alpha: float) -> float:
        """Chance that the test at level `alpha` finds a difference of `effect` with `number` items, pairs or arms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneProportion:
    """One accuracy against a known number: the score test, which is "Wilson's interval leaves the number out"."""

    baseline: float
    least = 1

    def __post_init__(self) -> None:
        _require_share("the baseline", self.baseline)

    @property
    def largest_effect(self) -> float:
        """Up to an accuracy of 1."""
        return 1 - self.baseline

    def power(self, number: float, effect: float, alpha: float) -> float:
        """Normal approximation (Fleiss, Levin & Paik 2003, section 2.5)."""
        reached = self.baseline + effect
        spread, needed = _sd(reached), norm.isf(alpha / 2) * _sd(self.baseline)
        return _normal_power(effect * math.sqrt(number), needed, spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoProportions:
    """Two accuracies on different items, `number` in each arm: the pooled z test."""

    baseline: float
    least = 1

    def __post_init__(self) -> None:
        _require_share("the baseline", self.baseline)

    @property
    def largest_effect(self) -> float:
        """Up to an accuracy of 1."""
        return 1 - self.baseline

    def power(self, number: float, effect: float, alpha: float) -> float:
        """Normal approximation (Fleiss, Levin & Paik 2003, eq. 4.14, without continuity correction)."""
        reached, middle = self.baseline + effect, self.baseline + effect / 2
        spread, needed = math.hypot(_sd(self.baseline), _sd(reached)), norm.isf(alpha / 2) * math.sqrt(2) * _sd(middle)
        return _normal_power(effect * math.sqrt(number), needed, spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedProportions:
    """Two accuracies on the same items: the exact McNemar test. `discordance` is the share of items that one gets
    right and the other wrong, whichever of the two.
    """

    discordance: float
    least = 1

    def __post_init__(self) -> None:
        _require_share("the discordance", self.discordance)

    @property
    def largest_effect(self) -> float:
        """Where all discordant items fall to one side."""
        return self.discordance

    def power(self, number: float, effect: float, alpha: float) -> float:
        """Exact: over the number of discordant items, and how they fall. A part of an item is left out."""
        items, share = int(number), (1 + effect / self.discordance) / 2
        first, last = (int(binom.ppf(tail, items, self.discordance)) for tail in (1e-12, 1 - 1e-12))
        discordant = np.arange(first, last + 1)
        fewest = binom.ppf(alpha / 2, discordant, 0.5)  # of the rarer side, that still are as likely as alpha
        fewest = np.where(binom.cdf(fewest, discordant, 0.5) > alpha / 2, fewest - 1, fewest)
        found = binom.cdf(fewest, discordant, share) + binom.sf(discordant - fewest - 1, discordant, share)
        return float(np.clip(binom.pmf(discordant, items, self.discordance) @ found, 0, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoMeans:
    """Means of two arms with `number` in each, and standard deviation `sd` in both: the t test."""

    sd: float
    least = 2
    largest_effect = math.inf

    def __post_init__(self) -> None:
        _require_positive("the standard deviation", self.sd)

    def power(self, number: float, effect: float, alpha: float) -> float:
        """Exact for normal values (noncentral t)."""
        return t_power(2 * number - 2, effect / self.sd * math.sqrt(number / 2), alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedMeans:
    """Means of `number` pairs whose differences have standard deviation `sd_difference`: the paired t test."""

    sd_difference: float
    least = 2
    largest_effect = math.inf

    def __post_init__(self) -> None:
        _require_positive("the standard deviation of the differences", self.sd_difference)

    def power(self, number: float, effect: float, alpha: float) -> float:
        """Exact for normal values (noncentral t)."""
        return t_power(number - 1, effect / self.sd_difference * math.sqrt(number), alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledMeans:
    """Mean scores of two models on the same `number` of items, each asked `samples` times (Miller 2024,
    arXiv 2411.00640, eq. 9).

    `item_sd` is the standard deviation over items of the difference of the two expected scores, `sample_sd` that of
    one model's score within an item. `samples` may be infinite.
    """

    item_sd: float
    sample_sd: float
    samples: float
    least = 1
    largest_effect = math.inf

    def __post_init__(self) -> None:
        _require_positive("the standard deviation within an item", self.sample_sd)
        if not 0 <= self.item_sd < math.inf:
            raise ValueError(f"the standard deviation over items must not be negative, and is {self.item_sd:g}")
        if not self.samples >= 1:
            raise ValueError(f"each item needs at least one sample, not {self.samples:g}")

    def power(self, number: float, effect: float, alpha: float) -> float:
        """Normal approximation."""
        spread = math.sqrt(self.item_sd**2 + 2 * self.sample_sd**2 / self.samples)
        if spread == 0:
            return 1.0
        return _normal_power(effect * math.sqrt(number), norm.isf(alpha / 2) * spread, spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustered:
    """A design whose items come in clusters of `cluster_size` with correlation `icc` of what is tested inside one.

    `number` items are worth number / (1 + (cluster_size - 1) icc) independent ones (Kish 1965).
    """

    design: Design
    cluster_size: float
    icc: float

    def __post_init__(self) -> None:
        if not 1 <= self.cluster_size < math.inf:
            raise ValueError(f"a cluster has at least one item, not {self.cluster_size:g}")
        if not 0 <= self.icc <= 1:
            raise ValueError(f"the correlation inside clusters must lie between 0 and 1, and is {self.icc:g}")

    @property
    def design_effect(self) -> float:
        """How many times as many items are needed."""
        return 1 + (self.cluster_size - 1) * self.icc

    @property
    def least(self) -> int:
        """The smallest number with which the test can be done."""
        return math.ceil(self.design.least * self.design_effect)

    @property
    def largest_effect(self) -> float:
        """As without clusters."""
        return self.design.largest_effect

    def power(self, number: float, effect: float, alpha: float) -> float:
        """As without clusters, with fewer items."""
        return self.design.power(number / self.design_effect, effect, alpha)


def achieved_power(design: Design, number: int, effect: float, *, alpha: float = 0.05) -> float:
    """Chance that `number` items, pairs or arms of a size find a difference of `effect`.

    Raises:
        ValueError: an impossible number, effect or alpha.
    """
    _require_aim(alpha, power=None)
    _require_effect(design, effect)
    _require_number(design, number)
    return design.power(number, effect, alpha)


def required_number(design: Design, effect: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """The number that finds a difference of `effect` with this power, rounded up.

    The power of an exact test has small teeth: it is reached at the number and missed at one less, and may be missed
    by a hair at a few above.

    Raises:
        ValueError: an impossible effect, alpha or power, or one that needs more than a billion.
    """
    _require_aim(alpha, power)
    _require_effect(design, effect)
    enough = design.least
    while design.power(enough, effect, alpha) < power:
        if enough > _MOST:
            raise ValueError(f"a difference of {effect:g} needs more than {_MOST:,}: it is too small to be found")
        enough *= 2
    short = enough // 2 if enough > design.least else design.least - 1
    while enough - short > 1:
        middle = (short + enough) // 2
        if design.power(middle, effect, alpha) < power:
            short = middle
        else:
            enough = middle
    return enough


def smallest_effect(design: Design, number: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The minimal detectable effect: the difference that `number` find with this power.

    Raises:
        ValueError: an impossible number, alpha or power, or a number with which no difference would be found.
    """
    _require_aim(alpha, power)
    _require_number(design, number)
    if math.isfinite(design.largest_effect) and design.power(number, design.largest_effect, alpha) < power:
        raise ValueError(
            f"{number} are too few: not even the largest possible difference is found with {power:.0%} power"
        )
    return _smallest(lambda effect: design.power(number, effect, alpha) >= power, design.largest_effect)


def smallest_shift(freedom: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The minimal detectable effect of a two-sided t test on `freedom` degrees, in standard errors; infinite for none.

    Raises:
        ValueError: an impossible alpha or power.
    """
    _require_aim(alpha, power)
    return _smallest(lambda shift: t_power(freedom, shift, alpha) >= power, math.inf) if freedom > 0 else math.inf


def required_samples(
    number: int, effect: float, *, item_sd: float, sample_sd: float, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Samples per item with which `number` items find a difference of `effect`, rounded up (see `SampledMeans`).

    Raises:
        ValueError: no number of samples is enough, because the items alone differ too much.
    """
    least = required_number(
        SampledMeans(item_sd=item_sd, sample_sd=sample_sd, samples=math.inf), effect, alpha=alpha, power=power
    )
    if number < least:
        raise ValueError(f"{number} items are too few, however often each is asked: at least {least} are needed")
    low, high = 0, 1

    def is_enough(samples: int) -> bool:
        design = SampledMeans(item_sd=item_sd, sample_sd=sample_sd, samples=samples)
        return achieved_power(design, number, effect, alpha=alpha) >= power

    while not is_enough(high):
        if high > _MOST:
            raise ValueError(f"{number} items need more than {_MOST:,} samples each: take more items")
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def independent_discordance(baseline: float, effect: float) -> float:
    """The discordance of two models that answer independently: the most that is seen in practice."""
    reached = baseline + effect
    return baseline * (1 - reached) + reached * (1 - baseline)


def _smallest(is_found: Callable[[float], bool], largest: float) -> float:
    """The smallest effect that is found, where the largest is."""
    found = min(largest, 1.0)
    while not is_found(found):
        found = min(largest, 2 * found)
    missed = 0.0
    for _ in range(_HALVINGS):
        middle = (missed + found) / 2
        missed, found = (missed, middle) if is_found(middle) else (middle, found)
    return found


def _normal_power(shift: float, needed: float, spread: float) -> float:
    """P(|Z spread + shift| > needed) for a standard normal Z."""
    if spread == 0:
        return float(abs(shift) > needed)
    return float(norm.sf((needed - shift) / spread) + norm.cdf((-needed - shift) / spread))


def t_power(freedom: float, shift: float, alpha: float) -> float:
    """Power of a two-sided t test whose statistic is off by `shift` standard errors (noncentral t)."""
    needed = float(t.isf(alpha / 2, freedom))
    # the far tail by its mirror image: scipy's own is NaN for many shifts
    return float(nct.sf(needed, freedom, shift) + nct.sf(needed, freedom, -shift))


def _sd(share: float) -> float:
    return math.sqrt(max(0.0, share * (1 - share)))


def _require_share(what: str, share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"{what} must be above 0 and at most 1, and is {share:g}")


def _require_positive(what: str, number: float) -> None:
    if not 0 < number < math.inf:
        raise ValueError(f"{what} must be above 0, and is {number:g}")


def _require_aim(alpha: float, power: float | None) -> None:
    require_alpha(alpha)
    if power is not None and not alpha < power < 1:
        raise ValueError(f"the power must lie between alpha ({alpha:g}) and 1, and is {power:g}")


def _require_effect(design: Design, effect: float) -> None:
    if not 0 < effect < math.inf:
        raise ValueError(f"the effect must be above 0, and is {effect:g}: give the size of the difference")
    if effect > design.largest_effect + 1e-12:
        raise ValueError(f"an effect of {effect:g} is impossible: the most is {design.largest_effect:g}")


def _require_number(design: Design, number: float) -> None:
    if number < design.least:
        raise ValueError(f"{number:g} are too few for this test: it needs at least {design.least}")
