"""The cells that the request path counts in: plain integers and bucket lists.

`.labels().observe()` of prometheus_client costs 2 to 4 microseconds and takes a lock; a request touches
several metrics. A cell is bound once, when a pipeline is compiled, and `collector.py` reads it at scrape.

Every label value comes from the configuration or from a closed set, so that no client can make series:
an unknown method is `OTHER`, a status outside the registry is its class (`5xx`), and the reasons that
layers give are counted under `other` once a route has `MOST_REASONS` of them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Protocol

from sidecar.decisions.breaker import Breaker, Transition
from sidecar.decisions.verdict import Verdict

BOUNDS: tuple[float, ...] = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper bounds of the histogram buckets in seconds; they hold the thresholds that alerts and stress
scenarios name (0.5, 1, 1.5, 2, 3 and 10 s), so that a quantile can be compared with them."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
"""RFC 9110, 9.3 and RFC 5789."""

STATUSES = frozenset(status.value for status in HTTPStatus) | {499}
"""The registry, and 499: the client left before the answer."""

MOST_REASONS = 32

_NAMESPACE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_OK = Verdict.OK

Exemplar = tuple[bytes, float, float]
"""Trace id, seconds observed, and `Clock.now()` when they were."""


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


def _count(cells: dict[str, int], reason: str) -> None:
    if reason not in cells and len(cells) >= MOST_REASONS:
        reason = "other"
    cells[reason] = cells.get(reason, 0) + 1


class Histogram:
    """Counts by bucket, not yet cumulated; the last bucket is `+Inf`."""

    __slots__ = ("buckets", "exemplars", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0
        self.exemplars: list[Exemplar | None] = [None] * len(self.buckets)

    @property
    def count(self) -> int:
        return sum(self.buckets)

    @classmethod
    def sum_of(cls, parts: Iterable[Histogram]) -> Histogram:
        """All of them together, without their exemplars."""
        whole = cls()
        for part in parts:
            whole.buckets = [a + b for a, b in zip(whole.buckets, part.buckets, strict=True)]
            whole.seconds += part.seconds
        return whole


class RouteCells:
    """What is counted of one route."""

    __slots__ = (
        "aborts",
        "breaker_rejections",
        "cache",
        "clients_gone",
        "degradations",
        "durations",
        "errors",
        "fallbacks",
        "faults_injected",
        "hedges",
        "limit_rejections",
        "name",
        "pace_rejections",
        "rate_rejections",
        "rate_unshared",
        "requests",
        "retries",
        "retries_skipped",
        "shadow_rejections",
        "upstream",
    )

    def __init__(self, name: str, upstream: str) -> None:
        self.name = name
        self.upstream = upstream
        self.requests: dict[tuple[str, int], list[int]] = {}
        """By method and status, as labelled: see `_cell`."""
        self.durations = Histogram()
        self.retries: dict[str, int] = {}
        self.retries_skipped: dict[str, int] = {}
        self.hedges: dict[str, int] = {}
        """By outcome: won, lost or failed."""
        self.errors: dict[str, int] = {}
        self.breaker_rejections = 0
        self.cache: dict[str, int] = {}
        """Requests by what the cache did with them."""
        self.fallbacks: dict[str, int] = {}
        """Answers by the rung of the ladder that gave them; those that needed none are not counted."""
        self.degradations: dict[str, int] = {}
        """Answers of the app that it made without something it needs, by what that is."""
        self.limit_rejections = 0
        self.rate_rejections = 0
        self.rate_unshared = 0
        """Requests whose shared rate limit could not be asked."""
        self.pace_rejections: dict[str, int] = {}
        """By reason: patience, deadline, held."""
        self.shadow_rejections: dict[str, int] = {}
        """By layer: what a policy in shadow mode would have refused."""
        self.faults_injected: dict[str, int] = {}
        """By what they did; an attempt that was hit by two at once counts for both."""
        self.aborts = 0
        self.clients_gone = 0

    def record(self, method: str, status: int, seconds: float) -> None:
        """Counts an answer that is over. A tunnel (101, CONNECT) has no duration to compare."""
        cell = self.requests.get((method, status))
        if cell is None:
            cell = self._cell(method, status)
        cell[0] += 1
        if status != 101 and method != "CONNECT":
            durations = self.durations
            durations.buckets[bisect_left(BOUNDS, seconds)] += 1
            durations.seconds += seconds

    def _cell(self, method: str, status: int) -> list[int]:
        if method not in METHODS:
            method = "OTHER"
        if status not in STATUSES:
            # 0 to 5 name the classes: no status has so few digits.
            status = status // 100 if 100 <= status < 600 else 0
        return self.requests.setdefault((method, status), [0])

    def exemplar(self, trace_id: bytes, seconds: float, now: float) -> None:
        """Remembers a traced request as the example of its bucket."""
        self.durations.exemplars[bisect_left(BOUNDS, seconds)] = (trace_id, seconds, now)

    def error(self, code: str) -> None:
        """An answer of the sidecar's own, by its `Sidecar-Error` code."""
        _count(self.errors, code)

    def retry(self, reason: str) -> None:
        """An attempt is repeated."""
        _count(self.retries, reason)

    def retry_skipped(self, reason: str) -> None:
        """A failed attempt is not repeated although the policy is there: budget, body size, time left."""
        _count(self.retries_skipped, reason)

    def hedge(self, outcome: str) -> None:
        """A hedge is over: it won, it lost, or it failed."""
        self.hedges[outcome] = self.hedges.get(outcome, 0) + 1

    def cached(self, outcome: str) -> None:
        self.cache[outcome] = self.cache.get(outcome, 0) + 1

    def fell_back(self, rung: str) -> None:
        """There was no good answer: this rung's goes to the client."""
        self.fallbacks[rung] = self.fallbacks.get(rung, 0) + 1

    def degraded(self, upstream: str) -> None:
        """The app answered, and as far as we know without `upstream`."""
        _count(self.degradations, upstream)

    def breaker_rejected(self) -> None:
        self.breaker_rejections += 1

    def limit_rejected(self) -> None:
        self.limit_rejections += 1

    def rate_rejected(self) -> None:
        self.rate_rejections += 1

    def pace_rejected(self, reason: str) -> None:
        self.pace_rejections[reason] = self.pace_rejections.get(reason, 0) + 1

    def would_reject(self, layer: str) -> None:
        """A policy in shadow mode would have refused the request, or the attempt."""
        self.shadow_rejections[layer] = self.shadow_rejections.get(layer, 0) + 1

    def fault_injected(self, kind: str) -> None:
        """An attempt was hit by an injected fault."""
        self.faults_injected[kind] = self.faults_injected.get(kind, 0) + 1

    def aborted(self) -> None:
        """The connection was cut because the body broke after its head had gone out."""
        self.aborts += 1

    def client_gone(self) -> None:
        """The client left before it had the whole answer."""
        self.clients_gone += 1


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

    def __init__(self, name: str) -> None:
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
        self._succeeded = Histogram()
        self._others = {verdict: Histogram() for verdict in Verdict if verdict is not _OK}

    def handshake(self, *, resumed: bool) -> None:
        self.handshakes["resumed" if resumed else "full"] += 1

    def tls_failed(self, fault: str) -> None:
        _count(self.tls_failures, fault)

    def attempt(self, verdict: Verdict, seconds: float) -> None:
        """Counts one attempt; `seconds` to its response headers, or to its failure."""
        # Hashing an enum member is a call in Python 3.11.
        durations = self._succeeded if verdict is _OK else self._others[verdict]
        durations.buckets[bisect_left(BOUNDS, seconds)] += 1
        durations.seconds += seconds

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
        _count(self.lookups, outcome)

    def asked(self, outcome: str) -> None:
        _count(self.questions, outcome)


