"""A batch that runs in this process: what it holds, what waits for what, and how it stands."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from sidecar.batch.jobs import Batch, Claimed, Counts, Outcome, Result
from sidecar.batch.stats import Rate
from sidecar.decisions.gradient import AdaptiveLimit

LONGEST_HOLD: Final = 5.0
"""Seconds between two tries at a route that refuses, unless it says itself how long."""
SHORTEST_HOLD: Final = 0.25

STORED_TOGETHER: Final = 4 << 20
"""Bytes of results that are stored at a time."""


@dataclass(slots=True)
class Hold:
    """A route that refuses: nothing goes there until `until`, then one line at a time until one succeeds."""

    since: float
    until: float
    tries: int = 0
    probe: int | None = None
    """Number of the line in flight that asks whether the route is well again."""
    why: str = ""


class Job:
    """A batch at work."""

    def __init__(self, batch: Batch, limit: AdaptiveLimit, accepted_at: float) -> None:
        """`accepted_at` as `Clock.now()` has it."""
        self.batch = batch
        self.limit = limit
        deadline = batch.options.deadline
        self.expires = None if deadline is None else accepted_at + deadline
        self.ready: deque[Claimed] = deque()
        self.in_flight: dict[int, asyncio.Task[None]] = {}
        self.held: set[int] = set()
        """Numbers of the lines that are here: ready, waiting, in flight, or done and not yet stored."""
        self.holds: dict[str, Hold] = {}
        """By route."""
        self.tries: dict[int, int] = {}
        """Failures so far, by line."""
        self.unstored: list[Result] = []
        self.unstored_bytes = 0
        self.driving: asyncio.Task[None] | None = None
        self.flushing: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()
        self.rate = Rate()
        self.store_trouble = ""
        self.retries = 0
        self.cached = 0
        self._later: list[tuple[float, int, Claimed]] = []

    def put_off(self, claimed: Claimed, until: float) -> None:
        heapq.heappush(self._later, (until, claimed.item.number, claimed))

    def ripen(self, now: float) -> None:
        """What was put off until now is ready."""
        while self._later and self._later[0][0] <= now:
            self.ready.append(heapq.heappop(self._later)[2])

    def drop_waiting(self) -> list[Claimed]:
        """All lines that are here and not in flight: nothing waits any more."""
        dropped = [*self.ready, *(entry[2] for entry in self._later)]
        self.ready.clear()
        self._later.clear()
        return dropped

    def keep(self, result: Result) -> None:
        """A line is done: until it is stored, its result is here."""
        self.unstored.append(result)
        self.unstored_bytes += len(result.text)

    def take_unstored(self) -> list[Result]:
        """The first results that are here, as many as go in one transaction; one at least."""
        size = count = 0
        for result in self.unstored:
            size += len(result.text)
            if count and size > STORED_TOGETHER:
                size -= len(result.text)
                break
            count += 1
        results, self.unstored = self.unstored[:count], self.unstored[count:]
        self.unstored_bytes -= size
        return results

    @property
    def waiting(self) -> int:
        """Lines that were put off."""
        return len(self._later)

    @property
    def next_at(self) -> float | None:
        """When the next line that was put off is ready, or the deadline ends; None: nothing is due."""
        times = [at for at in (self._later[0][0] if self._later else None, self._deadline) if at is not None]
        return min(times, default=None)

    @property
    def _deadline(self) -> float | None:
        return self.expires if not self.batch.reason else None

    @property
    def paused(self) -> str:
        """Why it cannot go on just now; empty while it can."""
        if self.store_trouble:
            return self.store_trouble
        if (
            self.holds
            and not self.ready
            and len(self.in_flight) <= sum(it.probe is not None for it in self.holds.values())
        ):
            route, hold = next(iter(self.holds.items()))
            return f"the route {route} does not take requests now: {hold.why}"
        return ""

    def know(self, batch: Batch) -> None:
        """What the store says. It may have been asked before the batch was ended here: that stays."""
        if self.batch.reason and not batch.reason:
            batch = replace(batch, status=self.batch.status, reason=self.batch.reason)
        self.batch = batch

    def count(self, fresh: list[Result]) -> None:
        """Results were stored."""
        counts = self.batch.counts
        by = [sum(it.outcome is each for it in fresh) for each in Outcome]
        counts = Counts(counts.total, counts.ok + by[0], counts.failed + by[1], counts.unknown + by[2])
        self.batch = replace(self.batch, counts=counts)

    def refused(self, route: str, now: float, wait: float | None, jitter: float, why: str) -> float:
        """A route refused a line: until when it is left alone. `jitter` is in [0, 1)."""
        hold = self.holds.get(route)
        if hold is None:
            hold = self.holds[route] = Hold(now, now)
        elif now < hold.until:  # lines that were in flight together say it together
            return hold.until
        pause = min(LONGEST_HOLD, SHORTEST_HOLD * 2 ** min(hold.tries, 10)) * (0.75 + jitter / 2)
        hold.until = now + max(pause, wait or 0.0)
        hold.tries += 1
        hold.why = why
        return hold.until

    def doubted(self, route: str, started: float, now: float, jitter: float, why: str) -> None:
        """A line that was sent at `started` failed as those do that are too many: that is not well."""
        hold = self.holds.get(route)
        if hold is not None and started >= hold.since:
            self.refused(route, now, None, jitter, why)

    def landed(self, number: int) -> None:
        """A line is in flight no longer, or was not sent after all: it probes nothing any more."""
        self.in_flight.pop(number, None)
        for hold in self.holds.values():
            if hold.probe == number:
                hold.probe = None

    def answered(self, route: str, started: float) -> None:
        """A line that was sent at `started` got its answer: what began before the hold says nothing of it."""
        hold = self.holds.get(route)
        if hold is not None and started >= hold.since:
            del self.holds[route]

    def may_send(self, route: str, number: int, now: float) -> bool:
        """Whether this line of the route may be sent; the first after a hold is a probe."""
        hold = self.holds.get(route)
        if hold is None:
            return True
        if now < hold.until or hold.probe is not None:
            return False
        hold.probe = number
        return True

    def hold_ends(self, route: str, now: float) -> float:
        """When to look again for a line that may not be sent."""
        return max(self.holds[route].until, now + SHORTEST_HOLD)
