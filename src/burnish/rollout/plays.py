"""From the settings of a task to how it is rendered, sampled and scored: one definition for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from burnish.config.schema import ModelConfig, TaskConfig
from burnish.data.chat import Chat, render_prompt
from burnish.environments.base import load_environment
from burnish.models.load import ModelFacts, inspect_model
from burnish.records import Prompt, SamplingSettings, Task
from burnish.reproducibility.record import model_record, source_hash
from burnish.rewards.combine import reward_of
from burnish.rollout.conversations import Conversations
from burnish.rollout.play import Play, SingleTurn
from burnish.rollout.reward_model import PREFIX, is_model, scored_by_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How the tasks are played, and how one becomes a prompt."""

    play: Play
    render: Callable[[Task], Prompt]


def how_to_ask(
    task: TaskConfig, model_config: ModelConfig, model: ModelFacts, *, max_tokens: int, max_turns: int
) -> Asking:
    """Import the reward or the environment. Loads no weights.

    Raises:
        UserError: one of them cannot be used.
    """
    chat = Chat(tokenizer=model.tokenizer, stop_token_ids=model.stop_token_ids)
    render = partial(render_prompt, chat, context_length=model.context_length, max_tokens=max_tokens)
    if task.environment is not None:
        conversations = Conversations(
            make=load_environment(task.environment),
            chat=chat,
            timeout_seconds=task.reward_timeout_seconds,
            max_turns=max_turns,
            context_length=model.context_length,
        )
        return Asking(play=conversations, render=partial(conversations.first_prompt, max_tokens=max_tokens))
    if is_model(task.reward):
        play: Play = scored_by_model(str(task.reward), model_config, model.tokenizer.get_vocab())
    else:
        play = SingleTurn(reward=reward_of(task.reward), timeout_seconds=task.reward_timeout_seconds)
    return Asking(play=play, render=render)


def judge_fingerprints(task: TaskConfig) -> dict[str, Any]:
    """By path: a hash of what decides a score, the file of a reward or environment, or the files of a reward model."""
    named = [task.reward] if isinstance(task.reward, str) else list(task.reward)
    paths = named if task.environment is None else [task.environment]
    return {path: _fingerprint(path) for path in paths}


def _fingerprint(path: str) -> Any:
    if not is_model(path):
        return source_hash(path, "task.reward")
    facts = inspect_model(path.removeprefix(PREFIX))
    return model_record(facts.source, base=facts.base, commit=facts.commit)


def with_stops(settings: SamplingSettings, model: ModelFacts) -> SamplingSettings:
    """The settings with the tokens that end an answer.

    A stop string that is a special token is a stop token: texts are decoded without special tokens.
    """
    special = dict(zip(model.tokenizer.all_special_tokens, model.tokenizer.all_special_ids, strict=True))
    stop_tokens = [special[stop] for stop in settings.stop if stop in special]
    stop = tuple(each for each in settings.stop if each not in special)
    return replace(settings, stop=stop, stop_token_ids=(*model.stop_token_ids, *stop_tokens))
