"""How many attempts may be in flight at a time."""

from __future__ import annotations

from typing import Protocol


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
        """Takes a permit; False when all are out. Each True is owed exactly one `release`."""
        ...

    def release(self) -> None:
        """Gives a permit back: when the body has ended, not at the headers."""
        ...


class FixedLimit:
    """A number that the operator chose."""

    __slots__ = ("in_flight", "limit")

    def __init__(self, max: int) -> None:  # noqa: A002 - named as its configuration key
        """Raises ValueError when `max` lets nothing through."""
        if max < 1:
            raise ValueError("a concurrency limit lets at least one through")
        self.limit = max
        self.in_flight = 0

    def try_acquire(self) -> bool:
        if self.in_flight >= self.limit:
            return False
        self.in_flight += 1
        return True

    def release(self) -> None:
        self.in_flight -= 1
