"""Drawing tokens: each row with its own settings and its own noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burnish.records import SamplingSettings

_BLOCK = 128

# From a count to that many numbers in (0, 1) for each row, [R, count].
Noise = Callable[[int], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token per row with its log-probability under what was drawn from and under the model."""

    ids_R: Tensor
    sampling_logprobs_R: Tensor
    model_logprobs_R: Tensor


def draw(logits_RV: Tensor, settings_R: Sequence[SamplingSettings], noise: Noise) -> Drawn:
    """Draw one token per row; `logits_RV` are float32. A draw depends on its row of logits and of noise alone.

    By the Gumbel-max trick in two levels: first among blocks of token ids, by the mass of each, then inside the block.
    The winner changes under a small error of the logits only if the runner-up is as near as that error. The inverse
    of the cumulative distribution would need one random number instead of a few hundred, but each of its tens of
    thousands of boundaries moves with every error: on a vocabulary of 49,152 another batch size then changed one
    token in a thousand, even in float32.
    """
    temperatures_R = torch.tensor([settings.temperature for settings in settings_R], device=logits_RV.device)
    is_greedy_R = temperatures_R == 0
    model_logprobs_RV = torch.log_softmax(logits_RV, dim=1)
    if bool((temperatures_R == 1).all()) and not any(map(_truncates, settings_R)):
        sampling_logprobs_RV = model_logprobs_RV
    else:
        scaled_RV = logits_RV / temperatures_R.masked_fill(is_greedy_R, 1.0)[:, None]
        sampling_logprobs_RV = torch.log_softmax(_truncate(scaled_RV, settings_R), dim=1)
    if bool(is_greedy_R.all()):
        ids_R = logits_RV.argmax(1)
    else:
        ids_R = _gumbel_max(sampling_logprobs_RV, noise)
        if bool(is_greedy_R.any()):
            ids_R = torch.where(is_greedy_R, logits_RV.argmax(1), ids_R)
    sampling_logprobs_R = sampling_logprobs_RV.gather(1, ids_R[:, None])[:, 0].masked_fill(is_greedy_R, 0.0)
    return Drawn(ids_R, sampling_logprobs_R, model_logprobs_RV.gather(1, ids_R[:, None])[:, 0])


def _truncates(settings: SamplingSettings) -> bool:
    return settings.temperature > 0 and (settings.top_k > 0 or settings.top_p < 1 or settings.min_p > 0)


def _truncate(logits_RV: Tensor, settings_R: Sequence[SamplingSettings]) -> Tensor:
    """Set the logits of tokens outside top_k, top_p and min_p to -inf, for the rows that ask for it.

    Each filter looks at the distribution that the one before it left. The most likely token always stays; of equally
    likely tokens the lower id counts as the more likely.
    """
    rows = [row for row, settings in enumerate(settings_R) if _truncates(settings)]
    if not rows:
        return logits_RV
    chosen = [settings_R[row] for row in rows]
    vocabulary, device = logits_RV.shape[1], logits_RV.device
    top_k_R = torch.tensor([settings.top_k or vocabulary for settings in chosen], device=device)[:, None]
    top_p_R = torch.tensor([settings.top_p for settings in chosen], dtype=torch.float64, device=device)[:, None]
    min_p_R = torch.tensor([settings.min_p for settings in chosen], dtype=torch.float64, device=device)[:, None]
    sorted_RV, order_RV = logits_RV[rows].double().sort(dim=1, descending=True, stable=True)
    sorted_RV = sorted_RV.masked_fill(torch.arange(vocabulary, device=device) >= top_k_R, float("-inf"))
    probabilities_RV = sorted_RV.softmax(1)
    # Keep a token while the mass *before* it is below top_p: the smallest set that reaches it.
    before_RV = probabilities_RV.cumsum(1) - probabilities_RV
    dropped_RV = (before_RV >= top_p_R) & (top_p_R < 1)
    dropped_RV |= probabilities_RV < min_p_R * probabilities_RV[:, :1]
    dropped_RV |= sorted_RV.isinf()
    dropped_RV[:, 0] = False
    drop_by_id_RV = torch.zeros_like(dropped_RV).scatter_(1, order_RV, dropped_RV)
    truncated_RV = logits_RV.clone()
    truncated_RV[rows] = logits_RV[rows].masked_fill(drop_by_id_RV, float("-inf"))
    return truncated_RV


def _gumbel_max(logprobs_RV: Tensor, noise: Noise) -> Tensor:
    rows, vocabulary = logprobs_RV.shape
    padding = -vocabulary % _BLOCK
    if padding:
        logprobs_RV = torch.nn.functional.pad(logprobs_RV, (0, padding), value=float("-inf"))
    blocks = logprobs_RV.view(rows, -1, _BLOCK)
    gumbel = torch.from_numpy(-np.log(-np.log(noise(blocks.shape[1] + _BLOCK)))).to(logprobs_RV.device)
    masses = blocks.exp().sum(2)  # float32 loses nothing of 128 numbers; float64 would copy them all
    block_R = (masses.double().log() + gumbel[:, : blocks.shape[1]]).argmax(1)
    inside = blocks[torch.arange(rows, device=blocks.device), block_R].double()
    return block_R * _BLOCK + (inside + gumbel[:, blocks.shape[1] :]).argmax(1)
