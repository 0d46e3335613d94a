import math
from dataclasses import replace

import pytest
import torch

from burnish.data.packing import pack
from burnish.errors import DataError
from burnish.losses.distillation import DistillationLoss, SampledReverseKL
from burnish.losses.imitation import NegativeLogLikelihood
from burnish.monitoring.metrics import reduce_metrics
from burnish.records import Branch, Example, Scored


def batch_of(*lengths: int):
    branches = tuple(Branch(token_ids=(4,) * length) for length in lengths)
    return pack([Example(id="0", prompt_ids=(1,), branches=branches)])


def scored(logprobs: list[float], **more) -> Scored:
    values = torch.tensor(logprobs, requires_grad=True)
    return Scored(logprobs_S=values, entropy_S=torch.zeros(len(logprobs)), **more)


def test_likelihood_over_tokens_and_over_sequences() -> None:
    found = scored([-1.0, -2.0, -3.0, -6.0])
    batch = batch_of(1, 3)
    assert NegativeLogLikelihood()(found, batch).total.item() / batch.counts.scored_tokens == pytest.approx(3.0)
    by_sequence = NegativeLogLikelihood(aggregation="sequence")
    assert by_sequence(found, batch).total.item() / batch.counts.sequences == pytest.approx((1 + 11 / 3) / 2)


def test_sampled_reverse_kl_by_hand() -> None:
    """Sampler = student now: the gradient is -(log teacher - log student) on each token. A ratio of e^2 is cut at 2."""
    batch = replace(
        batch_of(2),
        advantages_S=torch.tensor([0.5, -1.5]),
        sampler_logprobs_S=torch.tensor([-1.0, -2.0]),
    )
    now = scored([-1.0, -2.0])
    SampledReverseKL()(now, batch).total.backward()
    assert now.logprobs_S.grad.tolist() == pytest.approx([-0.5, 1.5])
    moved = scored([-1.0 + math.log(1.5), 0.0])
    output = SampledReverseKL()(moved, batch)
    assert output.total.item() == pytest.approx(-1.5 * 0.5 + 2 * 1.5)
    output.total.backward()
    assert moved.logprobs_S.grad.tolist() == pytest.approx([-1.5 * 0.5, 2 * 1.5])  # cut, not masked
    assert reduce_metrics([output.metrics])["divergence"] == pytest.approx(0.5)


def test_divergence_is_weighted_by_teacher() -> None:
    batch = replace(batch_of(2), weights_S=torch.tensor([0.25, 0.25]))
    found = scored([-1.0, -1.0], divergence_S=torch.tensor([2.0, 4.0], requires_grad=True))
    assert DistillationLoss(weight=2.0)(found, batch).total.item() == pytest.approx(3.0)
    with pytest.raises(DataError, match="needs divergence_S"):
        DistillationLoss()(scored([-1.0, -1.0]), batch)
