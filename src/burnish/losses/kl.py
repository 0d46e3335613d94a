"""Per-token estimators of KL(policy || reference) from tokens that the policy sampled (Schulman 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs_S: Tensor, reference_logprobs_S: Tensor, estimator: KLEstimator) -> Tensor:
    """With r = reference / policy: k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r. Shape [S].

    k1 and k3 are unbiased as values. As a *loss* their gradients differ: on-policy, k2's is the gradient of the KL,
    k3's is that of the opposite KL(reference || policy), and k1's has mean zero, so it only adds noise.
    """
    log_ratio_S = reference_logprobs_S - logprobs_S
    if estimator == "k1":
        return -log_ratio_S
    if estimator == "k2":
        return log_ratio_S.square() / 2
    return log_ratio_S.expm1() - log_ratio_S
