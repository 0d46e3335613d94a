"""The order in which prompts are asked."""

from collections.abc import Sequence

import numpy as np

from burnish.records import Prompt
from burnish.reproducibility.seeds import seed_for


class PromptOrder:
    """An endless order of prompts, shuffled anew each epoch. Its whole state is `position`."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, position: int = 0) -> None:
        self.prompts = prompts
        self.seed = seed
        self.position = position

    def next(self, count: int) -> list[Prompt]:
        """The next `count` prompts."""
        chosen: list[Prompt] = []
        while len(chosen) < count:
            epoch, start = divmod(self.position, len(self.prompts))
            order = np.random.default_rng(seed_for(self.seed, "prompt order", epoch)).permutation(len(self.prompts))
            taken = order[start : start + count - len(chosen)]
            chosen.extend(self.prompts[index] for index in taken)
            self.position += len(taken)
        return chosen
