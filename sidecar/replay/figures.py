"""What is counted of a log, and of what becomes of it under a configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sidecar.replay.log import Log
from sidecar.telemetry.route_families import hit_rate

BUCKETS: Final = 120
"""Points in time of the plot."""
HITS: Final = frozenset({"hit", "stale", "updating", "revalidated"})
"""What counts as a hit, as for `…_cache_hit_rate`."""


@dataclass(slots=True)
class RouteFigures:
    """What became of the requests of one route."""

    requests: int = 0
    calls: int = 0
    """Attempts at the upstream."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Requests by what the cache did with them; none where the route has no cache."""
    failed: int = 0
    """Answers of 500 and above."""
    retries: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Answers of the sidecar's own, by their `Sidecar-Error` code."""
    shadow: Counter[str] = field(default_factory=Counter)
    """By layer: what a policy in shadow mode would have refused."""
    fallbacks: int = 0
    seconds: list[float] = field(default_factory=list)
    """How long the answers took; empty where the log does not say."""
    price: float = 0.0

    @property
    def saved(self) -> int:
        """Calls that there would have been more without a sidecar: one for each request."""
        return self.requests - self.calls


@dataclass(slots=True)
class Figures:
    """What the requests of a log came to."""

    name: str
    began: float
    """Unix seconds of its first request."""
    ended: float
    """Of its last."""
    routes: dict[str, RouteFigures] = field(default_factory=dict)
    hits: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    """Requests that were answered from the cache, over time; as all that follows."""
    looked: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    """Requests that the cache was asked for."""
    calls: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def route(self, name: str) -> RouteFigures:
        found = self.routes.get(name)
        if found is None:
            found = self.routes[name] = RouteFigures()
        return found

    def looked_up(self, at: float, *, hit: bool) -> None:
        """The cache was asked for a request that came `at` (Unix seconds)."""
        place = self._place(at)
        self.looked[place] += 1
        self.hits[place] += hit

    def called(self, route: str, at: float, calls: int = 1) -> None:
        """Attempts at the upstream, for a route."""
        self.route(route).calls += calls
        self.calls[self._place(at)] += calls

    def _place(self, at: float) -> int:
        span = self.ended - self.began
        return min(int((at - self.began) / span * BUCKETS), BUCKETS - 1) if span > 0 else 0

    @property
    def total(self) -> RouteFigures:
        """All routes together."""
        total = RouteFigures()
        for route in self.routes.values():
            total.requests += route.requests
            total.calls += route.calls
            total.outcomes.update(route.outcomes)
            total.failed += route.failed
            total.retries += route.retries
            total.rejected.update(route.rejected)
            total.shadow.update(route.shadow)
            total.fallbacks += route.fallbacks
            total.seconds += route.seconds
        return total

    @property
    def money(self) -> float | None:
        """What the saved calls would have cost; None where no route has a price."""
        priced = [route for route in self.routes.values() if route.price]
        return sum(route.saved * route.price for route in priced) if priced else None


def share_of_hits(route: RouteFigures) -> float | None:
    """The hit ratio as `…_cache_hit_rate` has it; None where no cache was asked."""
    return hit_rate(route.outcomes) if route.outcomes else None


def as_logged(log: Log, prices: Callable[[str], float]) -> Figures:
    """What a log itself tells. `prices` of a call, by route; 0: none is known."""
    figures = Figures("the log", log.lines[0].at, log.lines[-1].at)
    for line in log.lines:
        route = figures.route(line.route or "all")
        route.price = prices(line.route)
        route.requests += 1
        route.failed += line.status >= 500
        route.retries += max(len(line.attempts) - 1, 0)
        route.fallbacks += bool(line.rung)
        route.shadow.update(line.shadow)
        if line.error and not line.attempts:
            route.rejected[line.error] += 1
        if line.seconds is not None:
            route.seconds.append(line.seconds)
        if line.cache:
            route.outcomes[line.cache] += 1
            figures.looked_up(line.at, hit=line.cache in HITS)
        figures.called(line.route or "all", line.at, line.calls)
    return figures
