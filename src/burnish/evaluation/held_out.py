"""What a model makes of held-out items, kept item by item; every figure is computed from the items.

An item has an `id` and a `score`, the higher the better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from burnish.records import Prompt, SamplingSettings
from burnish.reproducibility.record import extra_sha256
from burnish.rewards.scoring import ScoreFailure, require_scores
from burnish.rollout.play import Play, Sample, conversation_line

if TYPE_CHECKING:
    from burnish.stats.difference import Difference

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The questions and how their answers are judged. An answer that cannot be scored is wrong, and says why."""

    prompts: Sequence[Prompt]
    play: Play
    sampling: SamplingSettings
    right_at: float

    def evaluate(self, sample: Sample) -> list[Item]:
        """One item per question, in order.

        Raises:
            DataError: the reward failed for more than half of the answers.
        """
        played = self.play(sample, self.prompts, [(0,)] * len(self.prompts), self.sampling)
        scores = [episode.score for (episode,) in played]
        require_scores([score.reason for score in scores if isinstance(score, ScoreFailure)], len(scores))
        items: list[Item] = []
        for prompt, (episode,) in zip(self.prompts, played, strict=True):
            task, completion, score = prompt.task, episode.completion, episode.score
            value, failure = (None, score.reason) if isinstance(score, ScoreFailure) else (score.value, None)
            items.append(
                {
                    "id": task.id,
                    "score": float(value is not None and value >= self.right_at),
                    "messages": [asdict(message) for message in task.messages],
                    "answer": task.answer,
                    "extra_sha256": extra_sha256(task),
                    "text": completion.text,
                    "token_ids": completion.token_ids,
                    "finish_reason": completion.finish_reason,
                    "reward": value,
                    "failure": failure,
                    **conversation_line(episode.turns, episode.ended),
                }
            )
        return items


def mean_score(items: Sequence[Item]) -> float:
    """Mean of the items' scores: the share of right answers where a score is 0 or 1."""
    return sum(float(item["score"]) for item in items) / len(items)


def compare_items(before: Sequence[Item], after: Sequence[Item]) -> Difference:
    """Pair two evaluations by item.

    Raises:
        ValueError: they are not of the same items in the same order.
    """
    from burnish.stats.paired import compare_paired  # brings scipy.stats, half a second that no first step waits for

    if [item["id"] for item in before] != [item["id"] for item in after]:
        raise ValueError("the two evaluations are not of the same items")
    return compare_paired(*([float(item["score"]) for item in items] for items in (before, after)))


def verdict(measure: str, found: Difference) -> str:
    """One line that a person can trust."""
    from burnish.stats.wording import in_words  # brings scipy.stats

    return f"held-out {measure} {found.mean_a:.3f} -> {found.mean_b:.3f} on {found.n} items: {in_words(found)}"
