"""The DPO family: losses of a preferred and a rejected answer to the same prompt.

Each named loss maps the pairs of a micro-batch to one number a pair. With the log-ratios of policy to reference
`w` (chosen) and `l` (rejected), both summed over tokens, `d = w - l`, and beta `b`:

    sigmoid     -log s(b d)                          DPO, Rafailov et al. 2023, eq. 7
    cdpo        -(1-e) log s(b d) - e log s(-b d)    conservative DPO, Mitchell 2023, eq. 3; e = label_smoothing
    robust      ((1-e)(-log s(b d)) - e(-log s(-b d))) / (1-2e)          Chowdhury et al. 2024, eq. 10
    hinge       max(0, 1 - b d)                      SLiC, Zhao et al. 2023; RSO, Liu et al. 2024, eq. 9
    ipo         (d_mean - 1/(2b))^2                  Azar et al. 2024, eq. 17, on log-ratios averaged over tokens
    exo         KL of softmax(b w, b l) to (1-e, e)  Ji et al. 2024, eq. 16
    nca         -log s(b w) - (log s(-b w) + log s(-b l)) / 2            Chen et al. 2024, algorithm for K = 2
    bco         -log s(b w - t) - log s(t - b l)     Jung et al. 2024; t = reward_shift, the mean of past rewards
    sppo_hard   (w - 1/(2b))^2 + (l + 1/(2b))^2      Wu et al. 2024, eq. 4.7 with hard labels
    apo_zero    1 - s(b w) + s(b l)                  D'Oosterlinck et al. 2024, eq. 7
    apo_down    s(b w) + 1 - s(b d)                  ibid., eq. 8
    discopop    (1-m)(-log s(x)) + m exp(-x), x = b d, m = s(x / tau)    Lu et al. 2024, eq. 5
    sigmoid_norm  -log s(b d_mean)                   length-normalised DPO, Tulu 3, Lambert et al. 2024, eq. 6
    simpo       -log s(b (mean logp difference) - margin)                Meng et al. 2024, eq. 6; no reference
    orpo        chosen mean NLL + b (-log s(log odds ratio))             Hong et al. 2024, eq. 6; no reference
    nll         chosen mean NLL                      the anchor of RPO, Pang et al. 2024, eq. 2; no reference
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from burnish.errors import DataError
from burnish.losses.kl import kl_estimate
from burnish.losses.loss import Normalizer, need
from burnish.records import LossOutput, Metric, Scored, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Sums over the tokens of each side, per pair. Without a reference the log-ratios are the log-probabilities."""

    chosen_logprobs_G: Tensor
    rejected_logprobs_G: Tensor
    chosen_logratios_G: Tensor
    rejected_logratios_G: Tensor
    chosen_lengths_G: Tensor
    rejected_lengths_G: Tensor
    score_differences_G: Tensor
    weights_G: Tensor

    @property
    def mean_chosen_logprobs_G(self) -> Tensor:
        """Mean log-probability of a token of the chosen answer."""
        return self.chosen_logprobs_G / self.chosen_lengths_G

    @property
    def mean_rejected_logprobs_G(self) -> Tensor:
        """Mean log-probability of a token of the rejected answer."""
        return self.rejected_logprobs_G / self.rejected_lengths_G

    @property
    def mean_delta_G(self) -> Tensor:
        """Difference of the log-ratios, each averaged over its tokens."""
        return self.chosen_logratios_G / self.chosen_lengths_G - self.rejected_logratios_G / self.rejected_lengths_G


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceLoss:
    """A weighted sum of named losses of the table above.

    `score_margin` asks for a larger difference where the grades of the two answers differ more: b d - score_margin x
    (score difference) takes the place of b d (ODPO, Amini et al. 2024, eq. 8 with f the identity). A pair's weight is
    that of its chosen branch.
    """

    normalizer: ClassVar[Normalizer] = "groups"
    needs_whole_groups: ClassVar[bool] = True
    weights: Mapping[str, float] = field(default_factory=lambda: {"sigmoid": 1.0})
    beta: float = 0.1
    label_smoothing: float = 0.0
    margin: float = 0.0
    tau: float = 0.05
    score_margin: float = 0.0
    reward_shift: float = 0.0

    @property
    def unused_settings(self) -> frozenset[str]:
        """Settings that none of the named losses reads."""
        return frozenset(name for name, users in USED_BY.items() if not users & set(self.weights))

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """See Loss."""
        has_reference = bool(set(self.weights) - REFERENCE_FREE)
        pairs = pairs_of(scored, batch, has_reference=has_reference)
        # the reward of simpo is the mean, not the sum
        metrics = pair_metrics(pairs, self.beta, of_means="simpo" in self.weights and not has_reference)
        if has_reference:
            metrics |= kl_metrics(scored, batch)
        total = torch.zeros(())
        for name, weight in self.weights.items():
            loss_G = NAMED[name](pairs, self) * pairs.weights_G
            total = total + weight * loss_G.sum()
            metrics[f"loss.{name}"] = Metric(loss_G.detach().sum(), "mean", len(loss_G))
        return LossOutput(total=total, metrics=metrics)

    def logits(self, pairs: Pairs) -> Tensor:
        """What the sigmoid is taken of: b d, less the margin that the grades ask for."""
        delta_G = pairs.chosen_logratios_G - pairs.rejected_logratios_G
        return self.beta * delta_G - self.score_margin * pairs.score_differences_G


