"""Sampling and scoring: prompts in, groups of rollouts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.errors import DataError
from burnish.records import Prompt, Rollout, RolloutGroup, SamplingSettings
from burnish.reproducibility.seeds import seed_for
from burnish.rewards.scoring import Score, ScoreFailure, require_scores
from burnish.rewards.shape import overlong_penalty
from burnish.rollout.play import Episode, Play, Sample

OVERLONG = "overlong"
"""The part of a reward that is the penalty of a long answer."""


def judged(rollout: Rollout) -> float:
    """The reward without the penalty of a long answer."""
    return rollout.reward - rollout.components.get(OVERLONG, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscored:
    """A completion that the reward failed for."""

    task_id: str
    text: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Groups of at least two scored rollouts, completions without a score, and faults that a new try made up for.

    `learner_version` is the version of the weights that begin to learn from it, once they do.
    """

    groups: tuple[RolloutGroup, ...]
    failures: tuple[Unscored, ...]
    retried: tuple[Unscored, ...] = ()
    prompts_asked: int = 0
    completions_asked: int = 0
    learner_version: int = 0

    def __add__(self, more: Collected) -> Collected:
        return Collected(
            groups=self.groups + more.groups,
            failures=self.failures + more.failures,
            retried=self.retried + more.retried,
            prompts_asked=self.prompts_asked + more.prompts_asked,
            completions_asked=self.completions_asked + more.completions_asked,
        )

    def require_scores(self) -> None:
        """Check that a step can be made of it.

        Raises:
            DataError: more than half of the completions have no score, or no group has two that have.
        """
        require_scores([each.reason for each in self.failures], self.completions_asked)
        if not self.groups:
            raise DataError(f"no group has two completions with a reward; first failure: {self.failures[0].reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Samples `group_size` completions per prompt and scores them.

    With `overlong_buffer` a completion that ends in the last so many tokens before the limit loses up to 1.
    """

    group_size: int
    sampling: SamplingSettings
    play: Play
    seed: int
    overlong_buffer: int = 0

    def __call__(
        self, sample: Sample, prompts: Sequence[Prompt], *, step: int, weight_version: int, first: int = 0
    ) -> Collected:
        """Collect the groups of one step; `first` counts those that were asked in it before."""
        # The index tells apart a task that an epoch's end puts into one step twice.
        seeds = [
            tuple(
                seed_for(self.seed, "rollout", step, prompt.task.id, index, member) for member in range(self.group_size)
            )
            for index, prompt in enumerate(prompts, start=first)
        ]
        played = self.play(sample, prompts, seeds, self.sampling)
        groups, failures, retried = [], [], []
        for index, (prompt, episodes) in enumerate(zip(prompts, played, strict=True), start=first):
            rollouts = []
            for episode in episodes:
                about = {"task_id": prompt.task.id, "text": episode.completion.text}
                retried += [Unscored(**about, reason=reason) for reason in episode.retried]
                if isinstance(episode.score, ScoreFailure):
                    failures.append(Unscored(**about, reason=episode.score.reason))
                else:
                    rollouts.append(self._rollout(episode, episode.score))
            if len(rollouts) >= 2:
                groups.append(
                    RolloutGroup(id=index, prompt=prompt, rollouts=tuple(rollouts), weight_version=weight_version)
                )
        return Collected(
            groups=tuple(groups),
            failures=tuple(failures),
            retried=tuple(retried),
            prompts_asked=len(prompts),
            completions_asked=len(prompts) * self.group_size,
        )

    def _rollout(self, episode: Episode, score: Score) -> Rollout:
        value, components = score.value, score.components
        if self.overlong_buffer:
            num_tokens = len(episode.completion.token_ids)
            penalty = overlong_penalty(num_tokens, self.sampling.max_tokens, self.overlong_buffer)
            value, components = value + penalty, {**(components or {"reward": value}), OVERLONG: penalty}
        return Rollout(
            completion=episode.completion,
            reward=value,
            components=components,
            observed=episode.observed,
            turns=episode.turns,
            ended=episode.ended,
        )
