"""What picking the best does to its score."""

import math

from scipy.integrate import quad
from scipy.special import log_ndtr


def luck_of_the_best(count: int) -> float:
    """How many standard errors the best of `count` equals looks better than it is, if their errors are independent.

    The expected maximum of standard normals; less where errors are alike, as those of one run's checkpoints are.

    Raises:
        ValueError: there is none to pick.
    """
    if count < 1:
        raise ValueError(f"the best of {count} is not defined")

    def weighted(x: float) -> float:
        return x * count * math.exp(-x * x / 2 + (count - 1) * float(log_ndtr(x))) / math.sqrt(2 * math.pi)

    return float(quad(weighted, -12, 12, limit=200)[0])
