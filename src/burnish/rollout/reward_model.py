"""A trained reward model as the reward: `task.reward: model:<folder>`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from burnish.config.schema import ModelConfig
from burnish.data.packing import ends_only, pack, split_batch
from burnish.errors import ConfigError
from burnish.models.attention import SegmentAttention
from burnish.models.load import inspect_model, load_policy
from burnish.models.policy import Policy
from burnish.records import Branch, Example, GenerationRequest, Prompt, SamplingSettings
from burnish.rewards.scoring import Score, ScoreFailure, to_score
from burnish.rollout.play import Episode, Sample

PREFIX = "model:"
_TOKENS_AT_ONCE = 4096


@dataclass(slots=True)
class ScoredByModel:
    """One answer, scored by a reward model on the very tokens that were sampled. See Play.

    The model is loaded when it is first asked: a dry run loads no weights.
    """

    config: ModelConfig
    _policy: Policy | None = field(default=None, init=False)

    def __call__(
        self, sample: Sample, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]], sampling: SamplingSettings
    ) -> list[list[Episode]]:
        """See Play."""
        requests = [
            GenerationRequest(token_ids=prompt.token_ids, sampling=sampling, seeds=own)
            for prompt, own in zip(prompts, seeds, strict=True)
        ]
        completions = sample(requests)
        examples = [
            Example(
                id=prompt.task.id,
                prompt_ids=prompt.token_ids,
                branches=tuple(Branch(token_ids=completion.token_ids) for completion in group),
            )
            for prompt, group in zip(prompts, completions, strict=True)
        ]
        scores = iter(self._scores(examples))
        return [[Episode(completion=each, score=next(scores)) for each in group] for group in completions]

    def _scores(self, examples: Sequence[Example]) -> list[Score | ScoreFailure]:
        if self._policy is None:
            self._policy = load_policy(self.config, seed=0, kind="value")
        return [to_score(value) for value in values_at_ends(self._policy, examples)]


@torch.no_grad()
def values_at_ends(policy: Policy, examples: Sequence[Example]) -> list[float]:
    """What a value model says at the last token of every branch, in order."""
    head = policy.value_head
    if head is None:
        raise ValueError("a model of kind value has a value head")
    values: list[float] = []
    for micro in split_batch(ends_only(pack(examples)), _TOKENS_AT_ONCE):
        plan = SegmentAttention(micro.segments)
        hidden_TH = policy.hidden_states(micro.token_ids_T, micro.position_ids_T, plan)
        values += head(hidden_TH[micro.predictor_S].float())[:, 0].tolist()
    return values


def scored_by_model(reward: str, config: ModelConfig, vocabulary: dict[str, int]) -> ScoredByModel:
    """The reward model that `task.reward` names; `config` is the policy's, whose arithmetic it shares.

    Raises:
        ConfigError: it is no reward model, or its tokens are not the policy's.
        ModelError: there is no such model.
    """
    path = reward.removeprefix(PREFIX)
    facts = inspect_model(path)
    if not facts.is_value_model:
        raise ConfigError(f"task.reward: {path} is no reward model: train one with `burnish train reward_model`")
    if facts.tokenizer.get_vocab() != vocabulary:
        raise ConfigError(f"task.reward: the vocabulary of {path} is not the policy's: it would read other words")
    model = config.model_copy(update={"path": path, "lora": None})
    return ScoredByModel(model)


def is_model(reward: str | dict[str, float]) -> bool:
    """Whether `task.reward` names a reward model."""
    return isinstance(reward, str) and reward.startswith(PREFIX)
