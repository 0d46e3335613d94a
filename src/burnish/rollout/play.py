"""From prompts to scored episodes: an answer and its reward, or a conversation with an environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from burnish.data.chat import Chat
from burnish.environments.base import Environment, MakeEnvironment, StepResult
from burnish.records import Completion, GenerationRequest, Message, Prompt, SamplingSettings
from burnish.reproducibility.seeds import seed_for
from burnish.rewards.deadline import TooSlowError, time_limit
from burnish.rewards.scoring import Reward, Score, ScoreFailure, score_all, to_score

Sample = Callable[[Sequence[GenerationRequest]], list[tuple[Completion, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """What was said after a prompt, whole, and how good it was. `observed` are the spans of tokens that the environment
    wrote; see Rollout.
    """

    completion: Completion
    score: Score | ScoreFailure
    observed: tuple[tuple[int, int], ...] = ()


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


@dataclass(slots=True)
class _Conversation:
    """An episode under way."""

    prompt: Prompt
    seed: int
    environment: Environment
    token_ids: list[int] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    model_logprobs: list[float] = field(default_factory=list)
    observed: list[tuple[int, int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rewards: Counter[str] = field(default_factory=Counter)
    has_names: bool = False
    turns: int = 0
    finish_reason: Any = "stop"
    failure: str | None = None
    done: bool = False

    def hear(self, completion: Completion) -> None:
        """Take over the sampled ids as they are."""
        self.token_ids += completion.token_ids
        self.sampling_logprobs += completion.sampling_logprobs
        self.model_logprobs += completion.model_logprobs
        self.texts.append(completion.text)
        self.finish_reason = completion.finish_reason
        self.turns += 1

    def answer(self, token_ids: Sequence[int], text: str) -> None:
        """Add what the environment says."""
        start = len(self.token_ids)
        self.token_ids += token_ids
        self.sampling_logprobs += [0.0] * len(token_ids)
        self.model_logprobs += [0.0] * len(token_ids)
        self.observed.append((start, len(self.token_ids)))
        self.texts.append(text)

    def episode(self) -> Episode:
        completion = Completion(
            token_ids=tuple(self.token_ids),
            text="".join(self.texts),
            sampling_logprobs=tuple(self.sampling_logprobs),
            model_logprobs=tuple(self.model_logprobs),
            finish_reason=self.finish_reason,
        )
        value = dict(self.rewards) if self.has_names else sum(self.rewards.values())
        score = to_score(value) if self.failure is None else ScoreFailure(self.failure)
        return Episode(completion=completion, score=score, observed=tuple(self.observed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """Conversations with an environment, all of a step side by side: a turn is sampled for all that are not over.

    What was sampled stays as it is (token in, token out); of the environment's messages only the tokens that they add
    are appended. A conversation ends when the environment says so, when a turn is cut off, after `max_turns`, or when
    the next turn would not fit into the context. A step that raises, or takes longer than `timeout_seconds`, leaves its
    conversation without a score.
    """

    make: MakeEnvironment
    chat: Chat
    timeout_seconds: float
    max_turns: int
    context_length: int

    def __call__(
        self, sample: Sample, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]], sampling: SamplingSettings
    ) -> list[list[Episode]]:
        """See Play."""
        everyone = [[self._begin(prompt, seed) for seed in own] for prompt, own in zip(prompts, seeds, strict=True)]
        requests = [
            GenerationRequest(token_ids=prompt.token_ids, sampling=sampling, seeds=own)  # the prompt is shared
            for prompt, own in zip(prompts, seeds, strict=True)
        ]
        for group, completions in zip(everyone, sample(requests), strict=True):
            for conversation, completion in zip(group, completions, strict=True):
                self._take_turn(conversation, completion, sampling)
        while talking := [each for group in everyone for each in group if not each.done]:
            requests = [
                GenerationRequest(
                    token_ids=(*each.prompt.token_ids, *each.token_ids),
                    sampling=sampling,
                    seeds=(seed_for(each.seed, "turn", each.turns),),
                )
                for each in talking
            ]
            for conversation, (completion,) in zip(talking, sample(requests), strict=True):
                self._take_turn(conversation, completion, sampling)
        return [[conversation.episode() for conversation in group] for group in everyone]

    def _begin(self, prompt: Prompt, seed: int) -> _Conversation:
        conversation = _Conversation(prompt, seed, self.make())
        self._guarded(conversation, lambda: conversation.environment.reset(prompt.task))
        return conversation

    def _take_turn(self, conversation: _Conversation, completion: Completion, sampling: SamplingSettings) -> None:
        conversation.hear(completion)
        if conversation.done:  # its reset failed
            return
        result = self._guarded(conversation, lambda: conversation.environment.step(completion))
        if not isinstance(result, StepResult):
            conversation.failure = conversation.failure or f"step must return a StepResult, got {type(result).__name__}"
            conversation.done = True
            return
        named = isinstance(result.reward, Mapping)
        conversation.has_names = conversation.has_names or named
        parts = dict(result.reward) if isinstance(result.reward, Mapping) else {"reward": result.reward}
        score = to_score(parts)
        if isinstance(score, ScoreFailure):
            conversation.failure, conversation.done = score.reason, True
            return
        conversation.rewards.update(parts)
        is_over = result.done or completion.finish_reason == "length" or conversation.turns == self.max_turns
        if is_over:
            conversation.done = True
            return
        text, token_ids = self.chat.added(completion, [_as_dict(message) for message in result.messages])
        room = self.context_length - len(conversation.prompt.token_ids) - len(conversation.token_ids)
        if len(token_ids) + sampling.max_tokens > room:
            conversation.done, conversation.finish_reason = True, "length"
            return
        conversation.answer(token_ids, text)

    def _guarded(self, conversation: _Conversation, call: Callable[[], Any]) -> Any:
        try:
            with time_limit(self.timeout_seconds):
                return call()
        except TooSlowError:
            conversation.failure = f"the environment took longer than {self.timeout_seconds:g} s"
        except Exception as error:  # a user's code may raise anything; it must cost one conversation, not the run
            conversation.failure = f"{type(error).__name__}: {error}"
        conversation.done = True
        return None


def _as_dict(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}
