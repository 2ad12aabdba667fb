"""The cells that the request path counts in: plain integers and bucket lists.

`.labels().observe()` of prometheus_client costs 2 to 4 microseconds and takes a lock; a request touches
several metrics. A cell is bound once, when a pipeline is compiled, and `collector.py` reads it at scrape.

Every label value comes from the configuration or from a closed set, so that no client can make series:
an unknown method is `OTHER`, a status outside the registry is its class (`5xx`), and the reasons that
layers give are counted under `other` once a route has `MOST_REASONS` of them (`reasons.py`).
"""

from __future__ import annotations

import re

from sidecar.decisions.breaker import Breaker
from sidecar.decisions.buckets import STANDARD
from sidecar.telemetry.histogram import Exemplar, Histogram
from sidecar.telemetry.reasons import MOST_REASONS
from sidecar.telemetry.route_cells import RouteCells
from sidecar.telemetry.upstream_cells import BreakerCells, DnsCells, PaceCells, UpstreamCells
from sidecar.telemetry.watched import (
    WatchedBuckets,
    WatchedBudget,
    WatchedLimit,
    WatchedPacer,
    WatchedQueue,
)

__all__ = [
    "MOST_REASONS",
    "BreakerCells",
    "DnsCells",
    "Exemplar",
    "Histogram",
    "ListenerCells",
    "Metrics",
    "PaceCells",
    "RouteCells",
    "UpstreamCells",
]

_NAMESPACE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


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

    `bounds` are those of the histogram buckets, in seconds. Raises ValueError where `namespace` cannot
    begin a metric's name.
    """

    __slots__ = (
        "bounds",
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

    def __init__(self, namespace: str = "nextvision", bounds: tuple[float, ...] = STANDARD) -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise ValueError(f"{namespace!r} cannot begin a metric's name: letters, digits and _ only")
        self.namespace = namespace
        self.bounds = bounds
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
            cells = self.routes[name] = RouteCells(name, upstream, self.bounds)
        cells.upstream = upstream
        return cells

    def upstream(self, name: str) -> UpstreamCells:
        cells = self.upstreams.get(name)
        if cells is None:
            cells = self.upstreams[name] = UpstreamCells(name, self.bounds)
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
            cells = self.paces[scope] = PaceCells(pacer, self.bounds)
        cells.pacer = pacer
        return cells
