"""What was purged lately: a response that was asked for before its purge must not be stored after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

REMEMBERED: Final = 4096
"""Purges after which the oldest is forgotten."""


class Purged(Enum):
    """What a purge names."""

    KEY = b"k"
    PREFIX = b"p"
    TAG = b"t"


class _Purge(NamedTuple):
    kind: Purged
    value: bytes


class PurgeLog:
    """Purges in order, bounded. A mark older than what is remembered is taken for purged."""

    __slots__ = ("_count", "_purges")

    def __init__(self) -> None:
        self._purges: deque[_Purge] = deque(maxlen=REMEMBERED)
        self._count = 0

    def mark(self) -> int:
        return self._count

    def note(self, kind: Purged, values: Iterable[bytes]) -> None:
        """`values` are keys, prefixes, or tags in UTF-8."""
        for value in values:
            self._purges.append(_Purge(kind, value))
            self._count += 1

    def purged(self, key: bytes, tags: Sequence[str], since: int | None) -> bool:
        """Whether `key`, or something with one of `tags`, was purged after the mark `since`."""
        if since is None or since == self._count:
            return False
        later = self._count - since
        if later > len(self._purges):
            return True
        encoded = {tag.encode() for tag in tags}
        for at in range(len(self._purges) - later, len(self._purges)):
            kind, value = self._purges[at]
            if kind is Purged.TAG:
                if value in encoded:
                    return True
            elif key == value or (kind is Purged.PREFIX and key.startswith(value)):
                return True
        return False
