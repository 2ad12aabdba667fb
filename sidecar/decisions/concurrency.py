"""How many attempts may be in flight at a time, and what of that is kept for whom.

A tenth of the limit, rounded up, is kept for each class that routes name, against the classes below it:
with `high` in use, the last tenth is for `high` alone. A class that no route names has nothing kept for it,
and every class may use at least one permit.
"""

from __future__ import annotations

from typing import Final, Protocol

from sidecar.decisions.priority import Priority

RESERVE: Final = 10
"""One permit in so many is kept for a class."""


class Limit(Protocol):
    """What the layer asks. `limit` may be another number at each look: a limit may learn."""

    @property
    def in_flight(self) -> int:
        """Permits that are out."""
        ...

    @property
    def limit(self) -> int:
        """Permits that may be out at a time."""
        ...

    def try_acquire(self) -> bool:
        """Takes a permit that nothing is kept of; False when all those are out.

        Each True, of this and of `try_acquire_as`, is owed exactly one `release`.
        """
        ...

    def try_acquire_as(self, priority: Priority) -> bool:
        """Takes a permit that the class may have; False when all those are out."""
        ...

    def take(self) -> None:
        """Takes a permit, whether there is one or not: for those who only count."""
        ...

    def release(self) -> None:
        """Gives a permit back: when the body has ended, not at the headers."""
        ...

    def keep_for(self, priority: Priority) -> None:
        """A route names this class: from now on part of the limit is kept for it."""
        ...


def shares(limit: int, high: bool, normal: bool) -> tuple[int, int, int]:
    """Permits in flight up to which each class may take one, by class; what is kept for whom is said."""
    kept = -(-limit // RESERVE)
    below_high = max(1, limit - kept) if high else limit
    below_normal = max(1, below_high - kept) if normal else below_high
    return limit, below_high, below_normal


class Permits:
    """The permits of a limit, counted."""

    __slots__ = ("_high", "_normal", "_open", "_shares", "in_flight", "limit")

    def __init__(self, limit: int) -> None:
        self.in_flight = 0
        self._high = self._normal = False
        self.resize(limit)

    def resize(self, limit: int) -> None:
        """Lets another number through. What is in flight stays, above the limit if need be."""
        self.limit = limit
        self._shares = shares(limit, self._high, self._normal)
        self._open = self._shares[Priority.LOW]

    def keep_for(self, priority: Priority) -> None:
        self._high = self._high or priority is Priority.HIGH
        self._normal = self._normal or priority is Priority.NORMAL
        self.resize(self.limit)

    def try_acquire(self) -> bool:
        if self.in_flight >= self._open:
            return False
        self.in_flight += 1
        return True

    def try_acquire_as(self, priority: Priority) -> bool:
        if self.in_flight >= self._shares[priority]:
            return False
        self.in_flight += 1
        return True

    def take(self) -> None:
        self.in_flight += 1

    def release(self) -> None:
        self.in_flight -= 1


class FixedLimit(Permits):
    """A number that the operator chose."""

    __slots__ = ()

    def __init__(self, max: int) -> None:  # noqa: A002 - named as its configuration key
        """Raises ValueError when `max` lets nothing through."""
        if max < 1:
            raise ValueError("a concurrency limit lets at least one through")
        super().__init__(max)
