"""What the policies in force say that dashboards and alerts go by: names of series, and thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sidecar.egress import UNLISTED
from sidecar.generation import UNMATCHED

if TYPE_CHECKING:
    from sidecar.config.load import Loaded
    from sidecar.config.schema import PolicyFile, Route, Rung

APP: Final = "app"
"""The upstream of `app.url`."""
MEASURABLE: Final = 0.9
"""Of the last bound: `histogram_quantile` never says more than that, so no threshold may reach it."""
NEAR: Final = 0.8
"""Share of a deadline, or of a limit, that is near enough to tell somebody."""
LONGEST_CALL: Final = 10.0
"""Seconds at p95 from which a call to others is slow, where no policy bounds it."""


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """A route, as metrics name it."""

    name: str
    external: bool
    """Of the app's own calls."""
    slow: float | None
    """Seconds at p95 that are near its deadline."""
    cached: bool
    falls_back: bool
    answers_itself: bool
    """By `respond`: what status it has is meant."""


@dataclass(frozen=True, slots=True)
class UpstreamFacts:
    """A provider that the app calls."""

    policy: str
    names: tuple[str, ...]
    """Values of the label `upstream`."""
    slow: float
    """Seconds at p95 that are near the time an attempt has."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is needed of a configuration."""

    namespace: str
    routes: tuple[RouteFacts, ...]
    upstreams: tuple[UpstreamFacts, ...]
    bounds: tuple[float, ...]
    """Of the buckets of histograms, in seconds."""
    connections: int
    """Client connections of each listener, at most."""
    breakers: bool
    budgets: bool
    paces: bool
    limits: bool
    rate_limits: bool
    redis: bool
    batches: bool

    def of_clients(self) -> tuple[str, ...]:
        """Routes that clients ask for, and that do not answer by themselves."""
        return tuple(it.name for it in self.routes if not it.external and not it.answers_itself)

    def cached(self) -> tuple[str, ...]:
        return tuple(it.name for it in self.routes if it.cached)

    def falling_back(self) -> tuple[str, ...]:
        return tuple(it.name for it in self.routes if it.falls_back)

    def by_threshold(self) -> Iterator[tuple[float, tuple[str, ...]]]:
        """Thresholds of routes, the shortest first, each with the routes that have it."""
        thresholds = sorted({it.slow for it in self.routes if it.slow is not None})
        for threshold in thresholds:
            yield threshold, tuple(it.name for it in self.routes if it.slow == threshold)


def facts_of(loaded: Loaded) -> Facts:
    """The facts of a configuration that was loaded."""
    bounds = loaded.config.metrics.buckets
    egress = [policy for policy in loaded.policies if policy.direction == "egress"]
    ingress = [policy for policy in loaded.policies if policy.direction == "ingress"]
    routes = [_route(route, bounds, external=False) for policy in ingress for route in policy.routes]
    routes.append(_plain(UNMATCHED, external=False))
    for policy in egress:
        routes += [_route(route, bounds, external=True) for route in policy.routes]
        routes.append(_plain(f"{policy.name}/{UNMATCHED}", external=True))
    if loaded.egress is not None:
        routes.append(_plain(UNLISTED, external=True))
    every = [route for policy in loaded.policies for route in policy.routes]
    rungs = [rung for route in every for rung in route.fallback or ()]
    # Steps of a ladder have policies of their own, which metrics name alike.
    holders: list[Route | Rung] = [*every, *rungs]
    retries = [it.retry for it in holders if it.retry is not None]
    rate_limits = [loaded.config.limits.rate_limit, *(route.rate_limit for route in every)]
    return Facts(
        namespace=loaded.config.metrics.namespace,
        routes=tuple(routes),
        upstreams=tuple(_upstream(policy, bounds) for policy in egress),
        bounds=bounds,
        connections=loaded.config.limits.connections,
        breakers=any(it.circuit_breaker is not None for it in holders),
        budgets=any(retry.budget is not None for retry in retries),
        paces=any(it.pace is not None for it in holders),
        limits=any(it.concurrency_limit is not None for it in holders),
        rate_limits=any(it is not None for it in rate_limits),
        redis=loaded.config.cache.redis is not None,
        batches=loaded.config.batch.store is not None,
    )


def near(seconds: float, bounds: Sequence[float]) -> float:
    """The threshold for what may take `seconds`, as far as buckets with these bounds can tell."""
    return min(round(NEAR * seconds, 3), MEASURABLE * bounds[-1])


def _route(route: Route, bounds: Sequence[float], *, external: bool) -> RouteFacts:
    itself = route.respond is not None
    return RouteFacts(
        name=route.name,
        external=external,
        slow=near(route.deadline, bounds) if route.deadline is not None and not itself else None,
        cached=route.cache is not None and not itself,
        falls_back=route.fallback is not None and not itself,
        answers_itself=itself,
    )


def _plain(name: str, *, external: bool) -> RouteFacts:
    """A route that nobody wrote: it is observed, and has no policy."""
    return RouteFacts(name, external, None, cached=False, falls_back=False, answers_itself=False)


def _upstream(policy: PolicyFile, bounds: Sequence[float]) -> UpstreamFacts:
    hosts = policy.hosts
    several = policy.upstream is None and len(hosts) > 1
    names = tuple(f"{policy.name}/{host}" for host in hosts) if several else (policy.name,)
    return UpstreamFacts(policy.name, names, near(_longest(policy.routes), bounds))


def _longest(routes: Iterable[Route]) -> float:
    """Seconds that an attempt may take on the most patient of the routes."""
    times = [route.attempt_timeout or route.deadline for route in routes if route.respond is None]
    bounded = [time for time in times if time is not None]
    return max(bounded, default=LONGEST_CALL / NEAR)
