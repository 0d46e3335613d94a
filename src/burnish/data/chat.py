"""From messages to the token ids a model is asked with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import TemplateError

from burnish.errors import DataError
from burnish.records import Prompt, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_prompt(tokenizer: PreTrainedTokenizerBase, task: Task, *, context_length: int, max_tokens: int) -> Prompt:
    """Render the conversation with the tokenizer's chat template, up to where the assistant speaks.

    A tokenizer without a template (a base model) gets the contents, joined by blank lines, and its own first token.

    Raises:
        DataError: the template refuses the conversation, or the prompt and `max_tokens` do not fit into the context.
    """
    is_plain = tokenizer.chat_template is None
    if is_plain:
        text = "\n\n".join(message.content for message in task.messages)
    else:
        messages = [{"role": message.role, "content": message.content} for message in task.messages]
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise DataError(f"task {task.id}: the model's chat template refuses the conversation: {error}") from error
    # A template writes its own special tokens; plain text gets those that the tokenizer puts around any text.
    token_ids = tuple(tokenizer(text, add_special_tokens=is_plain)["input_ids"])
    if not token_ids:
        raise DataError(f"task {task.id}: the prompt {text!r} has no tokens")
    if len(token_ids) + max_tokens > context_length:
        raise DataError(
            f"task {task.id}: a prompt of {len(token_ids)} tokens and rollout.max_tokens={max_tokens} exceed the "
            f"model's context of {context_length}; it begins {text[:60]!r}"
        )
    return Prompt(task=task, text=text, token_ids=token_ids)
