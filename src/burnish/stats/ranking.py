"""Which of several systems wins, from comparisons of two at a time on the same prompts."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import logsumexp

from burnish.stats.bootstrap import Estimate, estimate, resampled_means
from burnish.stats.clustered import cluster_sums
from burnish.stats.intervals import wilson_interval

_RESAMPLES = 1_000
_MOST_STEPS = 100
_SMALLEST = 1e-6
_A_TRIFLE = 1e-6  # of each outcome: keeps a resample finite in which somebody is never beaten


@dataclass(frozen=True, slots=True, kw_only=True)
class Strengths:
    """Davidson's model: log strengths with mean 0, each with an interval by prompt; `tie` is the log of his nu.

    P(i beats j) is proportional to exp(s_i), P(tie) to exp(tie + (s_i + s_j) / 2).
    """

    strengths_M: NDArray[np.float64]
    low_M: NDArray[np.float64]
    high_M: NDArray[np.float64]
    tie: float


def win_rate(
    scores_a_I: NDArray[np.float64],
    scores_b_I: NDArray[np.float64],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> Estimate:
    """How often B scores above A on a prompt, a tie counting half; percentile bootstrap over prompts, or clusters.

    Where B wins or loses all, Wilson's interval on prompts, or clusters; no interval (NaN) where all are ties.
    """
    outcomes = 0.5 * (1 + np.sign(np.asarray(scores_b_I) - np.asarray(scores_a_I)))
    if outcomes.ndim != 1 or len(outcomes) == 0 or not np.isfinite(outcomes).all():
        raise ValueError("a win rate needs finite scores of both systems on the same prompts")
    if np.ptp(outcomes) == 0:  # every resample is the same, as if the rate were known
        num_units = len(outcomes) if clusters is None else len(set(clusters))
        value = float(outcomes[0])
        ends = (math.nan, math.nan) if value == 0.5 else wilson_interval(int(value) * num_units, num_units, level=level)
        return Estimate(value, *ends)
    units_U2, counts_U = _units(np.stack([outcomes, np.ones(len(outcomes))], axis=1), clusters)
    drawn_R2 = resampled_means(units_U2, counts=counts_U, num_resamples=_RESAMPLES)
    return estimate(outcomes.mean(), drawn_R2[:, 0] / drawn_R2[:, 1], level=level)


def bradley_terry(
    outcomes_IMM: NDArray[np.float64], *, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Strengths:
    """Fit Davidson's Bradley-Terry model with ties (1970, JASA 65:317); bootstrap intervals over prompts, or clusters.

    `outcomes_IMM[p, i, j]` is 1 where i beat j on prompt p, 0.5 for a tie (at both places), 0 for a loss, and NaN
    where the two were not compared. Only the part above the diagonal is read. Where no pair differs, or every prompt
    says the same, there are no intervals (NaN).

    Raises:
        ValueError: not such an array, or the systems fall into two parts of which one never beats the other.
    """
    if outcomes_IMM.ndim != 3 or outcomes_IMM.shape[1] != outcomes_IMM.shape[2] or outcomes_IMM.shape[1] < 2:
        raise ValueError(f"outcomes must be prompts x systems x systems, two or more systems: {outcomes_IMM.shape}")
    num_systems = outcomes_IMM.shape[1]
    upper = np.triu_indices(num_systems, 1)
    of_pair_IP = outcomes_IMM[:, *upper]
    seen_I3P = np.stack([of_pair_IP == 1, of_pair_IP == 0, of_pair_IP == 0.5], axis=1).astype(np.float64)
    units_UN, counts_U = _units(seen_I3P.reshape(len(seen_I3P), -1), clusters)
    seen_U3P = units_UN.reshape(-1, *seen_I3P.shape[1:])
    seen_3P = np.tensordot(counts_U, seen_U3P, axes=1)
    beats_MM = np.zeros((num_systems, num_systems))
    beats_MM[upper] = seen_3P[0] + seen_3P[2]
    beats_MM.T[upper] = seen_3P[1] + seen_3P[2]
    num_parts, _ = connected_components(beats_MM > 0, directed=True, connection="strong")
    if num_parts > 1:
        raise ValueError("some systems are never beaten by the rest: their strength has no upper end")
    columns_3PN = _columns(num_systems)
    fitted_N = _fit(seen_3P[None], columns_3PN, np.zeros(num_systems + 1))[0]
    resampled_R3P = counts_U.sum() * resampled_means(seen_U3P, counts=counts_U, num_resamples=_RESAMPLES)
    drawn_RM = _fit(resampled_R3P, columns_3PN, fitted_N)[:, :-1]
    low_M, high_M = np.quantile(drawn_RM, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    if not seen_3P[:2].any() or not np.ptp(seen_I3P, axis=0).any():
        low_M = high_M = np.full(num_systems, np.nan)
    return Strengths(strengths_M=fitted_N[:-1], low_M=low_M, high_M=high_M, tie=float(fitted_N[-1]))


def _units(
    values_IN: NDArray[np.float64], clusters: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What is drawn again: the different rows and how often each is there, or the sum of each cluster's rows."""
    if clusters is None:
        units_UN, counts_U = np.unique(values_IN, axis=0, return_counts=True)
        return units_UN, counts_U
    units_UN = np.stack([cluster_sums(column_I, clusters)[0] for column_I in values_IN.T], axis=1)
    return units_UN, np.ones(len(units_UN), dtype=np.int64)


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
    seen_R3P: NDArray[np.float64], columns_3PN: NDArray[np.float64], start_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Maximum likelihood of the strengths and the tie's log in each of R samples, by Newton on a convex function."""
    seen_R3P = seen_R3P + _A_TRIFLE
    total_RP = seen_R3P.sum(axis=1)

    def loss(at_RN: NDArray[np.float64]) -> NDArray[np.float64]:
        logits_R3P = np.einsum("opn,rn->rop", columns_3PN, at_RN)
        lost_R: NDArray[np.float64] = (total_RP * logsumexp(logits_R3P, axis=1)).sum(axis=1)
        lost_R -= (seen_R3P * logits_R3P).sum(axis=(1, 2))
        return lost_R

    at_RN = np.tile(start_N, (len(seen_R3P), 1))
    value_R = loss(at_RN)
    for _ in range(_MOST_STEPS):
        logits_R3P = np.einsum("opn,rn->rop", columns_3PN, at_RN)
        chances_R3P = np.exp(logits_R3P - logsumexp(logits_R3P, axis=1, keepdims=True))
        expected_R3P = total_RP[:, None] * chances_R3P
        slope_RN = np.einsum("rop,opn->rn", expected_R3P - seen_R3P, columns_3PN)
        mean_RPN = np.einsum("rop,opn->rpn", chances_R3P, columns_3PN)
        square_RNN = np.einsum("rop,opn,opm->rnm", expected_R3P, columns_3PN, columns_3PN)
        bend_RNN = square_RNN - np.einsum("rp,rpn,rpm->rnm", total_RP, mean_RPN, mean_RPN)
        step_RN = np.einsum("rnm,rm->rn", np.linalg.pinv(bend_RNN, rcond=1e-12, hermitian=True), slope_RN)
        size_R = np.ones(len(at_RN))
        while (too_far_R := (loss(at_RN - size_R[:, None] * step_RN) > value_R) & (size_R > _SMALLEST)).any():
            size_R[too_far_R] /= 2
        at_RN = at_RN - size_R[:, None] * step_RN
        at_RN[:, :-1] -= at_RN[:, :-1].mean(axis=1, keepdims=True)
        before_R, value_R = value_R, loss(at_RN)
        if np.all(before_R - value_R < 1e-12 * np.maximum(1.0, np.abs(value_R))):
            break
    return at_RN
