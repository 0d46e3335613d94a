import math
from dataclasses import replace

import pytest
import torch

from burnish.data.packing import pack_groups
from burnish.losses.kl import kl_estimate
from burnish.losses.policy_gradient import ClippedPolicyLoss, mismatch_metrics
from burnish.monitoring.metrics import reduce_metrics
from burnish.records import Scored, TokenBatch

LOSS = ClippedPolicyLoss(
    clip_low=0.2,
    clip_high=0.3,
    aggregation="token",
    max_tokens=10,
    kl_coefficient=0.0,
    kl_estimator="k3",
    max_importance_weight=None,
)


@pytest.fixture
def batch(make_groups) -> TokenBatch:
    """Two sequences, of 1 and 3 tokens, with advantages +2 and -1."""
    groups = make_groups([[1, 3]])
    return pack_groups(groups, [[2.0, -1.0]])


def scored(logprobs_S: torch.Tensor) -> Scored:
    return Scored(logprobs_S=logprobs_S, entropy_S=torch.zeros_like(logprobs_S))


def logprobs_with_ratio(batch: TokenBatch, ratios: list[float]) -> tuple[torch.Tensor, TokenBatch]:
    old_S = torch.full((4,), -1.0)
    return (old_S + torch.tensor(ratios).log()).requires_grad_(), replace(batch, old_logprobs_S=old_S)


def test_clipping_by_hand(batch: TokenBatch) -> None:
    # ratio 1.5, A = 2: min(3.0, 1.3 * 2) = 2.6, clipped, no gradient
    # ratio 1.5, A = -1: min(-1.5, -1.3) = -1.5, not clipped: a bad token that became likelier is always pushed down
    # ratio 0.5, A = -1: min(-0.5, -0.8) = -0.8, clipped; ratio 1, A = -1: -1
    logprobs_S, batch = logprobs_with_ratio(batch, [1.5, 1.5, 0.5, 1.0])
    output = LOSS(scored(logprobs_S), batch)
    assert output.total.item() == pytest.approx(-2.6 + 1.5 + 0.8 + 1.0, rel=1e-6)
    output.total.backward()
    # d(-ratio A)/d logprob = -ratio A where not clipped
    assert logprobs_S.grad.tolist() == pytest.approx([0.0, 1.5, 0.0, 1.0], rel=1e-6)
    assert reduce_metrics([output.metrics])["clip_fraction"] == pytest.approx(0.5)
    assert reduce_metrics([output.metrics])["ratio_max"] == pytest.approx(1.5)


def test_first_step_is_the_policy_gradient(batch: TokenBatch) -> None:
    logprobs_S = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    LOSS(scored(logprobs_S), batch).total.backward()
    assert logprobs_S.grad.tolist() == [-2.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("aggregation", "expected", "normalizer"),
    [
        ("token", [-2.0, 1.0, 1.0, 1.0], "scored_tokens"),
        ("sequence", [-2.0, 1 / 3, 1 / 3, 1 / 3], "sequences"),
        ("constant", [-0.2, 0.1, 0.1, 0.1], "sequences"),
    ],
)
def test_aggregation(batch: TokenBatch, aggregation, expected: list[float], normalizer: str) -> None:
    loss = replace(LOSS, aggregation=aggregation)
    logprobs_S = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    loss(scored(logprobs_S), batch).total.backward()
    assert logprobs_S.grad.tolist() == pytest.approx(expected)
    assert loss.normalizer == normalizer


def test_importance_correction_is_truncated_and_carries_no_gradient(batch: TokenBatch) -> None:
    # The sampler found the tokens e^1, e^-1, 1 and e^0.5 times less likely than the learner does.
    logprobs_S = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    batch = replace(batch, sampler_logprobs_S=logprobs_S.detach() - torch.tensor([1.0, -1.0, 0.0, 0.5]))
    output = replace(LOSS, max_importance_weight=2.0)(scored(logprobs_S), batch)
    output.total.backward()
    assert logprobs_S.grad.tolist() == pytest.approx([-2 * 2.0, math.exp(-1), 1.0, math.exp(0.5)])
    assert reduce_metrics([output.metrics])["importance_truncated"] == 0.25


def test_kl_by_hand() -> None:
    # policy 0.5, reference 0.25: log(reference / policy) = -log 2
    logprobs_S, reference_S = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    log2 = math.log(2)
    assert kl_estimate(logprobs_S, reference_S, "k1").item() == pytest.approx(log2)
    assert kl_estimate(logprobs_S, reference_S, "k2").item() == pytest.approx(log2**2 / 2)
    assert kl_estimate(logprobs_S, reference_S, "k3").item() == pytest.approx(0.5 - 1 + log2)


def test_kl_estimators_against_the_exact_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, reference_logits = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    reference = reference_logits.log_softmax(0)

    def expected(estimator) -> torch.Tensor:
        return (logits.softmax(0).detach() * kl_estimate(logits.log_softmax(0), reference, estimator)).sum()

    exact = (logits.softmax(0) * (logits.log_softmax(0) - reference)).sum()
    assert expected("k1").item() == pytest.approx(exact.item())
    assert expected("k3").item() == pytest.approx(exact.item())
    (exact_gradient,) = torch.autograd.grad(exact, logits)
    (k2_gradient,) = torch.autograd.grad(expected("k2"), logits)
    assert torch.allclose(k2_gradient, exact_gradient)
    (k1_gradient,) = torch.autograd.grad(expected("k1"), logits)
    assert torch.allclose(k1_gradient, torch.zeros(8, dtype=torch.float64), atol=1e-12)
    opposite = (reference.exp() * (reference - logits.log_softmax(0))).sum()
    (k3_gradient,) = torch.autograd.grad(expected("k3"), logits)
    (opposite_gradient,) = torch.autograd.grad(opposite, logits)
    assert torch.allclose(k3_gradient, opposite_gradient)


def test_kl_term_in_the_loss(batch: TokenBatch) -> None:
    logprobs_S = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    batch = replace(batch, reference_logprobs_S=logprobs_S - 0.5, advantages_S=torch.zeros(4))
    output = replace(LOSS, kl_coefficient=0.1, kl_estimator="k2")(scored(logprobs_S), batch)
    assert output.total.item() == pytest.approx(4 * 0.1 * 0.125)
    assert reduce_metrics([output.metrics])["kl"] == pytest.approx(math.exp(-0.5) - 1 + 0.5, rel=1e-5)


def test_mismatch_by_hand() -> None:
    metrics = reduce_metrics([mismatch_metrics(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.9]))])
    assert metrics["mismatch_mean"] == pytest.approx(0.3)
    assert metrics["mismatch_max"] == pytest.approx(0.5)
    assert metrics["mismatch_kl"] == pytest.approx((math.expm1(0.5) - 0.5 + math.expm1(-0.1) + 0.1) / 2, rel=1e-5)
