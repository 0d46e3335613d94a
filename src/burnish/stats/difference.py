"""What was found between A and B, the word for it, and what it would take to say more."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import norm, t

from burnish.stats.power import Design, PairedMeans, PairedProportions, TwoMeans, required_number

Verdict = Literal["better", "worse", "equivalent", "undecided"]
Unit = Literal["item", "cluster", "seed", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Means of A and B on `n` units, B - A with its interval at 1 - `alpha`, and the two-sided p-value of `test`.

    `unit` is what was drawn at random and counts once; a seed's unit is a pair of runs, or a run of each arm. Of
    "both", seeds and items, `n` is the number of seeds. `low` and `high` are NaN where the values have no spread or
    share one cluster. `p_equivalent` is of "the difference is `margin` or more, either way"; None without a margin.
    `design` says how power grows with n; None without spread, and for both.
    """

    unit: Unit
    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    interval: str
    p_value: float
    test: str
    alpha: float
    margin: float | None
    p_equivalent: float | None
    design: Design | None


def judge(differences: Sequence[Difference], p_value: float, p_equivalent: float | None, alpha: float) -> Verdict:
    """The word that holds for every one of some differences; the p-values may be adjusted for other claims.

    Better or worse is said where the test and every interval exclude no difference.
    """
    ups = {each.difference > 0 for each in differences}
    if p_value < alpha and len(ups) == 1 and all(_excludes_zero(each) for each in differences):
        return "better" if ups == {True} else "worse"
    return "equivalent" if p_equivalent is not None and p_equivalent < alpha else "undecided"


def verdict_of(difference: Difference) -> Verdict:
    """The word for one difference that stands alone."""
    return judge((difference,), difference.p_value, difference.p_equivalent, difference.alpha)


def number_to_find(difference: Difference, *, alpha: float, power: float = 0.8) -> int | None:
    """Units with which the difference as it was seen would be found; None for no difference, or over a billion."""
    if difference.design is None or difference.difference == 0:
        return None
    effect = min(abs(difference.difference), difference.design.largest_effect)
    try:
        return required_number(difference.design, effect, alpha=alpha, power=power)
    except ValueError:  # too small to be found with a billion
        return None


def number_for_equivalence(difference: Difference, *, alpha: float, power: float = 0.8) -> int | None:
    """Units that show equivalence within the margin if there is no difference at all (normal approximation).

    None without a margin, without spread, or if the difference that was seen is not inside the margin.
    """
    margin = difference.margin
    if margin is None or difference.design is None or abs(difference.difference) >= margin:
        return None
    reach = float(norm.ppf(1 - alpha) + norm.ppf(0.5 + power / 2))
    return math.ceil((reach * _spread(difference.design) / margin) ** 2)


def t_equivalence(mean: float, standard_error: float, freedom: float, margin: float) -> float:
    """p-value of "the mean is `margin` or more away from 0": the larger of two one-sided t tests (Schuirmann 1987)."""
    return float(t.sf((margin - abs(mean)) / standard_error, freedom))


def _excludes_zero(difference: Difference) -> bool:
    return math.isnan(difference.low) or difference.low > 0 or difference.high < 0  # without spread the test decides


def _spread(design: Design) -> float:
    """Standard deviation of one unit's difference if there is none on average."""
    match design:
        case PairedProportions(discordance=discordance):
            return math.sqrt(discordance)
        case PairedMeans(sd_difference=sd):
            return sd
        case TwoMeans(sd=sd):
            return math.sqrt(2) * sd
    raise TypeError(f"not a design of a comparison: {design}")
