"""A paired t test that may be looked at after every block, of a number of blocks that was planned before.

The shape is that of O'Brien and Fleming (1979, Biometrics 35:549, eq. 1 with equal looks): early looks need much, the
last one hardly more than a test at the end. It is applied to the normal score of each look's t test, and its null
distribution is drawn for normal differences, so that it also holds for few blocks.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtr, stdtrit

_NUM_DRAWS = 100_000  # at level 0.05 the level is then right within 0.0014


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLook:
    """What the blocks so far say. Both hold at every look: the p-value of "no difference", which never rises again, and
    the interval of the mean after these blocks (Jennison and Turnbull's repeated interval). NaN without spread.
    """

    p_value: float
    low: float
    high: float


def look_at_blocks(differences_N: ArrayLike, *, num_planned: int, alpha: float = 0.05) -> BlockLook:
    """Judge the differences of the first N blocks, in their order; the interval has the level 1 - `alpha`.

    Raises:
        ValueError: more blocks than planned, fewer than two planned, or a difference that is not finite.
    """
    x = np.asarray(differences_N, dtype=np.float64)
    if num_planned < 2 or len(x) > num_planned:
        raise ValueError(f"{len(x)} blocks of {num_planned} planned ones: needs two or more, and none beyond the plan")
    if not np.isfinite(x).all():
        raise ValueError("a difference is not a finite number")
    nan = math.nan
    if len(x) < 2 or _error(x) == 0:
        return BlockLook(p_value=nan, low=nan, high=nan)
    largest = 0.0
    for n in range(2, len(x) + 1):
        error = _error(x[:n])
        if error > 0:
            score = float(_scores(np.array(abs(x[:n].mean()) / error), n))
            largest = max(largest, score * math.sqrt(n / num_planned))
    maxima = _null_maxima(num_planned)
    reached = len(maxima) - int(np.searchsorted(maxima, largest))
    half = float(-stdtrit(n - 1, alpha_of_look(n, num_planned=num_planned, alpha=alpha) / 2)) * error
    mean = float(x.mean())
    return BlockLook(p_value=(1 + reached) / (1 + len(maxima)), low=mean - half, high=mean + half)


def alpha_of_look(n: int, *, num_planned: int, alpha: float) -> float:
    """What the t test after `n` blocks must stay below, so that all looks together have the level `alpha`."""
    maxima = _null_maxima(num_planned)
    allowed = math.floor(alpha * (1 + len(maxima))) - 1  # draws that may lie above
    if not 0 <= allowed < len(maxima):
        raise ValueError(f"alpha must lie between {1 / (1 + len(maxima)):.1g} and 1, not {alpha:g}")
    border = float(maxima[len(maxima) - 1 - allowed])
    return 2 * float(_normal_tail(border / math.sqrt(n / num_planned)))


def _error(x: NDArray[np.float64]) -> float:
    """Standard error of the mean: 0 for equal numbers, whatever rounding says, and where tiny ones underflow."""
    return float(x.std(ddof=1)) / math.sqrt(len(x)) if np.ptp(x) > 0 else 0.0


def _normal_tail(score: float) -> float:
    return 0.5 * math.erfc(score / math.sqrt(2))


def _scores(t_values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The standard normal value that is as extreme as each (positive) t value of `n` blocks."""
    scores: NDArray[np.float64] = -ndtri(stdtr(n - 1, -t_values))
    return scores


@lru_cache(maxsize=8)
def _null_maxima(num_planned: int) -> NDArray[np.float64]:
    """The largest weighted score over all looks where there is no difference, drawn, in rising order."""
    rng = np.random.default_rng([1979, num_planned])
    total, squares, largest = (np.zeros(_NUM_DRAWS) for _ in range(3))
    for n in range(1, num_planned + 1):
        x = rng.standard_normal(_NUM_DRAWS)
        total += x
        squares += x * x
        if n > 1:
            errors = np.sqrt((squares - total**2 / n) / (n - 1) / n)
            np.maximum(largest, _scores(np.abs(total / n) / errors, n) * math.sqrt(n / num_planned), out=largest)
    return np.sort(largest)
