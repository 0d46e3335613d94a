"""The order in which the items of a dataset are used."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from burnish.reproducibility.seeds import seed_for

ItemT = TypeVar("ItemT")


class EndlessOrder(Generic[ItemT]):
    """An endless order of items, shuffled anew each epoch. Its whole state is `position`."""

    def __init__(self, items: Sequence[ItemT], *, seed: int, position: int = 0) -> None:
        self.items = items
        self.seed = seed
        self.position = position
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def next(self, count: int) -> list[ItemT]:
        """The next `count` items."""
        return [self.items[index] for index in self.next_indices(count)]

    def next_indices(self, count: int) -> NDArray[np.int64]:
        """The places of the next `count` items."""
        chosen = [np.empty(0, np.int64)]
        while count > 0:
            epoch, start = divmod(self.position, len(self.items))
            if epoch != self._epoch:  # a large dataset is not shuffled for every step
                self._order = np.random.default_rng(seed_for(self.seed, "prompt order", epoch)).permutation(
                    len(self.items)
                )
                self._epoch = epoch
            chosen.append(self._order[start : start + count])
            self.position += len(chosen[-1])
            count -= len(chosen[-1])
        return np.concatenate(chosen)
