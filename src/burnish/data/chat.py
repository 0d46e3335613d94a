"""From messages to token ids, by the tokenizer's own chat template.

What a model is asked with and what it is trained to say are tokenised as they are when it is used: the prompt by
itself, then what follows it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from burnish.errors import DataError
from burnish.records import Branch, Completion, Prompt, Task
from burnish.reproducibility.files import sha256_of_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]

_PLACE_HOLDER = "(what the model said)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A tokenizer with its template. `stop_token_ids` end an answer; `tools` are described to the model."""

    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: Collection[int]

    def fingerprint(self) -> str:
        """A hash of what decides the token ids: all that the tokenizer would save, and the stop tokens."""
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            files = {path.name: sha256_of_file(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()}
        return hashlib.sha256(json.dumps([files, sorted(self.stop_token_ids)]).encode()).hexdigest()

    def render(self, messages: Messages, *, asks: bool, tools: Sequence[Any] | None = None) -> str:
        """The conversation as text; with `asks` up to where the assistant speaks.

        A tokenizer without a template (a base model) gets the contents, joined by blank lines.

        Raises:
            DataError: the template refuses the conversation.
        """
        if self.tokenizer.chat_template is None:
            return "\n\n".join(str(message["content"]) for message in messages) + ("\n\n" if asks else "")
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=list(tools) if tools else None,
                    tokenize=False,
                    add_generation_prompt=asks,
                )
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise DataError(f"the model's chat template refuses the conversation: {error}") from error

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a text that begins a sequence. A template writes its own special tokens; plain text gets those
        that the tokenizer puts around any text.
        """
        ids: list[int] = self.tokenizer(text, add_special_tokens=self.tokenizer.chat_template is None)["input_ids"]
        return ids

    def following_ids(self, before: str, before_ids: Sequence[int], text: str) -> list[int]:
        """Token ids of `text` after `before`: those of the whole where they begin with `before_ids`, and otherwise,
        where a token would reach over the boundary, those of `text` alone.
        """
        whole = self.prompt_ids(before + text)
        if whole[: len(before_ids)] == list(before_ids):
            return whole[len(before_ids) :]
        return self._piece(text)

    def _ended(self, ids: list[int]) -> list[int]:
        """Cut what a template writes after the end of a turn; add the end where a plain text has none."""
        ends = [index for index, token in enumerate(ids) if token in self.stop_token_ids]
        if ends:
            return ids[: ends[-1] + 1]
        eos = self.tokenizer.eos_token_id
        return [*ids, eos] if eos is not None else ids

    def conversation(
        self, messages: Messages, *, only_last: bool, tools: Sequence[Any] | None = None
    ) -> tuple[list[int], Branch]:
        """(prompt ids, branch) of a conversation: the prompt ends where the first scored answer begins, and the
        assistant's turns are scored, or with `only_last` the last of them.

        Raises:
            DataError: no turn is the assistant's, or the template changes earlier turns when one is added.
        """
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise DataError("the conversation has no assistant turn to learn from")
        turns = turns[-1:] if only_last else turns
        if turns[0] == 0:
            raise DataError("the conversation begins with the assistant: there is nothing to answer")
        text = self.render(messages[: turns[0]], asks=True, tools=tools)
        prompt_ids = self.prompt_ids(text)
        ids: list[int] = []
        scored: list[int] = []
        for number, turn in enumerate(turns):
            if number:
                asked = self.render(messages[:turn], asks=True, tools=tools)
                ids += self._added(text, [*prompt_ids, *ids], asked)
                text = asked
            done = self.render(messages[: turn + 1], asks=False, tools=tools)
            answer = self._ended(self._added(text, [*prompt_ids, *ids], done))
            scored += range(len(ids), len(ids) + len(answer))
            ids += answer
            # what the template writes after the end of a turn (a newline) belongs to the next piece
            text = self._up_to_end(text, done)
        return prompt_ids, Branch(token_ids=tuple(ids), scored=tuple(scored))

    def added(self, said: Completion, messages: Messages) -> tuple[str, list[int]]:
        """(text, token ids) of what stands between a turn that was sampled and the assistant's next one.

        The sampled tokens are not looked at but for the last: where it is no end token, the end of the turn is added
        too. A template adds the same whatever was said, so it is asked with a place-holder. (So a template that drops
        the reasoning of earlier turns drops nothing here: what was sampled stays.)

        Raises:
            DataError: the template refuses the messages.
        """
        heard = [{**message, "content": self.defused(message["content"])} for message in messages]
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PLACE_HOLDER}, *heard]
        _, found, text = self.render(turns, asks=True).partition(_PLACE_HOLDER)
        if not found:
            raise DataError("the model's chat template does not show what the assistant said")
        if not said.token_ids or said.token_ids[-1] not in self.stop_token_ids:
            return text, self._piece(text)
        end = str(self.tokenizer.decode([said.token_ids[-1]]))
        text = text.removeprefix(end)
        # Tokenised after the token it follows: by itself, some tokenizers would put a space before it.
        after = self._piece(end + text)
        return text, after[1:] if after[:1] == [said.token_ids[-1]] else self._piece(text)

    def defused(self, text: str) -> str:
        """The text with its special tokens broken: what a tool or a stranger says must not open or close a turn."""
        for token in self.tokenizer.all_special_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _piece(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _added(self, before: str, before_ids: list[int], whole: str) -> list[int]:
        if not whole.startswith(before):
            raise DataError(
                "the model's chat template changes earlier turns when a turn is added: learn from the last turn only"
            )
        return self.following_ids(before, before_ids, whole[len(before) :])

    def _up_to_end(self, before: str, done: str) -> str:
        """`done` without what stands after the last end token that it brought."""
        tail = done[len(before) :]
        ends = [str(self.tokenizer.decode([token])) for token in self.stop_token_ids]
        cut = max((tail.rfind(end) + len(end) for end in ends if end in tail), default=len(tail))
        return before + tail[:cut]


def render_prompt(
    chat: Chat, task: Task, *, context_length: int, max_tokens: int, tools: Sequence[Any] | None = None
) -> Prompt:
    """A task as the model is asked with it.

    Raises:
        DataError: the template refuses it, or the prompt and `max_tokens` do not fit into the context.
    """
    messages = [{"role": message.role, "content": message.content} for message in task.messages]
    try:
        text = chat.render(messages, asks=True, tools=tools)
    except DataError as error:
        raise DataError(f"task {task.id}: {error}") from error
    token_ids = tuple(chat.prompt_ids(text))
    if not token_ids:
        raise DataError(f"task {task.id}: the prompt {text!r} has no tokens")
    if len(token_ids) + max_tokens > context_length:
        raise DataError(
            f"task {task.id}: a prompt of {len(token_ids)} tokens and max_tokens={max_tokens} exceed the "
            f"model's context of {context_length}; it begins {text[:60]!r}"
        )
    return Prompt(task=task, text=text, token_ids=token_ids)
