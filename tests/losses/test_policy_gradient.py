import math
from dataclasses import replace

import pytest
import torch

from burnish.data.packing import pack_groups
from burnish.losses.kl import kl_estimate
from burnish.losses.policy_gradient import ImportanceCorrection, PolicyLoss, mismatch_metrics
from burnish.monitoring.metrics import reduce_metrics
from burnish.records import Scored, TokenBatch

LOSS = PolicyLoss(clip_low=0.2, clip_high=0.3, max_tokens=10)


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
    output = replace(LOSS, importance=ImportanceCorrection())(scored(logprobs_S), batch)
    output.total.backward()
    assert logprobs_S.grad.tolist() == pytest.approx([-2 * 2.0, math.exp(-1), 1.0, math.exp(0.5)])
    assert reduce_metrics([output.metrics])["importance_outside"] == 0.25


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


def old_batch(make_groups) -> tuple[torch.Tensor, TokenBatch]:
    """Two sequences of 2 and 2 tokens, ratios 1.1, 0.8 and 1.5, 0.5, advantages +2 and -1."""
    batch = pack_groups(make_groups([[2, 2]]), [[2.0, -1.0]])
    old_S = torch.full((4,), -1.0)
    return (old_S + torch.tensor([1.1, 0.8, 1.5, 0.5]).log()).requires_grad_(), replace(batch, old_logprobs_S=old_S)


def value_and_gradient(loss: PolicyLoss, logprobs_S: torch.Tensor, batch: TokenBatch) -> tuple[float, list[float]]:
    total = loss(scored(logprobs_S), batch).total
    (gradient,) = torch.autograd.grad(total, logprobs_S)
    return float(total.detach()), gradient.tolist()


def test_sequence_ratios_by_hand(make_groups) -> None:
    """GSPO: both tokens of a sequence have the geometric mean of their ratios; sqrt(0.88) and sqrt(0.75)."""
    logprobs_S, batch = old_batch(make_groups)
    first, second = math.sqrt(1.1 * 0.8), math.sqrt(1.5 * 0.5)
    value, gradient = value_and_gradient(PolicyLoss(ratio="sequence", clip_low=0.2), logprobs_S, batch)
    assert value == pytest.approx(-2 * first * 2 + 2 * second)
    assert gradient == pytest.approx([-2 * first] * 2 + [second] * 2)
    by_token, token_gradient = value_and_gradient(PolicyLoss(ratio="sequence_token"), logprobs_S, batch)
    assert by_token == pytest.approx(value)
    assert token_gradient == pytest.approx(gradient)


def test_gspo_token_differs_where_advantages_do(make_groups) -> None:
    """With an advantage for each token only that token is pushed; GSPO would push the whole sequence."""
    logprobs_S, batch = old_batch(make_groups)
    batch = replace(batch, advantages_S=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    _, gradient = value_and_gradient(PolicyLoss(ratio="sequence_token"), logprobs_S, batch)
    assert gradient == pytest.approx([-math.sqrt(0.88), 0.0, 0.0, 0.0])
    _, whole = value_and_gradient(PolicyLoss(ratio="sequence"), logprobs_S, batch)
    assert whole == pytest.approx([-math.sqrt(0.88) / 2, -math.sqrt(0.88) / 2, 0.0, 0.0])


def test_reinforce_has_no_ratio(make_groups) -> None:
    logprobs_S, batch = old_batch(make_groups)
    _, gradient = value_and_gradient(PolicyLoss(ratio="none"), logprobs_S, batch)
    assert gradient == pytest.approx([-2.0, -2.0, 1.0, 1.0])


def test_dual_clip_by_hand(make_groups) -> None:
    """A ratio of 4 on a bad token: -min(-4, -1.2) = 4 unclipped, 3 with c = 3, where the gradient ends."""
    _, batch = old_batch(make_groups)
    logprobs_S = (torch.full((4,), -1.0) + torch.tensor([1.0, 1.0, 4.0, 1.0]).log()).requires_grad_()
    value, gradient = value_and_gradient(PolicyLoss(dual_clip=3.0), logprobs_S, batch)
    assert value == pytest.approx(-2 - 2 + 3 + 1)
    assert gradient == pytest.approx([-2.0, -2.0, 0.0, 1.0])


def test_dppo_by_hand(make_groups) -> None:
    """p_old = e^-1 = 0.368; ratios 1.1, 0.8, 1.5, 0.5 move p by +0.037, -0.074, +0.184, -0.184.

    With a trust region of 0.1 and advantages +2, +2, -1, -1 only the last one leads away (a bad token made rarer) and
    is outside; the third is outside but leads back.
    """
    logprobs_S, batch = old_batch(make_groups)
    value, gradient = value_and_gradient(PolicyLoss(surrogate="dppo", trust_region=0.1), logprobs_S, batch)
    assert value == pytest.approx(-2 * 1.1 - 2 * 0.8 + 1.5)
    assert gradient == pytest.approx([-2.2, -1.6, 1.5, 0.0])


@pytest.mark.parametrize(
    ("correction", "expected", "outside"),
    [
        (ImportanceCorrection(high=1.5), [1.5, 0.5, 1.2, 1.5], 0.5),
        (ImportanceCorrection(mode="mask", low=0.6, high=3.0), [2.0, 0.0, 1.2, 2.5], 0.25),
        (ImportanceCorrection(level="sequence", high=2.0), [1.0, 1.0, 2.0, 2.0], 0.5),
        (ImportanceCorrection(level="sequence", mode="mask", low=0.5, high=2.0), [1.0, 1.0, 0.0, 0.0], 0.5),
        (ImportanceCorrection(level="geometric", high=2.0), [1.0, 1.0, math.sqrt(3.0), math.sqrt(3.0)], 0.0),
    ],
    ids=str,
)
def test_importance_by_hand(make_groups, correction, expected, outside: float) -> None:
    """Old over sampler is 2, 1/2 in the first sequence (product 1), 1.2, 2.5 in the second (product 3)."""
    _, batch = old_batch(make_groups)
    old_S = batch.old_logprobs_S
    batch = replace(batch, sampler_logprobs_S=old_S - torch.tensor([2.0, 0.5, 1.2, 2.5]).log())
    weights_S, metrics = correction(old_S, batch)
    assert weights_S.tolist() == pytest.approx(expected)
    assert reduce_metrics([metrics])["importance_outside"] == pytest.approx(outside)


def test_an_entropy_bonus(batch: TokenBatch) -> None:
    entropy_S = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    said = Scored(logprobs_S=torch.full((4,), -1.0, requires_grad=True), entropy_S=entropy_S)
    plain, bonus = (replace(LOSS, entropy_coefficient=weight)(said, batch).total for weight in (0.0, 0.1))
    assert float((bonus - plain).detach()) == pytest.approx(-1.0)
    (gradient,) = torch.autograd.grad(bonus, entropy_S)
    assert gradient.tolist() == pytest.approx([-0.1] * 4)
