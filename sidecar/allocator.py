"""How glibc's allocator treats the chunks of large bodies."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
KEPT: Final = 16 * 1024 * 1024
"""Bytes free at the top of the heap that stay with the process: the chunks of some 32 bodies in flight."""
MAPPED: Final = 1024 * 1024
"""Bytes from which a block is mapped by itself, and unmapped when it is freed."""


def keep_chunks() -> None:
    """Has the memory of a chunk used again for the next one, see mallopt(3).

    A chunk is read into a new block of up to 256 KB. By default glibc soon gives one back to the kernel when
    it is freed, so that the next costs page faults again: a third of the CPU that a body of 1 MiB took.
    Does nothing where the C library has no `mallopt`.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, KEPT)
        mallopt(_MMAP_THRESHOLD, MAPPED)
