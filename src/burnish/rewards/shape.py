"""Rewards for the form of a completion: its tags, its syntax, its length, its repetitions.

Where a reward needs a number, a function here makes it. In a recipe, name what your own module made:

    # my_rewards.py
    from burnish.rewards.shape import overlong

    not_too_long = overlong(max_tokens=1024, buffer_tokens=256)     # task.reward: my_rewards:not_too_long
"""

import json
import re
from collections.abc import Callable, Sequence

from burnish.errors import ConfigError
from burnish.records import Completion, Task

PlainReward = Callable[[Completion, Task], float]


def tags_in_order(*tags: str) -> PlainReward:
    """A reward of 1.0 for `<a>...</a><b>...</b>`: each tag once, in this order, filled, nothing but space outside."""
    if not tags:
        raise ConfigError("tags_in_order() needs at least one tag, as in tags_in_order('think', 'answer')")
    parts = [rf"<{re.escape(tag)}>(?P<_{index}>.+?)</{re.escape(tag)}>" for index, tag in enumerate(tags)]
    pattern = re.compile(r"\s*" + r"\s*".join(parts) + r"\s*", re.DOTALL)
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]

    def reward(completion: Completion, task: Task) -> float:
        text = completion.text
        if any(text.count(mark) != 1 for mark in marks):
            return 0.0
        match = pattern.fullmatch(text)
        return float(match is not None and all(content.strip() for content in match.groups()))

    return reward


think_then_answer = tags_in_order("think", "answer")
"""`<think>...</think><answer>...</answer>`, as in R1-Zero (DeepSeek-AI 2025, table 1)."""


def valid_json(completion: Completion, task: Task) -> float:
    """1.0 if the completion is one JSON value, bare or in one fenced block, else 0.0. NaN and Infinity are no JSON."""
    text = completion.text.strip()
    fenced = re.fullmatch(r"```(?:json)?\n(.*)\n```", text, re.DOTALL | re.IGNORECASE)
    try:
        json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def length_within(min_tokens: int, max_tokens: int) -> PlainReward:
    """A reward of 1.0 for a completion of `min_tokens` to `max_tokens` tokens, both included, else 0.0."""
    if not 0 <= min_tokens <= max_tokens:
        raise ConfigError(f"length_within({min_tokens}, {max_tokens}): needs 0 <= min_tokens <= max_tokens")
    return lambda completion, task: float(min_tokens <= len(completion.token_ids) <= max_tokens)


def overlong(max_tokens: int, buffer_tokens: int) -> PlainReward:
    """The `overlong_penalty` of a completion as a reward, to be added to another one."""
    overlong_penalty(0, max_tokens, buffer_tokens)  # refuses impossible numbers now, not in the first step
    return lambda completion, task: overlong_penalty(len(completion.token_ids), max_tokens, buffer_tokens)


def overlong_penalty(num_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """Soft overlong punishment: 0 up to `max_tokens - buffer_tokens`, then linearly down to -1 at `max_tokens`.

    DAPO (Yu et al. 2025, arXiv 2503.14476), equation 13, with L_max = `max_tokens` and L_cache = `buffer_tokens`.
    """
    if not 0 < buffer_tokens <= max_tokens:
        raise ConfigError(f"buffer_tokens={buffer_tokens}: must be at least 1 and at most max_tokens={max_tokens}")
    return max(-1.0, min(0.0, (max_tokens - buffer_tokens - num_tokens) / buffer_tokens))


def repetitions(ngram_size: int) -> PlainReward:
    """The `repetition_penalty` of a completion's tokens as a reward, to be added to another one."""
    repetition_penalty((), ngram_size)  # refuses an impossible size now, not in the first step
    return lambda completion, task: repetition_penalty(completion.token_ids, ngram_size)


def repetition_penalty(token_ids: Sequence[int], ngram_size: int) -> float:
    """Minus the share of n-grams that stood before in the same completion: 0 without repetition, near -1 in a loop."""
    if ngram_size < 1:
        raise ConfigError(f"ngram_size={ngram_size}: must be at least 1")
    ngrams = [tuple(token_ids[start : start + ngram_size]) for start in range(len(token_ids) - ngram_size + 1)]
    return len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
