"""Intervals for one proportion."""

from scipy.stats import beta, binomtest, norm


def wilson_interval(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927), without continuity correction: the default."""
    _require_proportion(successes, n, level)
    z = float(norm.ppf(0.5 + level / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson_interval(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact interval (Clopper & Pearson 1934): covers at least at its level, and is wider for it."""
    _require_proportion(successes, n, level)
    interval = binomtest(successes, n).proportion_ci(confidence_level=level, method="exact")
    return float(interval.low), float(interval.high)


def beta_interval(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Equal-tailed interval of the posterior under a uniform prior, Beta(1, 1) (Bowyer et al. 2025, 2503.01747)."""
    _require_proportion(successes, n, level)
    posterior = beta(1 + successes, 1 + n - successes)
    return float(posterior.ppf(0.5 - level / 2)), float(posterior.ppf(0.5 + level / 2))


def _require_proportion(successes: int, n: int, level: float) -> None:
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n} is no proportion")
    if not 0 < level < 1:
        raise ValueError(f"the level must lie between 0 and 1, and is {level:g}")
