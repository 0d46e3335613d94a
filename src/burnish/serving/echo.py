"""A prompt's own log-probabilities, from the hidden states that come while it is read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.models.head import Head
from burnish.models.logprobs import CHUNK_ROWS
from burnish.serving.asks import Ask, PromptRead


class Echo:
    """Of one prompt, with the `num_top` likeliest tokens at each place. No logits are kept."""

    def __init__(self, prompt_ids: Sequence[int], num_top: int) -> None:
        self._prompt_ids, self._num_top = prompt_ids, num_top
        self._logprobs: list[float] = []
        self._tops: list[tuple[tuple[int, float], ...]] = []

    def add(self, hidden_CH: Tensor, head: Head) -> None:
        """The states after the prompt's next C tokens; that after its last token says what follows, and is left."""
        for part_CH in hidden_CH.split(CHUNK_ROWS):
            start = len(self._logprobs) + 1
            targets = self._prompt_ids[start : start + len(part_CH)]
            if not targets:
                return
            logprobs_CV = head.logits(part_CH[: len(targets)]).log_softmax(1)
            target_ids_C = torch.tensor(targets, device=part_CH.device)
            self._logprobs += logprobs_CV.gather(1, target_ids_C[:, None])[:, 0].tolist()
            top = logprobs_CV.topk(self._num_top)
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            self._tops += [tuple(zip(ids, values, strict=True)) for ids, values in pairs]

    def told(self) -> PromptRead:
        """All of it, once the prompt is read."""
        return PromptRead(tuple(self._logprobs), tuple(self._tops))


def echo_of(ask: Ask) -> Echo | None:
    """What an ask needs."""
    return Echo(ask.prompt_ids, ask.num_top or 0) if ask.tells_prompt else None
