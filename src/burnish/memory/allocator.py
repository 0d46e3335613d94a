"""How the process holds on to memory that it has freed."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Options of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8

_MAPPED_FROM_BYTES = 2**20  # a small tensor
_MAPPED_AT_MOST = 65536  # blocks; glibc's own number

_TUNABLES = "GLIBC_TUNABLES"
_KEPT_APART = {"glibc.malloc.tcache_count": "0", "glibc.malloc.mxfast": "0"}


def environment_for_tensors() -> dict[str, str]:
    """Variables that a process must start with to keep what it frees in large pieces; none where there is no glibc.

    torch asks for tensors at addresses divisible by 64, for which glibc cuts a strip off either end. Its caches of
    small blocks hand those strips to whatever small object comes next, and the hole that a tensor leaves can then not
    take the next one of its size: with adapters a process held 1.6 times as much (docs/log.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return {}
    chosen = [each for each in os.environ.get(_TUNABLES, "").split(":") if each]
    names = {each.partition("=")[0] for each in chosen}
    ours = [f"{name}={value}" for name, value in _KEPT_APART.items() if name not in names]
    return {_TUNABLES: ":".join([*chosen, *ours])}


def restart_for_tensors() -> None:
    """Begin this process again, before it did anything, with `environment_for_tensors`; glibc reads it only then."""
    needed = environment_for_tensors()
    if not needed.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | needed)


class Allocator:
    """How glibc serves tensors. Elsewhere (macOS, musl) nothing is changed."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
        self._keeps = False

    def choose(self, *, returns_freed: bool) -> None:
        """Serve tensors from memory that was freed before, or each from fresh pages.

        A training step allocates and frees the same sizes over and over. As it comes, glibc maps the large ones anew,
        and the kernel fills them with zeros page by page: a tenth of a step or more goes there. What is kept instead is
        cut into pieces that do not always fit the next tensor, so the process grows. `returns_freed` chooses the
        pages: the process then holds what is alive and no more.
        """
        self._keeps = not returns_freed
        self._set(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
        self._set(_M_MMAP_MAX, 0 if self._keeps else _MAPPED_AT_MOST)
        self._set(_M_TRIM_THRESHOLD, 2**31 - 1)
        self._set(_M_ARENA_MAX, 1)

    @contextmanager
    def long_lived(self) -> Iterator[None]:
        """What is allocated within it gets pages of its own: among what comes and goes, it would cut that up."""
        if not self._keeps:
            yield
            return
        self._set(_M_MMAP_MAX, _MAPPED_AT_MOST)
        try:
            yield
        finally:
            self._set(_M_MMAP_MAX, 0)

    def _set(self, option: int, value: int) -> None:
        if self._libc is not None:
            self._libc.mallopt(option, value)


allocator = Allocator()
