"""From messages to the token ids a model is asked with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from burnish.errors import DataError
from burnish.records import Prompt, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_prompt(tokenizer: PreTrainedTokenizerBase, task: Task, *, context_length: int, max_tokens: int) -> Prompt:
    """Render the conversation with the tokenizer's chat template, up to where the assistant speaks.

    A tokenizer without a template (a base model) gets the contents, joined by blank lines.

    Raises:
        DataError: the prompt and `max_tokens` of answer do not fit into the model's context.
    """
    if tokenizer.chat_template is None:
        text = "\n\n".join(message.content for message in task.messages)
    else:
        messages = [{"role": message.role, "content": message.content} for message in task.messages]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    token_ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not token_ids:
        raise DataError(f"task {task.id}: the prompt {text!r} has no tokens")
    if len(token_ids) + max_tokens > context_length:
        raise DataError(
            f"task {task.id}: a prompt of {len(token_ids)} tokens and rollout.max_tokens={max_tokens} exceed the "
            f"model's context of {context_length}; it begins {text[:60]!r}"
        )
    return Prompt(task=task, token_ids=token_ids)