def pair_metrics(pairs: Pairs, beta: float, *, of_means: bool = False) -> dict[str, Metric]:
    """Rewards of both sides, their margin and order, and how far each side has moved; `of_means` as in SimPO."""
    chosen_G, rejected_G = pairs.chosen_logratios_G.detach(), pairs.rejected_logratios_G.detach()
    if of_means:
        chosen_G, rejected_G = pairs.mean_chosen_logprobs_G.detach(), pairs.mean_rejected_logprobs_G.detach()
    count = len(chosen_G)
    margin_G = beta * (chosen_G - rejected_G)
    return {
        "reward_chosen": Metric(beta * chosen_G.sum(), "mean", count),
        "reward_rejected": Metric(beta * rejected_G.sum(), "mean", count),
        "reward_margin": Metric(margin_G.sum(), "mean", count),
        "reward_accuracy": Metric(right(margin_G).sum(), "mean", count),
        "drift_chosen": Metric(chosen_G.sum(), "mean", count),
        "drift_rejected": Metric(rejected_G.sum(), "mean", count),
    }


def kl_metrics(scored: Scored, batch: TokenBatch) -> dict[str, Metric]:
    """How far the policy is from the reference on these tokens.

    By k2: the tokens are not the policy's own, and of such tokens k3 is at the mercy of a single one.
    """
    reference_logprobs_S = need(batch.reference_logprobs_S, "reference_logprobs_S")
    kl_S = kl_estimate(scored.logprobs_S.detach(), reference_logprobs_S, "k2")
    return {"kl": Metric(kl_S.sum(), "mean", len(kl_S))}


def right(margins_G: Tensor) -> Tensor:
    """1 where the preferred answer is ahead, 0 where it is behind, 1/2 for a tie."""
    return (margins_G > 0).float() + 0.5 * (margins_G == 0).float()


def sequence_sums(values_S: Tensor, batch: TokenBatch) -> Tensor:
    """Sum over the scored tokens of each sequence, [B]."""
    return values_S.new_zeros(len(batch.group_B)).index_add(0, batch.sequence_S, values_S)


def pairs_of(scored: Scored, batch: TokenBatch, *, has_reference: bool) -> Pairs:
    """The pairs of a batch whose groups are a chosen branch and a rejected one.

    Raises:
        DataError: a group is something else.
    """
    if len(batch.labels_B) % 2 or any(len(segment.branch_lengths) != 2 for segment in batch.segments):
        raise DataError("a preference loss needs pairs: one chosen and one rejected answer to each prompt")
    logprobs_B = sequence_sums(scored.logprobs_S, batch)
    logratios_B = logprobs_B
    if has_reference:
        logratios_B = logprobs_B - sequence_sums(need(batch.reference_logprobs_S, "reference_logprobs_S"), batch)
    lengths_B = sequence_sums(torch.ones_like(scored.logprobs_S), batch)
    weights_B = sequence_sums(batch.weights_S, batch) / lengths_B
    return Pairs(
        chosen_logprobs_G=logprobs_B[0::2],
        rejected_logprobs_G=logprobs_B[1::2],
        chosen_logratios_G=logratios_B[0::2],
        rejected_logratios_G=logratios_B[1::2],
        chosen_lengths_G=lengths_B[0::2],
        rejected_lengths_G=lengths_B[1::2],
        score_differences_G=batch.scores_B[0::2] - batch.scores_B[1::2],
        weights_G=weights_B[0::2],
    )


