"""Greedy answers to held-out questions, kept item by item; every figure is computed from the items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from burnish.records import GenerationRequest, Prompt, SamplingSettings
from burnish.rewards.scoring import Reward, ScoreFailure, require_scores, score_all
from burnish.rollout.collect import Sample
from burnish.stats.paired import PairedComparison, compare_paired

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The questions and how their answers are judged. An answer that cannot be scored is wrong, and says why."""

    prompts: Sequence[Prompt]
    reward: Reward
    reward_timeout_seconds: float
    sampling: SamplingSettings
    right_at: float

    def evaluate(self, sample: Sample) -> list[Item]:
        """One item per question, in order.

        Raises:
            DataError: the reward failed for more than half of the answers.
        """
        requests = [
            GenerationRequest(token_ids=prompt.token_ids, sampling=self.sampling, seeds=(0,)) for prompt in self.prompts
        ]
        completions = [group[0] for group in sample(requests)]
        tasks = [prompt.task for prompt in self.prompts]
        pairs = list(zip(completions, tasks, strict=True))
        scores = score_all(self.reward, pairs, timeout_seconds=self.reward_timeout_seconds)
        require_scores(scores)
        items: list[Item] = []
        for (completion, task), score in zip(pairs, scores, strict=True):
            value, failure = (None, score.reason) if isinstance(score, ScoreFailure) else (score.value, None)
            items.append(
                {
                    "task_id": task.id,
                    "messages": [asdict(message) for message in task.messages],
                    "answer": task.answer,
                    "text": completion.text,
                    "token_ids": completion.token_ids,
                    "finish_reason": completion.finish_reason,
                    "score": value,
                    "failure": failure,
                    "is_right": value is not None and value >= self.right_at,
                }
            )
        return items


def accuracy(items: Sequence[Item]) -> float:
    """Share of right answers."""
    return sum(bool(item["is_right"]) for item in items) / len(items)


def compare_items(before: Sequence[Item], after: Sequence[Item]) -> PairedComparison:
    """Pair two evaluations by item.

    Raises:
        ValueError: they are not of the same questions in the same order.
    """
    if [item["task_id"] for item in before] != [item["task_id"] for item in after]:
        raise ValueError("the two evaluations are not of the same questions")
    return compare_paired([item["is_right"] for item in before], [item["is_right"] for item in after])


def verdict(comparison: PairedComparison) -> str:
    """One line that a person can trust. Better or worse is said where interval and test both exclude no difference."""
    c = comparison
    is_clear = c.p_value < 0.05 and (c.low > 0 or c.high < 0)
    word = ("better" if c.difference > 0 else "worse") if is_clear else "undecided, more items or runs would tell"
    return (
        f"held-out accuracy {c.accuracy_a:.3f} -> {c.accuracy_b:.3f} on {c.n} items: "
        f"difference {c.difference:+.3f}, 95% CI [{c.low:+.3f}, {c.high:+.3f}], exact McNemar p = {c.p_value:.2g}: "
        f"{word}"
    )
