"""A fake generator that says what it is told to, so that a loop runs in milliseconds without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from burnish.records import Completion, GenerationRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ScriptedGenerator:
    """Answers each (prompt text, seed) with the text that `script` returns; every token has log-probability 0."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, script: Callable[[str, int], str]) -> None:
        self.tokenizer = tokenizer
        self.script = script

    def generate(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """See Generator."""
        return [tuple(self._complete(request, seed) for seed in request.seeds) for request in requests]

    def _complete(self, request: GenerationRequest, seed: int) -> Completion:
        text = self.script(str(self.tokenizer.decode(list(request.token_ids))), seed)
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        is_cut = len(ids) > request.sampling.max_tokens
        ids = ids[: request.sampling.max_tokens]
        return Completion(
            token_ids=tuple(ids),
            text=str(self.tokenizer.decode(ids, skip_special_tokens=True)),
            sampling_logprobs=(0.0,) * len(ids),
            model_logprobs=(0.0,) * len(ids),
            finish_reason="length" if is_cut else "stop",
        )
