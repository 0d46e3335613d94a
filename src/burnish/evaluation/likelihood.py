"""Answers that are compared by their likelihood, or by a reward model: choices and preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from burnish.data.packing import pack, scored_positions, split_batch
from burnish.evaluation.choosing import choice_score, measures_of
from burnish.evaluation.items import EvalItem
from burnish.models.attention import SegmentAttention
from burnish.models.logprobs import scored_logprobs
from burnish.models.policy import Policy
from burnish.records import Example
from burnish.rollout.reward_model import values_at_ends

TOKENS_AT_ONCE = 4096


@torch.no_grad()
def branch_logprobs(policy: Policy, examples: Sequence[Example]) -> list[list[float]]:
    """For each example, the summed log-probability of each branch's scored tokens after the prompt."""
    batch = pack(examples)
    found = []
    for part in split_batch(batch, TOKENS_AT_ONCE):
        micro = part.to(policy.device)
        plan = SegmentAttention(micro.segments)
        hidden_TH = policy.hidden_states(micro.token_ids_T, micro.position_ids_T, plan)
        logprobs_S, _ = scored_logprobs(hidden_TH[micro.predictor_S], policy.head, micro.target_ids_S)
        found.append(logprobs_S.double().cpu())
    sums_B = torch.zeros(len(batch.group_B), dtype=torch.float64).index_add(0, batch.sequence_S, torch.cat(found))
    sums = iter(sums_B.tolist())
    return [[next(sums) for _ in example.branches] for example in examples]


def compare_answers(
    policy: Policy, items: Sequence[EvalItem], *, normalise: Literal["none", "tokens", "bytes"]
) -> list[dict[str, Any]]:
    """The sample line of each item: what was chosen, and what each of its answers got."""
    examples = [Example(id=item.id, prompt_ids=item.prompt.token_ids, branches=item.branches) for item in items]
    if policy.has_language_head:
        measured = [
            [
                {
                    "logprob": logprob,
                    "tokens": len(scored_positions(branch)),
                    "bytes": len(text.encode()),
                }
                for logprob, branch, text in zip(logprobs, item.branches, item.choices, strict=True)
            ]
            for logprobs, item in zip(branch_logprobs(policy, examples), items, strict=True)
        ]
    else:
        values = iter(values_at_ends(policy, examples))
        measured = [[{"value": next(values)} for _ in item.branches] for item in items]
    return [_line(item, answers, normalise) for item, answers in zip(items, measured, strict=True)]


def _line(item: EvalItem, answers: list[dict[str, Any]], normalise: str) -> dict[str, Any]:
    measures = measures_of(answers, normalise)
    chosen = int(np.argmax(measures))
    return {
        "id": item.id,
        "sample": 0,
        "token_ids": list(item.branches[chosen].token_ids),
        "text": item.choices[chosen],
        "finish_reason": "choice",
        "logprob": answers[chosen].get("logprob"),
        "parsed": item.choices[chosen],
        "score": choice_score(measures, item.right),
        "failure": None,
        "compared": answers,
    }
