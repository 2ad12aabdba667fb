"""What is counted of batches, by this process."""

from __future__ import annotations

from collections import deque
from typing import Final

from sidecar.batch.jobs import Outcome

WINDOW: Final = 10
"""Seconds over which a rate is taken."""
POINTS: Final = 120
"""Of concurrency and rate that are remembered, one a second."""


class Rate:
    """Events a second, over the last `WINDOW` seconds or since the first event, if that is less."""

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque(maxlen=WINDOW + 1)
        self._first: float | None = None

    def add(self, number: int, now: float) -> None:
        if self._first is None:
            self._first = now
        second = int(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0])
        self._seconds[-1][1] += number

    def at(self, now: float) -> float:
        if self._first is None:
            return 0.0
        oldest = int(now) - WINDOW
        counted = sum(count for second, count in self._seconds if second >= oldest)
        return counted / max(1.0, now - max(self._first, float(oldest)))


class Stats:
    """Cells that the Collector reads."""

    def __init__(self) -> None:
        self.jobs = dict.fromkeys((outcome.value for outcome in Outcome), 0)
        """Lines done by this process, by how they ended."""
        self.batches: dict[str, int] = {}
        """Batches that ended, by status; `accepted` too."""
        self.retries = 0
        self.refusals = 0
        """Calls that the sidecar or the upstream refused, and that were put off."""
        self.cached = 0
        """Lines that the cache answered, or that shared an answer."""
        self.store_errors = 0
        self.rate = Rate()
        self.queued = 0
        """Lines of running batches that are not done."""
        self.in_flight = 0
        self.limit = 0
        """Lines that may be in flight now."""
        self.chunk = 0
        self.paused = 0
        """Batches that cannot go on just now."""
        self.history: deque[tuple[float, int, float]] = deque(maxlen=POINTS)
        """Unix time, lines in flight, lines a second: once a second while a batch runs."""

    def ended(self, status: str) -> None:
        self.batches[status] = self.batches.get(status, 0) + 1
