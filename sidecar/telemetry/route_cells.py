"""The cells that the layers of one route count in."""

from __future__ import annotations

from bisect import bisect_left

from sidecar.decisions.buckets import STANDARD
from sidecar.telemetry.histogram import Histogram
from sidecar.telemetry.reasons import METHODS, STATUSES, count_reason


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

    def __init__(self, name: str, upstream: str, bounds: tuple[float, ...] = STANDARD) -> None:
        self.name = name
        self.upstream = upstream
        self.requests: dict[tuple[str, int], list[int]] = {}
        """By method and status, as labelled: see `_cell`."""
        self.durations = Histogram(bounds)
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
            durations.buckets[bisect_left(durations.bounds, seconds)] += 1
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
        durations = self.durations
        durations.exemplars[bisect_left(durations.bounds, seconds)] = (trace_id, seconds, now)

    def error(self, code: str) -> None:
        """An answer of the sidecar's own, by its `Sidecar-Error` code."""
        count_reason(self.errors, code)

    def retry(self, reason: str) -> None:
        """An attempt is repeated."""
        count_reason(self.retries, reason)

    def retry_skipped(self, reason: str) -> None:
        """A failed attempt is not repeated although the policy is there: budget, body size, time left."""
        count_reason(self.retries_skipped, reason)

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
        count_reason(self.degradations, upstream)

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