class BreakerCells:
    """How often a breaker entered each state, counted from outside: the breaker itself knows no metrics."""

    __slots__ = ("_seen", "breaker", "entered", "mode")

    def __init__(self, breaker: Breaker, mode: str = "enforce") -> None:
        self.breaker = breaker
        self.mode = mode
        """`shadow`: it refuses nothing."""
        self.entered = {"closed": 0, "half_open": 0, "open": 0}
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
        if last is not None:
            self.entered[last.target.value] += 1
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

    def __init__(self, pacer: WatchedPacer) -> None:
        self.pacer = pacer
        self.batch = Histogram()
        self.interactive = Histogram()

    def waited(self, seconds: float, *, low: bool) -> None:
        waits = self.batch if low else self.interactive
        waits.buckets[bisect_left(BOUNDS, seconds)] += 1
        waits.seconds += seconds


class ListenerCells:
    """What is counted of one listener; it adds to the integers directly."""

    __slots__ = ("accepted", "active", "bad_requests", "intercepted", "name", "refused", "tls_failures")

    def __init__(self, name: str) -> None:
        self.name = name
        self.accepted = 0
        self.active = 0
        self.refused = 0
        """Connections closed at once because `limits.connections` was reached."""
        self.bad_requests = 0
        """Requests answered 4xx by the listener itself, before any route was known."""
        self.intercepted = 0
        """TLS connections that are read here: a policy owns their host."""
        self.tls_failures = 0
        """Connections that ended before their TLS handshake was complete."""


