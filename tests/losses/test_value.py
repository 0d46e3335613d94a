import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.data.packing import pack
from burnish.losses.value import ValueLoss, gae, whiten
from burnish.monitoring.metrics import reduce_metrics
from burnish.records import Branch, Example, Scored


def naive_gae(rewards, values, discount: float, decay: float) -> list[float]:
    """Backwards, one token after the other (Schulman et al. 2016, eq. 16)."""
    advantages, following = [], 0.0
    for index in reversed(range(len(rewards))):
        next_value = values[index + 1] if index + 1 < len(values) else 0.0
        delta = rewards[index] + discount * next_value - values[index]
        following = delta + discount * decay * following
        advantages.append(following)
    return advantages[::-1]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 2**31),
)
def test_gae_against_a_loop(lengths, discount: float, decay: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = ([rng.normal(size=length) for length in lengths] for _ in range(2))
    sequence_S = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    flat = [torch.tensor(np.concatenate(parts)) for parts in (rewards, values)]
    advantages_S, returns_S = gae(*flat, sequence_S, discount=discount, decay=decay)
    expected = np.concatenate([naive_gae(*each, discount, decay) for each in zip(rewards, values, strict=True)])
    assert advantages_S.numpy() == pytest.approx(expected, abs=1e-5)
    assert returns_S.numpy() == pytest.approx(expected + flat[1].numpy(), abs=1e-5)


def test_gae_by_hand() -> None:
    """Reward 1 at the end of three tokens, values 1/2, discount 1: deltas 0, 0, 1/2; with decay 1/2: 1/8, 1/4, 1/2."""
    rewards_S, values_S = torch.tensor([0.0, 0.0, 1.0]), torch.full((3,), 0.5)
    advantages_S, returns_S = gae(rewards_S, values_S, torch.zeros(3, dtype=torch.long), discount=1.0, decay=0.5)
    assert advantages_S.tolist() == [0.125, 0.25, 0.5]
    assert returns_S.tolist() == [0.625, 0.75, 1.0]
    monte_carlo, _ = gae(rewards_S, values_S, torch.zeros(3, dtype=torch.long), discount=1.0, decay=1.0)
    assert monte_carlo.tolist() == [0.5, 0.5, 0.5]


def test_a_long_sequence_stays_finite() -> None:
    length = 20_000
    advantages_S, _ = gae(
        torch.ones(length), torch.zeros(length), torch.zeros(length, dtype=torch.long), discount=1.0, decay=0.01
    )
    assert advantages_S[0].item() == pytest.approx(1 / 0.99, rel=1e-6)


def test_whitening() -> None:
    assert whiten(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])
    assert whiten(torch.tensor([0.7, 0.7])).tolist() == [0.0, 0.0]
    assert whiten(torch.tensor([5.0])).tolist() == [0.0]


def test_value_loss_by_hand() -> None:
    """Old 0, return 1: a value of 0.1 is free (0.81), one of 0.5 is held at 0.2, where its error counts as 0.64."""
    batch = pack([Example(id="0", prompt_ids=(1,), branches=(Branch(token_ids=(2, 3)),))])
    batch = replace(batch, old_values_S=torch.zeros(2), returns_S=torch.ones(2))
    values_S = torch.tensor([0.1, 0.5], requires_grad=True)
    scored = Scored(logprobs_S=torch.zeros(2), entropy_S=torch.zeros(2), values_S=values_S)
    output = ValueLoss(clip=0.2)(scored, batch)
    output.total.backward()
    assert output.total.item() == pytest.approx((0.81 + 0.64) / 2)
    assert values_S.grad.tolist() == pytest.approx([-0.9, 0.0])
    metrics = reduce_metrics([output.metrics])
    assert metrics["value_clip_fraction"] == 0.5 and metrics["value_error"] == pytest.approx((0.81 + 0.25) / 2)
    plain = ValueLoss(clip=None)(replace(scored, values_S=values_S.detach()), batch)
    assert plain.total.item() == pytest.approx((0.81 + 0.25) / 2)
