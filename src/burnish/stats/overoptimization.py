"""How far a proxy can be pushed before the gold score turns. Gao, Schulman, Hilton 2022 (arXiv 2210.10760).

d is the square root of the KL divergence (nats a completion) from the model that training began with.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from burnish.stats.bootstrap import Estimate, Floats, estimate, resampled_means

Form = Literal["rl", "best_of_n"]


@dataclass(frozen=True, slots=True)
class GainCurve:
    """The gain over the start at distance d: d (a - b log d) for `rl`, d (a - b d) for `best_of_n`."""

    a: float
    b: float
    form: Form

    def gain(self, distances: ArrayLike) -> Floats:
        """The gain at some distances; 0 at 0."""
        rise, fall = _terms(np.asarray(distances, dtype=np.float64), self.form)
        return np.asarray(self.a * rise - self.b * fall, dtype=np.float64)

    @property
    def turning_distance(self) -> float:
        """Where the gain is largest: infinite if it never turns, 0 if it only falls."""
        if self.b <= 0:
            return math.inf if self.a > 0 or self.b < 0 else 0.0
        if self.form == "best_of_n":
            return max(0.0, self.a / (2 * self.b))
        exponent = self.a / self.b - 1
        return math.exp(exponent) if exponent < 300 else math.inf  # its square must be a number too


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Where gold turns, as KL, with its interval over items; infinite: not at all.

    The interval knows of items, not of whether gold follows such a curve: `r_squared` is the share of the squared gains
    that the curve has. `is_seen` says that the interval ends between the first and the last KL that was measured.
    """

    kl: Estimate
    curve: GainCurve
    r_squared: float
    is_seen: bool


def fit_gain_curve(distances: ArrayLike, gains: ArrayLike, form: Form = "rl") -> GainCurve:
    """Least squares over points with d > 0.

    Raises:
        ValueError: fewer than three of them: two would always fit.
    """
    d, y = np.asarray(distances, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    if d.shape != y.shape or d.ndim != 1:
        raise ValueError(f"each distance needs a gain, got shapes {d.shape} and {y.shape}")
    kept = d > 0
    if len(np.unique(d[kept])) < 3:
        raise ValueError("the curve needs three different distances above 0")
    a, b = _solution(d[kept], form) @ y[kept]
    return GainCurve(float(a), float(b), form)


def turning_point(distances: ArrayLike, gold: ArrayLike, form: Form = "rl") -> Turn:
    """Fit the curve to the mean gold score of items [I, N] at N distances, the first of which is the start's 0.

    Items are resampled whole, so that an item keeps its scores at all distances.

    Raises:
        ValueError: there are fewer than three different distances above 0, or the first is not 0.
    """
    d, gold_IN = np.asarray(distances, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if d[0] != 0:
        raise ValueError(f"the first distance must be that of the start, 0, got {d[0]}")
    means_N = gold_IN.mean(0)
    gains_N = means_N - means_N[0]
    curve = fit_gain_curve(d, gains_N, form)
    missed, whole = np.sum((gains_N - curve.gain(d)) ** 2), np.sum(gains_N**2)
    resampled_BN = resampled_means(gold_IN)
    kept = d > 0
    fits = (resampled_BN - resampled_BN[:, :1])[:, kept] @ _solution(d[kept], form).T
    turns = np.array([GainCurve(float(a), float(b), form).turning_distance ** 2 for a, b in fits])
    kl = estimate(curve.turning_distance**2, turns)
    r_squared = float(1 - missed / whole) if whole > 0 else 0.0
    return Turn(kl=kl, curve=curve, r_squared=r_squared, is_seen=bool(d[kept].min() ** 2 <= kl.high < d.max() ** 2))


def _terms(d: Floats, form: Form) -> tuple[Floats, Floats]:
    with np.errstate(divide="ignore", invalid="ignore"):
        fall = d * d if form == "best_of_n" else np.where(d > 0, d * np.log(d), 0.0)
    return d, fall


def _solution(d: Floats, form: Form) -> Floats:
    """The matrix [2, N] that makes (a, b) of gains."""
    rise, fall = _terms(d, form)
    return np.asarray(np.linalg.pinv(np.stack([rise, -fall], axis=1)), dtype=np.float64)
