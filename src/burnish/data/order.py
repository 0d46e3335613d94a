"""The order in which the items of a dataset are used."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from burnish.reproducibility.seeds import seed_for

ItemT = TypeVar("ItemT")


class EndlessOrder(Generic[ItemT]):
    """An endless order of items, shuffled anew each epoch. Its whole state is `position`."""

    def __init__(self, items: Sequence[ItemT], *, seed: int, position: int = 0) -> None:
        self.items = items
        self.seed = seed
        self.position = position

    def next(self, count: int) -> list[ItemT]:
        """The next `count` items."""
        chosen: list[ItemT] = []
        while len(chosen) < count:
            epoch, start = divmod(self.position, len(self.items))
            order = np.random.default_rng(seed_for(self.seed, "prompt order", epoch)).permutation(len(self.items))
            taken = order[start : start + count - len(chosen)]
            chosen.extend(self.items[index] for index in taken)
            self.position += len(taken)
        return chosen
