"""What the collector reads of objects that others own."""

from __future__ import annotations

from typing import Protocol


class WatchedLimit(Protocol):
    @property
    def limit(self) -> int: ...
    @property
    def in_flight(self) -> int: ...


class WatchedQueue(Protocol):
    waiting: int


class WatchedBuckets(Protocol):
    def __len__(self) -> int: ...


class WatchedBudget(Protocol):
    def available(self, now: float) -> float:
        """Retries that may start now."""
        ...


class WatchedPacer(Protocol):
    def pace(self, now: float) -> float | None:
        """Requests a second that go on evenly; None: no limit is known."""
        ...

    def remaining(self, now: float) -> float | None:
        """Requests left of the provider's quota; None: it states none."""
        ...

    def held_for(self, now: float) -> float | None:
        """Seconds until a request may go; None: nothing is held."""
        ...