class Metrics:
    """All cells of a process, by name: asked twice, it gives the same cell, so a reload keeps counts.

    Raises ValueError where `namespace` cannot begin a metric's name.
    """

    __slots__ = (
        "breakers",
        "buckets",
        "budgets",
        "dns",
        "limits",
        "listeners",
        "namespace",
        "paces",
        "queues",
        "routes",
        "upstreams",
    )

    def __init__(self, namespace: str = "nextvision") -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise ValueError(f"{namespace!r} cannot begin a metric's name: letters, digits and _ only")
        self.namespace = namespace
        self.routes: dict[str, RouteCells] = {}
        self.upstreams: dict[str, UpstreamCells] = {}
        self.listeners: dict[str, ListenerCells] = {}
        self.breakers: dict[str, BreakerCells] = {}
        self.buckets: dict[str, WatchedBuckets] = {}
        self.limits: dict[str, WatchedLimit] = {}
        self.queues: dict[str, WatchedQueue] = {}
        self.budgets: dict[str, WatchedBudget] = {}
        self.dns = DnsCells()
        self.paces: dict[str, PaceCells] = {}

    def route(self, name: str, upstream: str) -> RouteCells:
        cells = self.routes.get(name)
        if cells is None:
            cells = self.routes[name] = RouteCells(name, upstream)
        cells.upstream = upstream
        return cells

    def upstream(self, name: str) -> UpstreamCells:
        cells = self.upstreams.get(name)
        if cells is None:
            cells = self.upstreams[name] = UpstreamCells(name)
        return cells

    def listener(self, name: str) -> ListenerCells:
        cells = self.listeners.get(name)
        if cells is None:
            cells = self.listeners[name] = ListenerCells(name)
        return cells

    def watch_breaker(self, scope: str, breaker: Breaker, mode: str = "enforce") -> BreakerCells:
        """Shows a live breaker under `scope`: an upstream's name, or one of its own where a route has one.

        Another object under the same name takes the place of the first; its counts go on.
        """
        cells = self.breakers.get(scope)
        if cells is None:
            cells = self.breakers[scope] = BreakerCells(breaker, mode)
        cells.watch(breaker, mode)
        return cells

    def watch_limit(self, scope: str, limit: WatchedLimit) -> None:
        self.limits[scope] = limit

    def watch_queue(self, scope: str, queue: WatchedQueue) -> None:
        """The queue in front of the limit that is shown under `scope`."""
        self.queues[scope] = queue

    def watch_buckets(self, scope: str, buckets: WatchedBuckets) -> None:
        self.buckets[scope] = buckets

    def watch_budget(self, scope: str, budget: WatchedBudget) -> None:
        self.budgets[scope] = budget

    def watch_pace(self, scope: str, pacer: WatchedPacer) -> PaceCells:
        """Shows a live pacer; another under the same name takes the place of the first, and counts go on."""
        cells = self.paces.get(scope)
        if cells is None:
            cells = self.paces[scope] = PaceCells(pacer)
        cells.pacer = pacer
        return cells
