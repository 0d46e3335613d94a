"""Answers that the model gives itself, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.evaluation.items import EvalItem
from burnish.records import Completion, Message, SamplingSettings, Task
from burnish.reproducibility.seeds import seed_for
from burnish.rewards.scoring import Reward, Score, ScoreFailure, score_all
from burnish.rollout.play import Episode, Play, Sample, conversation_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """How the model is asked and judged; see EvalTaskConfig for `right_at` and `parse`."""

    play: Play
    sampling: SamplingSettings
    samples_per_item: int
    right_at: float | None
    parse: Callable[[str], Any] | None
    seed: int

    def answers(self, sample: Sample, items: Sequence[EvalItem]) -> tuple[list[dict[str, Any]], int]:
        """(sample lines of every item in order, number of tokens that the model said)."""
        seeds = [
            tuple(seed_for(self.seed, "evaluation", item.id, number) for number in range(self.samples_per_item))
            for item in items
        ]
        played = self.play(sample, [item.prompt for item in items], seeds, self.sampling)
        lines = [
            self._line(item.id, number, episode)
            for item, episodes in zip(items, played, strict=True)
            for number, episode in enumerate(episodes)
        ]
        said = sum(
            len(episode.completion.token_ids) - sum(end - start for start, end in episode.observed)
            for episodes in played
            for episode in episodes
        )
        return lines, said

    def _line(self, name: str, number: int, episode: Episode) -> dict[str, Any]:
        completion = episode.completion
        return {
            "id": name,
            "sample": number,
            "token_ids": list(completion.token_ids),
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "logprob": sum(completion.model_logprobs),
            "parsed": None if self.parse is None else _parsed(self.parse, completion.text),
            **scored(episode.score, self.right_at),
            **conversation_line(episode.turns, episode.ended),
        }


def _parsed(parse: Callable[[str], Any], text: str) -> str | None:
    """The answer in the text, as text; a parser that raises has found none."""
    try:
        found = parse(text)
    except Exception:  # a user's code may raise anything
        return None
    return None if found is None else str(found)


def scored(score: Score | ScoreFailure, right_at: float | None) -> dict[str, Any]:
    """The fields of a sample line that the reward decides: score, what it was made of, or why there is none."""
    if isinstance(score, ScoreFailure):
        return {"score": None, "failure": score.reason}
    value = score.value if right_at is None else float(score.value >= right_at)
    made_of = {"reward": score.value} if right_at is not None else {}
    parts = {"components": dict(score.components)} if score.components else {}
    return {"score": value, "failure": None, **made_of, **parts}


def score_again(
    reward: Reward,
    items: Sequence[dict[str, Any]],
    samples: Sequence[dict[str, Any]],
    *,
    right_at: float | None,
    timeout_seconds: float,
) -> list[dict[str, Any]]:
    """What the reward says now of stored answers: the fields that `scored` makes, one mapping a sample."""
    tasks = {
        item["id"]: Task(
            id=item["id"],
            messages=tuple(Message(**message) for message in item["messages"]),
            answer=item["answer"],
            extra=item["extra"],
        )
        for item in items
    }
    pairs = []
    for line in samples:
        completion = Completion(
            token_ids=tuple(line["token_ids"]),
            text=line["text"],
            sampling_logprobs=(),
            model_logprobs=(),
            finish_reason=line["finish_reason"],
        )
        pairs.append((completion, tasks[line["id"]]))
    return [scored(score, right_at) for score in score_all(reward, pairs, timeout_seconds=timeout_seconds)]
