"""What every generator is: token ids and sampling settings in, ids with log-probabilities out."""

from collections.abc import Sequence
from typing import Protocol

from burnish.records import Completion, GenerationRequest


class Generator(Protocol):
    """Samples completions. Equal requests give equal completions, whatever they are batched with."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """One tuple per request, in order, with one completion per seed, in order."""
        ...
