"""Which of several systems wins, from comparisons of two at a time on the same prompts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import logsumexp

_RESAMPLES = 1_000
_MOST_STEPS = 100
_A_TRIFLE = 1e-6  # of each outcome: keeps a resample finite in which somebody is never beaten


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of won prompts, a tie counting half, with its bootstrap interval by prompt."""

    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Strengths:
    """Davidson's model: log strengths with mean 0, each with an interval by prompt; `tie` is the log of his nu.

    P(i beats j) is proportional to exp(s_i), P(tie) to exp(tie + (s_i + s_j) / 2).
    """

    strengths_M: NDArray[np.float64]
    low_M: NDArray[np.float64]
    high_M: NDArray[np.float64]
    tie: float


def win_rate(scores_a_I: NDArray[np.float64], scores_b_I: NDArray[np.float64], *, level: float = 0.95) -> Share:
    """How often B scores above A on a prompt, a tie counting half; percentile bootstrap over prompts."""
    outcomes = 0.5 * (1 + np.sign(np.asarray(scores_b_I) - np.asarray(scores_a_I)))
    if outcomes.ndim != 1 or len(outcomes) == 0 or not np.isfinite(outcomes).all():
        raise ValueError("a win rate needs finite scores of both systems on the same prompts")
    n, (losses, ties, wins) = len(outcomes), (int((outcomes == each).sum()) for each in (0.0, 0.5, 1.0))
    drawn = np.random.default_rng(0).multinomial(n, [losses / n, ties / n, wins / n], size=_RESAMPLES)
    low, high = np.quantile(drawn @ [0.0, 0.5, 1.0] / n, [0.5 - level / 2, 0.5 + level / 2])
    return Share(share=float(outcomes.mean()), low=float(low), high=float(high))


def bradley_terry(outcomes_IMM: NDArray[np.float64], *, level: float = 0.95) -> Strengths:
    """Fit Davidson's Bradley-Terry model with ties (1970, JASA 65:317), intervals by bootstrap over prompts.

    `outcomes_IMM[p, i, j]` is 1 where i beat j on prompt p, 0.5 for a tie (at both places), 0 for a loss, and NaN
    where the two were not compared. Only the part above the diagonal is read.

    Raises:
        ValueError: not such an array, or the systems fall into two parts of which one never beats the other.
    """
    if outcomes_IMM.ndim != 3 or outcomes_IMM.shape[1] != outcomes_IMM.shape[2] or outcomes_IMM.shape[1] < 2:
        raise ValueError(f"outcomes must be prompts x systems x systems, two or more systems: {outcomes_IMM.shape}")
    num_systems = outcomes_IMM.shape[1]
    upper = np.triu_indices(num_systems, 1)
    patterns_UP, counts_U = np.unique(outcomes_IMM[:, *upper], axis=0, return_counts=True)
    seen_U3P = np.stack([patterns_UP == 1, patterns_UP == 0, patterns_UP == 0.5], axis=1).astype(np.float64)
    seen_3P = np.tensordot(counts_U, seen_U3P, axes=1)
    beats_MM = np.zeros((num_systems, num_systems))
    beats_MM[upper] = seen_3P[0] + seen_3P[2]
    beats_MM.T[upper] = seen_3P[1] + seen_3P[2]
    num_parts, _ = connected_components(beats_MM > 0, directed=True, connection="strong")
    if num_parts > 1:
        raise ValueError("some systems are never beaten by the rest: their strength has no upper end")
    columns_3PN = _columns(num_systems)
    fitted_N = _fit(seen_3P, columns_3PN, np.zeros(num_systems + 1))
    n, rng = len(outcomes_IMM), np.random.default_rng(0)
    drawn_RU = rng.multinomial(n, counts_U / n, size=_RESAMPLES)
    resampled_R3P = np.tensordot(drawn_RU, seen_U3P, axes=1)
    drawn_RM = np.array([_fit(each, columns_3PN, fitted_N)[:-1] for each in resampled_R3P])
    low_M, high_M = np.quantile(drawn_RM, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return Strengths(strengths_M=fitted_N[:-1], low_M=low_M, high_M=high_M, tie=float(fitted_N[-1]))


def _columns(num_systems: int) -> NDArray[np.float64]:
    """How the log-odds of first wins, second wins and a tie hang on the N = M + 1 parameters, for each of P pairs."""
    first, second = np.triu_indices(num_systems, 1)
    pairs = np.arange(len(first))
    columns_3PN = np.zeros((3, len(first), num_systems + 1))
    columns_3PN[0, pairs, first] = columns_3PN[1, pairs, second] = 1.0
    columns_3PN[2, pairs, first] = columns_3PN[2, pairs, second] = 0.5
    columns_3PN[2, :, -1] = 1.0
    return columns_3PN


def _fit(
    seen_3P: NDArray[np.float64], columns_3PN: NDArray[np.float64], start_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Maximum likelihood of the strengths and the tie's log, by Newton's method on a convex function."""
    seen_3P = seen_3P + _A_TRIFLE
    total_P = seen_3P.sum(axis=0)

    def loss(parameters_N: NDArray[np.float64]) -> float:
        logits_3P = columns_3PN @ parameters_N
        return float((total_P * logsumexp(logits_3P, axis=0)).sum() - (seen_3P * logits_3P).sum())

    at_N, value = start_N, loss(start_N)
    for _ in range(_MOST_STEPS):
        logits_3P = columns_3PN @ at_N
        chances_3P = np.exp(logits_3P - logsumexp(logits_3P, axis=0))
        slope_N = np.tensordot(total_P * chances_3P - seen_3P, columns_3PN, axes=2)
        mean_PN = np.einsum("op,opn->pn", chances_3P, columns_3PN)
        square_NN = np.einsum("op,opn,opm->nm", total_P * chances_3P, columns_3PN, columns_3PN)
        bend_NN = square_NN - np.einsum("p,pn,pm->nm", total_P, mean_PN, mean_PN)
        step_N = np.linalg.pinv(bend_NN, rcond=1e-12, hermitian=True) @ slope_N
        size = 1.0
        while loss(at_N - size * step_N) > value and size > 1e-6:
            size /= 2
        at_N = at_N - size * step_N
        at_N[:-1] -= at_N[:-1].mean()
        gained, value = value - loss(at_N), loss(at_N)
        if gained < 1e-12 * max(1.0, abs(value)):
            break
    return at_N
