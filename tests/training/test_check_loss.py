"""The check passes every loss that ships, and names what is wrong with losses that look right."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from burnish.losses.distillation import DistillationLoss, SampledReverseKL
from burnish.losses.imitation import NegativeLogLikelihood
from burnish.losses.loss import WeightedLosses, loss
from burnish.losses.policy_gradient import ImportanceCorrection, PolicyLoss
from burnish.losses.preference import NAMED, KTOLoss, PreferenceLoss, RewardModelLoss, pairs_of, sequence_sums
from burnish.losses.value import ValueLoss
from burnish.records import LossOutput
from burnish.training.check_loss import check_loss


def options(name: str) -> dict[str, float]:
    return {
        "cdpo": {"label_smoothing": 0.1},
        "robust": {"label_smoothing": 0.1},
        "exo": {"label_smoothing": 0.1},
        "simpo": {"margin": 0.5},
        "sigmoid": {"score_margin": 0.1},
        # with the usual 0.05 its slope near a margin of 0 points the other way; that is how it was found
        "discopop": {"tau": 1.0},
    }.get(name, {})


@pytest.mark.parametrize("name", NAMED)
def test_preference_losses_pass(name: str) -> None:
    assert check_loss(PreferenceLoss(weights={name: 1.0}, **options(name))) == []


@pytest.mark.parametrize(
    "good",
    [
        NegativeLogLikelihood(),
        NegativeLogLikelihood(aggregation="sequence"),
        KTOLoss(kl_baseline=0.3),
        WeightedLosses({"dpo": PreferenceLoss(), "sft": NegativeLogLikelihood()}, {"dpo": 1.0, "sft": 0.2}),
    ],
    ids=str,
)
def test_other_losses_pass(good) -> None:
    assert check_loss(good) == []


def test_reward_model_passes() -> None:
    assert check_loss(RewardModelLoss(margin_scale=0.1, centering=0.01), at_ends=True) == []


def delta(scored, batch):
    pairs = pairs_of(scored, batch, has_reference=True)
    return pairs, pairs.chosen_logratios_G - pairs.rejected_logratios_G


pairwise = loss(normalizer="groups", needs_whole_groups=True)


@dataclass(frozen=True)
class NoBeta:
    beta: float = 0.1
    normalizer: str = "groups"
    needs_whole_groups: bool = True

    def __call__(self, scored, batch):
        pairs, delta_G = delta(scored, batch)
        return LossOutput(total=(-logsigmoid(delta_G) * pairs.weights_G).sum(), metrics={})


@pairwise
def bonus_on_the_chosen_side(scored, batch):
    pairs, delta_G = delta(scored, batch)
    return (-logsigmoid(0.1 * delta_G + 0.2 * batch.scores_B[0::2]) * pairs.weights_G).sum()


@pairwise
def mean_over_the_micro_batch(scored, batch):
    pairs, delta_G = delta(scored, batch)
    return (-logsigmoid(0.1 * delta_G) * pairs.weights_G).mean()


@pairwise
def score_without_gradient(scored, batch):
    pairs, delta_G = delta(scored, batch)
    return ((-logsigmoid(0.1 * delta_G) - 0.3 * batch.scores_B[0::2]) * pairs.weights_G).sum()


@loss()
def one_number_a_token(scored, batch):
    return -scored.logprobs_S * batch.weights_S


@pairwise
def logarithm_of_a_probability(scored, batch):
    pairs, delta_G = delta(scored, batch)
    return (-torch.log(torch.sigmoid(delta_G)) * pairs.weights_G).sum()


@loss()
def reads_the_device(scored, batch):
    scale = 1.0 if scored.logprobs_S.mean().item() > -1e9 else 2.0
    return -(scale * scored.logprobs_S * batch.weights_S).sum()


@loss(normalizer="groups", needs_whole_groups=True)
def first_prompt_as_baseline(scored, batch):
    sums_B = sequence_sums(scored.logprobs_S * batch.weights_S, batch)
    return -((sums_B - sums_B[0].detach()) * torch.arange(len(sums_B))).sum()


@pairwise
def pushes_the_wrong_way(scored, batch):
    pairs, delta_G = delta(scored, batch)
    return (-logsigmoid(-0.1 * delta_G) * pairs.weights_G).sum()


@loss()
def ignores_the_weights(scored, batch):
    return -(scored.logprobs_S * batch.advantages_S).sum()


@loss()
def detached(scored, batch):
    return -(scored.logprobs_S.detach() * batch.advantages_S * batch.weights_S).sum()


@loss()
def half_detached(scored, batch):
    ratio_S = (scored.logprobs_S - batch.old_logprobs_S).exp()
    return -(ratio_S.detach().sqrt() * ratio_S * batch.advantages_S * batch.weights_S).sum()


@loss()
def compares_without_saying_so(scored, batch):
    sums_B = sequence_sums(scored.logprobs_S * batch.weights_S, batch)
    return -logsigmoid(sums_B[0::2] - sums_B[1::2]).sum() if len(sums_B) % 2 == 0 else sums_B.sum()


@pytest.mark.parametrize(
    ("wrong", "finding"),
    [
        (NoBeta(), "nothing reads its setting beta"),
        (bonus_on_the_chosen_side, "a better grade of the preferred answer weakens the push"),
        (mean_over_the_micro_batch, "depends on how a step is cut into micro-batches"),
        (score_without_gradient, "scores_B changes its value but not its gradient: that term teaches nothing"),
        (one_number_a_token, ": it must be one number"),
        (logarithm_of_a_probability, "not finite for log-probabilities of -300"),
        (reads_the_device, "reads a number back from the device (item"),
        (first_prompt_as_baseline, "depends on the order of the prompts"),
        (pushes_the_wrong_way, "does not make the preferred answers likelier than the rejected ones"),
        (ignores_the_weights, "ignores weights_S"),
        (detached, "has no gradient"),
        (half_detached, "not the derivative of its value"),
        (compares_without_saying_so, "set needs_whole_groups"),
    ],
    ids=lambda each: getattr(getattr(each, "function", None), "__name__", None),
)
def test_planted_faults_are_named(wrong, finding: str) -> None:
    findings = check_loss(wrong)
    assert any(finding in found for found in findings), findings


def test_what_raises_is_said() -> None:
    @loss()
    def broken(scored, batch):
        return scored.logprobs_S @ torch.zeros(3, dtype=torch.float64)

    (finding,) = check_loss(broken)
    assert finding.startswith("it raises RuntimeError on a batch of 5 pairs")


def test_a_gradient_stopped_on_purpose_can_be_declared() -> None:
    declared = type(
        "Declared",
        (),
        {
            "normalizer": "scored_tokens",
            "needs_whole_groups": False,
            "stops_gradient": True,
            "__call__": lambda self, scored, batch: half_detached(scored, batch),
        },
    )()
    assert check_loss(declared) == []
    assert replace(NegativeLogLikelihood(), aggregation="token") == NegativeLogLikelihood()


@pytest.mark.parametrize(
    "policy",
    [
        PolicyLoss(max_tokens=5),
        PolicyLoss(aggregation="sequence", dual_clip=3.0),
        PolicyLoss(aggregation="constant", max_tokens=5, kl_coefficient=0.1, kl_estimator="k2"),
        PolicyLoss(ratio="sequence"),
        PolicyLoss(ratio="sequence_token"),
        PolicyLoss(ratio="none"),
        PolicyLoss(surrogate="cispo"),
        PolicyLoss(surrogate="sapo"),
        PolicyLoss(surrogate="gmpo", aggregation="sequence"),
        PolicyLoss(surrogate="dppo", trust_region=0.05),
        PolicyLoss(entropy_coefficient=0.1, importance=ImportanceCorrection()),
        ValueLoss(),
        ValueLoss(clip=None),
        SampledReverseKL(),
        DistillationLoss(),
    ],
    ids=str,
)
def test_losses_of_samples_pass(policy) -> None:
    assert check_loss(policy) == []
