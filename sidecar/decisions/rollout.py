"""Whether a new generation takes over: judged by what its share of the traffic came to.

It is rolled back early only on evidence: when the lower bound of the error rate's confidence interval
(E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the
American Statistical Association 22, 1927) is above what the guard allows. So one failure among the first
requests ends nothing, and an outage of the new generation is known after some tens of them. At the end of
the window the plain figures are judged.
"""

from __future__ import annotations

import math
import zlib
from bisect import insort
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

Z: Final = 2.576
"""Of the one-sided 99.5 % bound: it is looked at once a second, and each look may err."""
EVIDENCE: Final = 10
"""Requests below which nothing is judged early."""
LATENCIES: Final = 100
"""Requests below which a 95th percentile is not judged early: five lie above it."""
MOST_WINDOWS: Final = 10
"""Windows after which a quiet generation is judged by what there is."""
MOST_TIMES: Final = 4096
"""Times that are ranked; later ones replace none: a rollout is judged by its first ones and its rates."""

SHARES: Final = 10_000


def shares(key: str, percent: float, generation: int) -> bool:
    """Whether a client belongs to the share; in the next rollout others do. `percent`: 0 to 1."""
    return zlib.crc32(f"{generation}:{key}".encode()) % SHARES < percent * SHARES


class Judgement(NamedTuple):
    outcome: Literal["promote", "roll_back"]
    why: str


class Tally:
    """What one generation answered."""

    __slots__ = ("failures", "left", "requests", "times")

    def __init__(self) -> None:
        self.requests = 0
        self.failures = 0
        self.left = 0
        """Requests whose clients left before there was an answer."""
        self.times: list[float] = []
        """Seconds to the heads of answers, ranked."""

    def record(self, *, failed: bool, seconds: float) -> None:
        self.requests += 1
        self.failures += failed
        if len(self.times) < MOST_TIMES:
            insort(self.times, seconds)

    def record_left(self, seconds: float) -> None:
        """Its client left after that time, without an answer."""
        self.left += 1
        self.record(failed=False, seconds=seconds)

    def worse(self, other: Tally) -> float:
        """Failures, and those who left without an answer as far as more did than beside.

        A generation that answers nothing fails nobody otherwise: whoever waits leaves at some time.
        """
        usual = other.left / other.requests if other.requests else 0.0
        return self.failures + max(self.left - usual * self.requests, 0.0)

    @property
    def error_rate(self) -> float:
        return self.failures / self.requests if self.requests else 0.0

    @property
    def p95(self) -> float:
        """Seconds; 0 before the first."""
        return self.times[math.ceil(0.95 * len(self.times)) - 1] if self.times else 0.0

    def least_rate(self, failures: float) -> float:
        """The rate of so many failures is hardly lower than this."""
        n = self.requests
        if not n:
            return 0.0
        share = failures / n
        middle = share + Z * Z / (2 * n)
        spread = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
        return max((middle - spread) / (1 + Z * Z / n), 0.0)

    def told(self) -> str:
        left = f", {self.left} clients left unanswered" if self.left else ""
        return (
            f"{self.failures} of {self.requests} failed ({self.error_rate:.1%}){left}, "
            f"p95 {self.p95 * 1000:.0f} ms"
        )


def together(parts: Sequence[Tally]) -> Tally:
    """What several processes counted of one generation. Of too many times each so-manieth is ranked."""
    whole = Tally()
    whole.requests = sum(it.requests for it in parts)
    whole.failures = sum(it.failures for it in parts)
    whole.left = sum(it.left for it in parts)
    times = sorted(time for it in parts for time in it.times)
    whole.times = times[:: max(math.ceil(len(times) / MOST_TIMES), 1)]
    return whole


class Trial:
    """One rollout: the new generation beside the one in force."""

    __slots__ = ("_began", "_error_rate", "_minimum", "_p95", "_window", "new", "old")

    def __init__(
        self, began: float, *, error_rate: float, p95: float | None, window: float, minimum: int
    ) -> None:
        """Times in seconds, `error_rate` a share of 1."""
        self._began = began
        self._error_rate = error_rate
        self._p95 = p95
        self._window = window
        self._minimum = minimum
        self.new = Tally()
        self.old = Tally()

    def judge(self, now: float) -> Judgement | None:
        """What is to become of it; None: it goes on."""
        new = self.new
        over = now - self._began >= self._window
        quiet = new.requests < self._minimum
        if over and quiet and now - self._began < MOST_WINDOWS * self._window:
            over = False
        failures = new.worse(self.old)
        rate = (failures / new.requests if new.requests else 0.0) if over else new.least_rate(failures)
        beside = f"{new.told()}; the one before: {self.old.told()}"
        if (over or new.requests >= EVIDENCE) and rate > self._error_rate:
            return Judgement("roll_back", f"more than guard.error_rate, {self._error_rate:.1%}: {beside}")
        slow = self._p95 is not None and new.p95 > self._p95
        if slow and (over or new.requests >= LATENCIES):
            return Judgement("roll_back", f"slower than guard.p95, {self._p95:g} s: {beside}")
        if over:
            few = "few requests came, none against it: " if quiet else ""
            return Judgement("promote", f"{few}{beside}")
        return None
