"""Rows to examples, and the split by prompt."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from burnish.config.imports import import_by_path
from burnish.config.schema import DataConfig
from burnish.data.chat import Chat
from burnish.data.rows import Row, read_messages, read_rows, transformed, with_system_prompt
from burnish.errors import DataError
from burnish.records import Example
from burnish.reproducibility.seeds import seed_for

ToExample = Callable[[Chat, Row, str], Example]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSplit:
    """Examples to train on and examples held out, one for each held-out prompt. `left_out` counts rows by reason."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    left_out: dict[str, int]

    def record(self) -> dict[str, Any]:
        """Counts and hashes of both sides, in their order."""
        sides: dict[str, Any] = {}
        for name, examples in (("train", self.train), ("held_out", self.held_out)):
            digest = hashlib.sha256(json.dumps([asdict(example) for example in examples]).encode())
            sides[name] = {"count": len(examples), "sha256": digest.hexdigest()}
        return {"examples": sides}

    def summary(self) -> str:
        """Counts, for a person."""
        longest = max(_num_tokens(example) for example in (*self.train, *self.held_out))
        left_out = "".join(f"; {count} rows left out: {reason}" for reason, count in self.left_out.items())
        return f"{len(self.train)} to train on, {len(self.held_out)} held out, longest {longest} tokens{left_out}"


def load_examples(config: DataConfig, chat: Chat, to_example: ToExample, *, context_length: int) -> ExampleSplit:
    """Read, transform, render and split by prompt.

    The split depends on the prompts alone, not on the run's seed. Rows whose prompt is held out are never trained on,
    and each held-out prompt has one item, so that the items are independent of one another.

    Raises:
        DataError: a row is faulty (named by its line), most rows are too long, or too few remain.
        ConfigError: a file or the transform does not exist.
    """
    longest = min(config.max_tokens or context_length, context_length)
    reader = _Reader(config, chat, to_example, longest)
    examples = reader.read("data.source", config.source)
    if not examples:
        raise DataError(f"data.source: {config.source} has no examples to use; left out: {reader.left_out_text()}")
    if config.held_out_source is not None:
        kept_out = _first_of_each_prompt(reader.read("data.held_out_source", config.held_out_source))
        kept_out = kept_out[: config.num_held_out]
    else:
        firsts = _first_of_each_prompt(examples)
        kept_out = sorted(firsts, key=lambda example: seed_for(0, "held-out split", example.id))[: config.num_held_out]
    held_out_ids = {example.id for example in kept_out}
    train = [example for example in examples if example.id not in held_out_ids]
    if len(kept_out) < config.num_held_out:
        raise DataError(
            f"data.num_held_out={config.num_held_out}, but {config.held_out_source or config.source} has only "
            f"{len(kept_out)} different prompts"
        )
    if not train:
        raise DataError(f"data.num_held_out={config.num_held_out} leaves no example of {config.source} to train on")
    return ExampleSplit(train=tuple(train), held_out=tuple(kept_out), left_out=dict(reader.left_out))


def prompt_messages(row: Row, system_prompt: str | None, place: str) -> list[Row]:
    """The messages of a row's `prompt`: a text, or a list of messages.

    Raises:
        DataError: there is none, or it is empty.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return with_system_prompt([{"role": "user", "content": prompt}], system_prompt, place)
    if isinstance(prompt, list):
        return with_system_prompt(read_messages(prompt, place), system_prompt, place)
    raise DataError(f"{place}: needs a non-empty 'prompt', a text or a list of messages; data.transform can make it")


def answer_messages(value: Any, field: str, place: str) -> list[Row]:
    """The assistant's answer in a row's `field`: a text, or messages that end with the assistant's.

    Raises:
        DataError: it is missing, empty, or ends with another role.
    """
    if isinstance(value, str) and value.strip():
        return [{"role": "assistant", "content": value}]
    if isinstance(value, list) and value:
        messages = read_messages(value, place)
        if messages[-1]["role"] == "assistant":
            return messages
    raise DataError(f"{place}: needs a non-empty {field!r}, a text or messages that end with the assistant's")


def prompt_id(messages: Sequence[Row]) -> str:
    """A hash of the messages that the system prompt does not change."""
    asked = [message for message in messages if message["role"] != "system"]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


class _Reader:
    def __init__(self, config: DataConfig, chat: Chat, to_example: ToExample, longest: int) -> None:
        self.chat = chat
        self.to_example = to_example
        self.longest = longest
        self.left_out: Counter[str] = Counter()
        self.transform = None
        if config.transform is not None:
            self.transform = import_by_path(config.transform, "data.transform", arguments=("row",))

    def read(self, key: str, source: str) -> list[Example]:
        examples, faulty = [], 0
        for place, raw in read_rows(key, source):
            rows = transformed(self.transform, raw, place, "data.transform")
            if not rows:
                self._leave_out("data.transform left them out")
            for row in rows:
                try:
                    example = self.to_example(self.chat, row, place)
                except SkippedRow as skipped:
                    self._leave_out(str(skipped))
                    faulty += 1
                    continue
                except DataError as error:
                    raise DataError(f"{place}: {str(error).removeprefix(place + ': ')}") from error
                if _num_tokens(example) > self.longest:
                    self._leave_out(f"longer than {self.longest} tokens")
                    faulty += 1
                else:
                    examples.append(example)
        if faulty > len(examples):
            raise DataError(f"{source}: most examples cannot be used; left out: {self.left_out_text()}")
        return examples

    def left_out_text(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.left_out.items()) or "none"

    def _leave_out(self, reason: str) -> None:
        self.left_out[reason] += 1


class SkippedRow(Exception):  # no error: a row that teaches nothing
    """A row that is whole but useless; its text is the reason, and is counted."""


def _first_of_each_prompt(examples: Sequence[Example]) -> list[Example]:
    found: dict[str, Example] = {}
    for example in examples:
        found.setdefault(example.id, example)
    return list(found.values())


def _num_tokens(example: Example) -> int:
    return len(example.prompt_ids) + max(len(branch.token_ids) for branch in example.branches)
