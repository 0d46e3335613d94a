"""How the process holds on to memory that it has freed."""

from __future__ import annotations

import ctypes
import platform

# Options of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def set_allocator(*, returns_freed: bool) -> None:
    """Let glibc serve tensors of up to 32 MiB from memory that was freed before, or each from fresh pages.

    A training step allocates and frees the same sizes over and over. As it comes, glibc maps the large ones anew, and
    the kernel fills them with zeros page by page: a tenth of a step or more goes there. What is kept instead is cut
    into pieces that do not always fit the next tensor, so the process grows by two fifths of its activations.
    `returns_freed` chooses the pages: the process then holds what is alive and no more. Elsewhere than in glibc
    (macOS, musl) nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    threshold = 2**20 if returns_freed else 32 * 2**20  # the most that glibc takes
    libc = ctypes.CDLL(None)
    for option, value in ((_M_MMAP_THRESHOLD, threshold), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
        libc.mallopt(option, value)
