"""Drawing tokens: each row with its own settings and its own uniform number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burnish.records import SamplingSettings

_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token per row with its log-probability under what was drawn from and under the model."""

    ids_R: Tensor
    sampling_logprobs_R: Tensor
    model_logprobs_R: Tensor


def draw(logits_RV: Tensor, settings_R: list[SamplingSettings], uniforms_R: NDArray[np.float64]) -> Drawn:
    """Draw one token per row by the inverse of the cumulative distribution, in the order of token ids.

    `logits_RV` are float32. A draw depends on its row and its uniform alone. Two computations of the same row that
    differ by rounding (another batch size) give the same token unless the uniform falls within the rounding of a
    boundary between two tokens.
    """
    temperatures_R = torch.tensor([settings.temperature for settings in settings_R])
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
        ids_R = _inverse_cumulative(sampling_logprobs_RV.exp(), torch.from_numpy(uniforms_R))
        if bool(is_greedy_R.any()):
            ids_R = torch.where(is_greedy_R, logits_RV.argmax(1), ids_R)
    sampling_logprobs_R = sampling_logprobs_RV.gather(1, ids_R[:, None])[:, 0].masked_fill(is_greedy_R, 0.0)
    return Drawn(ids_R, sampling_logprobs_R, model_logprobs_RV.gather(1, ids_R[:, None])[:, 0])


def _truncates(settings: SamplingSettings) -> bool:
    return settings.temperature > 0 and (settings.top_k > 0 or settings.top_p < 1 or settings.min_p > 0)


def _truncate(logits_RV: Tensor, settings_R: list[SamplingSettings]) -> Tensor:
    """Set the logits of tokens outside top_k, top_p and min_p to -inf, for the rows that ask for it.

    Each filter looks at the distribution that the one before it left. The most likely token always stays; of equally
    likely tokens the lower id counts as the more likely.
    """
    rows = [row for row, settings in enumerate(settings_R) if _truncates(settings)]
    if not rows:
        return logits_RV
    chosen = [settings_R[row] for row in rows]
    vocabulary = logits_RV.shape[1]
    top_k_R = torch.tensor([settings.top_k or vocabulary for settings in chosen])[:, None]
    top_p_R = torch.tensor([settings.top_p for settings in chosen], dtype=torch.float64)[:, None]
    min_p_R = torch.tensor([settings.min_p for settings in chosen], dtype=torch.float64)[:, None]
    sorted_RV, order_RV = logits_RV[rows].double().sort(dim=1, descending=True, stable=True)
    sorted_RV = sorted_RV.masked_fill(torch.arange(vocabulary) >= top_k_R, float("-inf"))
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


def _inverse_cumulative(probabilities_RV: Tensor, uniforms_R: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds the uniform, found in two levels of blocks.

    torch.multinomial draws one random number per entry on one thread; this needs one per row.
    """
    rows, vocabulary = probabilities_RV.shape
    padded_RV = torch.nn.functional.pad(probabilities_RV, (0, -vocabulary % _BLOCK))
    blocks = padded_RV.view(rows, -1, _BLOCK)
    upto_block = blocks.sum(2, dtype=torch.float64).cumsum(1)
    target_R = uniforms_R * upto_block[:, -1]
    block_R = torch.searchsorted(upto_block, target_R[:, None], right=True).clamp_(max=upto_block.shape[1] - 1)
    before_R = torch.where(block_R > 0, upto_block.gather(1, (block_R - 1).clamp_(min=0)), 0.0)
    inside = blocks[torch.arange(rows), block_R[:, 0]].double().cumsum(1)
    # Where rounding puts the rest of the target beyond the block, its last possible token is the answer.
    rest_R = torch.minimum(target_R[:, None] - before_R, torch.nextafter(inside[:, -1:], torch.zeros(1).double()))
    index_R = torch.searchsorted(inside, rest_R, right=True)
    return (block_R * _BLOCK + index_R)[:, 0]