def _sigmoid(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    return -logsigmoid(loss.logits(pairs))


def _cdpo(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    logits_G, epsilon = loss.logits(pairs), loss.label_smoothing
    return -(1 - epsilon) * logsigmoid(logits_G) - epsilon * logsigmoid(-logits_G)


def _robust(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    logits_G, epsilon = loss.logits(pairs), loss.label_smoothing
    return (-(1 - epsilon) * logsigmoid(logits_G) + epsilon * logsigmoid(-logits_G)) / (1 - 2 * epsilon)


def _hinge(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    return (1 - loss.logits(pairs)).relu()


def _ipo(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    return (pairs.mean_delta_G - 1 / (2 * loss.beta)).square()


def _exo(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    logits_G, epsilon = loss.logits(pairs), loss.label_smoothing
    chosen_G = logits_G.sigmoid() * (logsigmoid(logits_G) - math.log1p(-epsilon))
    return chosen_G + (-logits_G).sigmoid() * (logsigmoid(-logits_G) - math.log(epsilon))


def _nca(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    chosen_G, rejected_G = loss.beta * pairs.chosen_logratios_G, loss.beta * pairs.rejected_logratios_G
    return -logsigmoid(chosen_G) - (logsigmoid(-chosen_G) + logsigmoid(-rejected_G)) / 2


def _bco(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    chosen_G, rejected_G = loss.beta * pairs.chosen_logratios_G, loss.beta * pairs.rejected_logratios_G
    return -logsigmoid(chosen_G - loss.reward_shift) - logsigmoid(loss.reward_shift - rejected_G)


def _sppo_hard(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    half = 1 / (2 * loss.beta)
    return (pairs.chosen_logratios_G - half).square() + (pairs.rejected_logratios_G + half).square()


def _apo_zero(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    chosen_G, rejected_G = loss.beta * pairs.chosen_logratios_G, loss.beta * pairs.rejected_logratios_G
    return 1 - chosen_G.sigmoid() + rejected_G.sigmoid()


def _apo_down(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    return (loss.beta * pairs.chosen_logratios_G).sigmoid() + 1 - loss.logits(pairs).sigmoid()


def _discopop(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    logits_G = loss.logits(pairs)
    share_G = (logits_G / loss.tau).sigmoid()
    # exp(-x) sigmoid(x / tau), which alone would be infinite times 0 for a pair that is far behind
    exponential_G = (logsigmoid(logits_G / loss.tau) - logits_G).exp()
    return -logsigmoid(logits_G) * (1 - share_G) + exponential_G


def _sigmoid_norm(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    return -logsigmoid(loss.beta * pairs.mean_delta_G - loss.score_margin * pairs.score_differences_G)


def _simpo(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    return -logsigmoid(loss.beta * (pairs.mean_chosen_logprobs_G - pairs.mean_rejected_logprobs_G) - loss.margin)


def _orpo(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    log_odds_G = _log_odds(pairs.mean_chosen_logprobs_G) - _log_odds(pairs.mean_rejected_logprobs_G)
    return _nll(pairs, loss) - loss.beta * logsigmoid(log_odds_G)


def _nll(pairs: Pairs, loss: PreferenceLoss) -> Tensor:
    return -pairs.mean_chosen_logprobs_G


def _log_odds(logprobs_G: Tensor) -> Tensor:
    """log(p / (1 - p)), with 1 - p from expm1 because p may be near 1."""
    return logprobs_G - torch.log(-torch.expm1(logprobs_G.clamp(max=-1e-7)))


NAMED: Mapping[str, Callable[[Pairs, PreferenceLoss], Tensor]] = {
    "sigmoid": _sigmoid,
    "cdpo": _cdpo,
    "robust": _robust,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo": _exo,
    "nca": _nca,
    "bco": _bco,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sigmoid_norm": _sigmoid_norm,
    "simpo": _simpo,
    "orpo": _orpo,
    "nll": _nll,
}
REFERENCE_FREE = frozenset({"simpo", "orpo", "nll"})
USED_BY: Mapping[str, frozenset[str]] = {
    "beta": frozenset(NAMED) - {"nll"},
    "label_smoothing": frozenset({"cdpo", "robust", "exo"}),
    "margin": frozenset({"simpo"}),
    "tau": frozenset({"discopop"}),
    "score_margin": frozenset({"sigmoid", "cdpo", "robust", "hinge", "exo", "apo_down", "discopop", "sigmoid_norm"}),
    "reward_shift": frozenset({"bco"}),
}
"""The named losses that each setting has an effect on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KTOLoss:
    """Unpaired answers, each wanted (label +1) or not (-1): KTO (Ethayarajh et al. 2024, eq. 8).

    1 - s(b (r - z)) for wanted and 1 - s(b (z - r)) for unwanted ones, with r the summed log-ratio and z =
    `kl_baseline` the step's estimate of KL(policy || reference), which carries no gradient.
    """

    normalizer: ClassVar[Normalizer] = "sequences"
    needs_whole_groups: ClassVar[bool] = False
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    kl_baseline: float = 0.0

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """See Loss."""
        reference_logprobs_S = need(batch.reference_logprobs_S, "reference_logprobs_S")
        logratios_B = sequence_sums(scored.logprobs_S - reference_logprobs_S, batch)
        is_wanted_B = batch.labels_B > 0
        value_B = (self.beta * batch.labels_B * (logratios_B - self.kl_baseline)).sigmoid()
        weights_B = torch.where(is_wanted_B, self.desirable_weight, self.undesirable_weight)
        weights_B = weights_B * sequence_sums(batch.weights_S, batch) / torch.bincount(batch.sequence_S)
        rewards_B = self.beta * logratios_B.detach()
        wanted, unwanted = is_wanted_B.float(), (~is_wanted_B).float()
        metrics = {
            "reward_chosen": Metric((rewards_B * wanted).sum(), "mean", wanted.sum()),
            "reward_rejected": Metric((rewards_B * unwanted).sum(), "mean", unwanted.sum()),
        }
        return LossOutput(total=((1 - value_B) * weights_B).sum(), metrics=metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelLoss:
    """Bradley-Terry: -log s(r_i - r_j - margin) for every two answers to a prompt of which i is graded higher.

    Bradley and Terry 1952; Ouyang et al. 2022, eq. 1, which also averages over the pairs of a prompt. With
    `margin_scale` the margin is that times the difference of the grades (Touvron et al. 2023, eq. 2). `centering`
    adds its multiple of (r_i + r_j)^2 (Eisenstein et al. 2023), which pins down the level that differences leave open.
    """

    normalizer: ClassVar[Normalizer] = "groups"
    needs_whole_groups: ClassVar[bool] = True
    margin_scale: float = 0.0
    centering: float = 0.0

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """See Loss; `batch` has one scored entry a sequence."""
        rewards_B = need(scored.values_S, "values_S (a model with a value head)")
        same_BB = batch.group_B[:, None] == batch.group_B[None, :]
        differences_BB = batch.scores_B[:, None] - batch.scores_B[None, :]
        better, worse = torch.nonzero(same_BB & (differences_BB > 0), as_tuple=True)
        pairs_per_group = torch.bincount(batch.group_B[better], minlength=len(batch.segments))
        margins = rewards_B[better] - rewards_B[worse]
        loss = -logsigmoid(margins - self.margin_scale * differences_BB[better, worse])
        loss = loss + self.centering * (rewards_B[better] + rewards_B[worse]).square()
        weights = batch.weights_S[better] / pairs_per_group[batch.group_B[better]]
        detached = rewards_B.detach()
        metrics = {
            "reward_accuracy": Metric(right(margins.detach()).sum(), "mean", len(margins)),
            "reward_margin": Metric(margins.detach().sum(), "mean", len(margins)),
            "reward_mean": Metric(detached.sum(), "mean", len(detached)),
        }
        return LossOutput(total=(loss * weights).sum(), metrics=metrics)
