"""The cells of what goes out: attempts and connections, name look-ups, breakers, turns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

from sidecar.decisions.breaker import Breaker, Reason, Transition
from sidecar.decisions.buckets import STANDARD
from sidecar.decisions.verdict import Verdict
from sidecar.telemetry.histogram import Histogram
from sidecar.telemetry.reasons import count_reason
from sidecar.telemetry.watched import WatchedPacer

_OK: Final = Verdict.OK


class UpstreamCells:
    """What is counted of one upstream. The pool adds to the integers directly."""

    __slots__ = (
        "_others",
        "_succeeded",
        "connect_failures",
        "connections_opened",
        "connections_reused",
        "external",
        "handshakes",
        "idle",
        "name",
        "tls_failures",
    )

    def __init__(self, name: str, bounds: tuple[float, ...] = STANDARD) -> None:
        self.name = name
        self.external = False
        """A provider that the app calls, not the app."""
        self.connections_opened = 0
        self.connections_reused = 0
        """Requests sent on a connection that had served one before."""
        self.connect_failures = 0
        self.idle: Callable[[], int] | None = None
        """Set by the pool: connections that wait for a request, now."""
        self.handshakes = {"full": 0, "resumed": 0}
        """TLS handshakes that were completed."""
        self.tls_failures: dict[str, int] = {}
        """By what was wrong: see `upstreams.tls`."""
        self._succeeded = Histogram(bounds)
        self._others: dict[Verdict, Histogram] = {
            verdict: Histogram(bounds) for verdict in Verdict if verdict is not _OK
        }

    def handshake(self, *, resumed: bool) -> None:
        self.handshakes["resumed" if resumed else "full"] += 1

    def tls_failed(self, fault: str) -> None:
        count_reason(self.tls_failures, fault)

    def attempt(self, verdict: Verdict, seconds: float) -> None:
        """Counts one attempt; `seconds` to its response headers, or to its failure."""
        # Hashing an enum member is a call in Python 3.11.
        durations = self._succeeded if verdict is _OK else self._others[verdict]
        durations.buckets[bisect_left(durations.bounds, seconds)] += 1
        durations.seconds += seconds

    @property
    def bounds(self) -> tuple[float, ...]:
        return self._succeeded.bounds

    @property
    def durations(self) -> dict[Verdict, Histogram]:
        return {_OK: self._succeeded, **self._others}

    def attempts(self) -> dict[Verdict, int]:
        return {verdict: durations.count for verdict, durations in self.durations.items()}

    def answers(self) -> int:
        """Attempts that the upstream surely answered: it is alive, however busy."""
        return sum(count for verdict, count in self.attempts().items() if verdict is not Verdict.TRANSIENT)


class DnsCells:
    """What is counted of the sidecar's own resolver."""

    __slots__ = ("lookups", "questions")

    def __init__(self) -> None:
        self.lookups: dict[str, int] = {}
        """By how a name was resolved: fresh (from memory), asked, stale, absent or failed."""
        self.questions: dict[str, int] = {}
        """By what a name server made of one: answer, absent, refused, invalid, unreachable or timeout."""

    def looked_up(self, outcome: str) -> None:
        count_reason(self.lookups, outcome)

    def asked(self, outcome: str) -> None:
        count_reason(self.questions, outcome)


class BreakerCells:
    """How often a breaker entered each state, counted from outside: the breaker itself knows no metrics."""

    __slots__ = ("_seen", "breaker", "entered", "mode", "tell")

    def __init__(self, breaker: Breaker, mode: str = "enforce") -> None:
        self.breaker = breaker
        self.mode = mode
        """`shadow`: it refuses nothing."""
        self.entered = {"closed": 0, "half_open": 0, "open": 0}
        """What other processes of the same sidecar found, and told this one, is counted there."""
        self.tell: Callable[[Breaker, Transition], None] | None = None
        """Hears of what was found here."""
        self._seen = 0

    def look(self) -> Transition | None:
        """The transition since the last look, if there was one, now counted.

        To be called after each step of the breaker: of several at once only the last is known.
        """
        breaker = self.breaker
        if breaker.transitions == self._seen:
            return None
        self._seen = breaker.transitions
        last = breaker.last
        if last is not None and last.reason is not Reason.TOLD:
            self.entered[last.target.value] += 1
            if self.tell is not None:
                self.tell(breaker, last)
        return last

    def watch(self, breaker: Breaker, mode: str) -> None:
        """Counts on with another breaker in the place of the one before."""
        self.mode = mode
        if breaker is not self.breaker:
            self.breaker = breaker
            self._seen = 0


class PaceCells:
    """How long requests waited for their turn at one upstream; those that did not wait are not counted."""

    __slots__ = ("batch", "interactive", "pacer")

    def __init__(self, pacer: WatchedPacer, bounds: tuple[float, ...] = STANDARD) -> None:
        self.pacer = pacer
        self.batch = Histogram(bounds)
        self.interactive = Histogram(bounds)

    def waited(self, seconds: float, *, low: bool) -> None:
        (self.batch if low else self.interactive).observe(seconds)
