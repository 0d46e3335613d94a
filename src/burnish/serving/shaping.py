"""What an answer's settings make of the model's logits before a token is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from burnish.serving.asks import Ask


class Shaped(Protocol):
    """An answer in the making: what was asked, and how often it said each token."""

    ask: Ask
    counts: Counter[int]


def shaped(logits_RV: Tensor, rows: Sequence[Shaped], forbidden: Mapping[int, Tensor]) -> Tensor:
    """The logits with each row's bias, penalties and form; the same tensor where there are none."""
    if not any(row.ask.shapes_logits for row in rows):
        return logits_RV
    shaped_RV = logits_RV.clone()
    for index, row in enumerate(rows):
        change = dict(row.ask.logit_bias)
        for token, count in row.counts.items():
            penalty = row.ask.presence_penalty + row.ask.frequency_penalty * count
            change[token] = change.get(token, 0.0) - penalty
        if change:
            ids = torch.tensor(list(change), device=logits_RV.device)
            shaped_RV[index, ids] += torch.tensor(list(change.values()), device=logits_RV.device)
        if index in forbidden:
            shaped_RV[index].masked_fill_(forbidden[index].to(logits_RV.device), float("-inf"))
    return shaped_RV


def tops_of(logits_RV: Tensor, rows: Sequence[Shaped]) -> dict[int, tuple[tuple[int, float], ...]]:
    """The likeliest tokens under the model, for the rows that ask for some."""
    asking = [index for index, row in enumerate(rows) if row.ask.num_top]
    if not asking:
        return {}
    top = logits_RV[asking].log_softmax(1).topk(max(rows[index].ask.num_top or 0 for index in asking))
    pairs = zip(asking, top.indices.tolist(), top.values.tolist(), strict=True)
    return {index: tuple(zip(ids, values, strict=True))[: rows[index].ask.num_top] for index, ids, values in pairs}
