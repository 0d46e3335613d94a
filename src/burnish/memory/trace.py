"""How many bytes a computation holds at once, found without computing it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within it, counts the bytes of the tensors that are alive, and the most there were at once.

    On torch's "meta" device tensors have a size and nothing else, so the most that a training step will need is known
    in the time that it takes to call its operations. What a kernel allocates for itself alone is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.live_bytes = 0
        self.peak_bytes = 0
        self._seen: dict[int, int] = {}  # each memory's place in the order in which they were counted
        self._num_counted = 0
        self._counted_at_peak = 0

    def reset_peak(self) -> None:
        """Count the peak anew from what is alive now."""
        self.peak_bytes = self.live_bytes
        self._counted_at_peak = self._num_counted

    def bytes_at_peak(self, tensors: Iterable[Tensor]) -> int:
        """Of tensors that are alive now, the bytes of those that were there at the peak."""
        storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}
        return sum(size for key, size in storages.items() if self._seen.get(key, sys.maxsize) <= self._counted_at_peak)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count the memory behind what it returns.

        What a tensor with parts of its own (8-bit moments) is made of, its own operations count.
        """
        if any(kind not in (Tensor, nn.Parameter) for kind in types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self.count(leaf)
        return result

    def count(self, tensor: Tensor) -> None:
        """Count the memory behind a tensor, if it is not counted yet."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        num_bytes = storage.nbytes()
        self._num_counted += 1
        self._seen[key] = self._num_counted
        self.live_bytes += num_bytes
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self._counted_at_peak = self.live_bytes, self._num_counted
        weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        del self._seen[key]
        self.live_bytes -= num_bytes
