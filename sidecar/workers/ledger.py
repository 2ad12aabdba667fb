"""What went wrong in which process, in memory that all of them share.

An answer of the app may pass one worker while the call it was made with failed in another. The mark must be
there when the answer is: a message would race with the app, which has been answered meanwhile. So a process
writes its note before it answers the app, and whoever judges an answer reads what is new: a word each while
nothing is.

Each process has a slot: how many notes it ever wrote, and a ring of the last ones. It alone writes there.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from typing import Final, NamedTuple

NOTES: Final = 1024
"""Notes in a ring."""
_NOTE: Final = struct.Struct("<dB32sB128s")
_COUNT: Final = struct.Struct("<Q")


class Note(NamedTuple):
    at: float
    """`Clock.now()`, which all processes of a machine share (CLOCK_MONOTONIC)."""
    trace: bytes
    """The trace id of the call; empty: it had none."""
    policy: str
    """Whose call went wrong; empty: it is only told that calls carry this trace id."""


def make(slots: int) -> int:
    """A file without a name, of that many slots; its descriptor is for `Ledger`, here and in children."""
    size = slots * (_COUNT.size + NOTES * _NOTE.size)
    if sys.platform == "linux":
        fd = os.memfd_create("sidecar-workers")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


@contextlib.contextmanager
def turn(fd: int) -> Iterator[None]:
    """Keeps other processes with the same file out, for as long as it lasts; a process that dies lets go.

    fcntl(2), record locks: they are a process's own, unlike those of flock(2), which go with the descriptor.
    """
    fcntl.lockf(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN)


class Ledger:
    """One process's view of it."""

    def __init__(self, fd: int, slots: int, mine: int) -> None:
        """`mine` is the slot of this process."""
        self._memory = mmap.mmap(fd, slots * (_COUNT.size + NOTES * _NOTE.size))
        self._heads = slots * _COUNT.size
        self._slots = slots
        self._mine = mine
        (self._written,) = _COUNT.unpack_from(self._memory, mine * _COUNT.size)
        self._seen = self._memory[: self._heads]
        """The counts, as they were when all was read."""
        self._cursors = self._counts()

    def _counts(self) -> list[int]:
        return [_COUNT.unpack_from(self._memory, slot * _COUNT.size)[0] for slot in range(self._slots)]

    def write(self, note: Note) -> None:
        """Tells the others; they see it from the next time they read."""
        name = note.policy.encode()[:128]
        at = self._heads + (self._mine * NOTES + self._written % NOTES) * _NOTE.size
        _NOTE.pack_into(self._memory, at, note.at, bool(note.trace), note.trace, len(name), name)
        self._written += 1
        # Last: who reads the count finds the note.
        _COUNT.pack_into(self._memory, self._mine * _COUNT.size, self._written)

    def read(self) -> tuple[list[Note], bool]:
        """What others wrote since the last time; and whether some of it was overwritten before."""
        heads = self._memory[: self._heads]
        if heads == self._seen:
            return [], False
        self._seen = heads
        found: list[Note] = []
        lost = False
        for slot, count in enumerate(self._counts()):
            start, self._cursors[slot] = self._cursors[slot], count
            if slot == self._mine or count == start:
                continue
            if count - start >= NOTES:  # the oldest may be half overwritten just now
                lost, start = True, count - NOTES + 1
            found += (self._note(slot, number) for number in range(start, count))
        return found, lost

    def _note(self, slot: int, number: int) -> Note:
        at, traced, trace, length, name = _NOTE.unpack_from(
            self._memory, self._heads + (slot * NOTES + number % NOTES) * _NOTE.size
        )
        return Note(at, trace if traced else b"", name[:length].decode("utf-8", "replace"))
