"""From prompts to scored episodes; here the plain one, an answer and its reward. `conversations.py` has the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from burnish.records import Completion, Ended, GenerationRequest, Prompt, SamplingSettings, Turn
from burnish.rewards.scoring import Reward, Score, ScoreFailure, score_all

Sample = Callable[[Sequence[GenerationRequest]], list[tuple[Completion, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """What was said after a prompt, whole, and how good it was; see Rollout for `observed`, `turns` and `ended`.

    `retried` are the faults of the environment that a second try made up for.
    """

    completion: Completion
    score: Score | ScoreFailure
    observed: tuple[tuple[int, int], ...] = ()
    turns: tuple[Turn, ...] = ()
    ended: Ended = "done"
    retried: tuple[str, ...] = ()


class Play(Protocol):
    """Plays every prompt once for each of its seeds."""

    def __call__(
        self, sample: Sample, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]], sampling: SamplingSettings
    ) -> list[list[Episode]]:
        """A list per prompt, with an episode per seed. One that fails has no score, and fails alone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleTurn:
    """One answer, scored by a reward."""

    reward: Reward
    timeout_seconds: float

    def __call__(
        self, sample: Sample, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]], sampling: SamplingSettings
    ) -> list[list[Episode]]:
        """See Play."""
        requests = [
            GenerationRequest(token_ids=prompt.token_ids, sampling=sampling, seeds=own)
            for prompt, own in zip(prompts, seeds, strict=True)
        ]
        completions = sample(requests)
        pairs = [(each, prompt.task) for prompt, group in zip(prompts, completions, strict=True) for each in group]
        scores = iter(score_all(self.reward, pairs, timeout_seconds=self.timeout_seconds))
        return [[Episode(completion=each, score=next(scores)) for each in group] for group in completions]


def conversation_line(turns: Sequence[Turn], ended: Ended) -> dict[str, Any]:
    """The turns of a conversation as they are stored; nothing where there was one answer."""
    return {"turns": [asdict(turn) for turn in turns], "ended": ended} if turns else {}
