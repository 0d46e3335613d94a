"""Sampling and scoring: prompts in, groups of rollouts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from burnish.errors import DataError
from burnish.records import Completion, GenerationRequest, Prompt, Rollout, RolloutGroup, SamplingSettings
from burnish.reproducibility.seeds import seed_for
from burnish.rewards.scoring import Reward, Score, ScoreFailure, require_scores, score_all
from burnish.rewards.shape import overlong_penalty

Sample = Callable[[Sequence[GenerationRequest]], list[tuple[Completion, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscored:
    """A completion that the reward failed for."""

    task_id: str
    text: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Groups of at least two scored rollouts, and the completions without a score."""

    groups: tuple[RolloutGroup, ...]
    failures: tuple[Unscored, ...]
    prompts_asked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Samples `group_size` completions per prompt and scores them.

    With `overlong_buffer` a completion that ends in the last so many tokens before the limit loses up to 1.
    """

    group_size: int
    sampling: SamplingSettings
    reward: Reward
    reward_timeout_seconds: float
    seed: int
    overlong_buffer: int = 0

    def __call__(
        self, sample: Sample, prompts: Sequence[Prompt], *, step: int, weight_version: int, first: int = 0
    ) -> Collected:
        """Collect the groups of one step; `first` counts those that were asked in it before.

        Raises:
            DataError: the reward failed for more than half of the completions, or left no group with two scores.
        """
        requests = []
        for index, prompt in enumerate(prompts, start=first):
            # The index tells apart a task that an epoch's end puts into one step twice.
            members = range(self.group_size)
            seeds = tuple(seed_for(self.seed, "rollout", step, prompt.task.id, index, member) for member in members)
            requests.append(GenerationRequest(token_ids=prompt.token_ids, sampling=self.sampling, seeds=seeds))
        completions = sample(requests)
        pairs = [(each, prompt.task) for prompt, group in zip(prompts, completions, strict=True) for each in group]
        scores = score_all(self.reward, pairs, timeout_seconds=self.reward_timeout_seconds)
        require_scores(scores)
        failures = [
            Unscored(task_id=task.id, text=completion.text, reason=score.reason)
            for (completion, task), score in zip(pairs, scores, strict=True)
            if isinstance(score, ScoreFailure)
        ]
        groups = []
        remaining = iter(scores)
        for index, (prompt, group) in enumerate(zip(prompts, completions, strict=True), start=first):
            scored = [(each, next(remaining)) for each in group]
            rollouts = tuple(
                self._rollout(each, score) for each, score in scored if not isinstance(score, ScoreFailure)
            )
            if len(rollouts) >= 2:
                groups.append(RolloutGroup(id=index, prompt=prompt, rollouts=rollouts, weight_version=weight_version))
        if not groups:
            raise DataError(f"no group has two completions with a reward; first failure: {failures[0].reason}")
        return Collected(groups=tuple(groups), failures=tuple(failures), prompts_asked=len(prompts))

    def _rollout(self, completion: Completion, score: Score) -> Rollout:
        if not self.overlong_buffer:
            return Rollout(completion=completion, reward=score.value, components=score.components)
        penalty = overlong_penalty(len(completion.token_ids), self.sampling.max_tokens, self.overlong_buffer)
        components = {**(score.components or {"reward": score.value}), "overlong": penalty}
        return Rollout(completion=completion, reward=score.value + penalty, components=components)
