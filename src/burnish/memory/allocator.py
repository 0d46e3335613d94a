"""How the process holds on to memory that it has freed."""

from __future__ import annotations

import ctypes
import platform

# Options of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Let glibc serve large tensors from memory that was freed before, not from fresh pages of the kernel.

    A training step allocates and frees the same sizes over and over. By default glibc maps each large one anew, and
    the kernel fills it with zeros, page by page: a fifth of a step went there. Elsewhere (macOS, musl) nothing is
    changed. The process no longer shrinks when tensors are freed; its peak grows by a few percent.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
        libc.mallopt(option, value)
