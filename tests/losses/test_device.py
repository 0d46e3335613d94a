"""Losses make what they need where the batch is: on torch's "meta" device a tensor from elsewhere is an error.

Losses that count (bincount, nonzero) cannot run there, and are not tried.
"""

from dataclasses import replace

import pytest
import torch

from burnish.data.packing import pack
from burnish.losses.distillation import DistillationLoss
from burnish.losses.imitation import NegativeLogLikelihood
from burnish.losses.loss import Loss
from burnish.losses.policy_gradient import ImportanceCorrection, PolicyLoss
from burnish.losses.preference import NAMED, PreferenceLoss
from burnish.losses.value import ValueLoss
from burnish.records import Branch, Example, Scored

META = torch.device("meta")
LOSSES: dict[str, Loss] = {
    **{f"preference, {name}": PreferenceLoss(weights={name: 1.0}, beta=0.2, label_smoothing=0.1) for name in NAMED},
    "policy": PolicyLoss(kl_coefficient=0.1, entropy_coefficient=0.1, importance=ImportanceCorrection()),
    "value": ValueLoss(clip=0.2),
    "imitation": NegativeLogLikelihood(),
    "distillation": DistillationLoss(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_nothing_is_made_elsewhere(loss: Loss) -> None:
    sides = tuple(Branch(token_ids=(1, 2, 3), label=label) for label in (1.0, -1.0))
    batch = pack([Example(id=str(n), prompt_ids=(4, 5), branches=sides) for n in range(2)])
    one_S = torch.ones(len(batch.target_ids_S))
    names = (
        "sampler_logprobs_S",
        "advantages_S",
        "old_logprobs_S",
        "reference_logprobs_S",
        "old_values_S",
        "returns_S",
    )
    batch = replace(batch, **dict.fromkeys(names, one_S)).to(META)

    def scores() -> torch.Tensor:
        return torch.ones(len(one_S), device=META, requires_grad=True)

    scored = Scored(logprobs_S=scores(), entropy_S=scores(), values_S=scores(), divergence_S=scores())
    total = loss(scored, batch).total
    assert total.device.type == "meta"
    total.backward()
