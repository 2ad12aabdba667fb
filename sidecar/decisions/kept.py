"""What an app may have kept of a fallback's answers: the texts it asked for, each until a time.

Texts are compared as cache keys with `fold` compare them: without case, and with single spaces.
"""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import quote_from_bytes

from sidecar.decisions.canonical_url import fold

MOST: Final = 10_000
"""Texts that are remembered; with one more, whatever is asked counts as kept until the first is over."""


class Kept:
    __slots__ = ("_all_until", "_until")

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}
        """By text, oldest first."""
        self._all_until = float("-inf")

    def put(self, text: bytes, until: float) -> None:
        self._until.pop(text, None)
        self._until[text] = until
        if len(self._until) > MOST:
            self._all_until = max(self._all_until, self._until.pop(next(iter(self._until))))

    def drop(self, text: bytes | None) -> None:
        """The app has asked for it again, and knows better now."""
        if text is not None:
            self._until.pop(text, None)

    def any(self, now: float) -> bool:
        """Whether anything is kept still; forgets what is not."""
        for text in [text for text, until in self._until.items() if until <= now]:
            del self._until[text]
        if self._all_until <= now:
            self._all_until = float("-inf")
        return bool(self._until) or self._all_until > now

    def holds(self, said: frozenset[bytes]) -> bool:
        """Whether one of the texts is kept. To be asked after `any`."""
        return self._all_until > float("-inf") or not self._until.keys().isdisjoint(said)


def asked_for(query: bytes, parameter: bytes) -> bytes | None:
    """The value of a parameter of a query, folded; None where it has none."""
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == parameter:
            return fold(value)
    return None


def texts(body: bytes) -> frozenset[bytes] | None:
    """All texts in a JSON document, folded; None where it is none."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return None
    found: set[bytes] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found.add(fold(quote_from_bytes(value.encode("utf-8", "replace")).encode("ascii")))
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return frozenset(found)
