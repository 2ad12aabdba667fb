"""What `/metrics` says of routes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import Metric

from sidecar.telemetry.families import Families, by_reason
from sidecar.telemetry.metrics import Metrics


def route_families(make: Families, metrics: Metrics) -> Iterator[Metric]:
    routes = metrics.routes
    yield make.counter(
        "api_requests",
        "Requests answered, by route, method and status; 499 is a client that left before its answer.",
        ("route", "method", "status"),
        (
            ((name, method, _status(status)), cell[0])
            for name, cells in routes.items()
            for (method, status), cell in cells.requests.items()
        ),
    )
    yield make.histogram(
        "api_request_duration_seconds",
        "Time from the request's head to the end of its response; upgraded connections are left out.",
        ("route",),
        (((name,), cells.durations) for name, cells in routes.items()),
    )
    yield make.counter(
        "api_errors",
        "Answers the sidecar gave itself because of an error, by route and Sidecar-Error code.",
        ("route", "code"),
        by_reason((name, cells.errors) for name, cells in routes.items()),
    )
    yield make.counter(
        "retries",
        "Attempts that were repeated, by route and by what was wrong with the one before.",
        ("route", "reason"),
        by_reason((name, cells.retries) for name, cells in routes.items()),
    )
    yield make.counter(
        "retries_skipped",
        "Failed attempts that the retry policy did not repeat, by route and by what forbade it.",
        ("route", "reason"),
        by_reason((name, cells.retries_skipped) for name, cells in routes.items()),
    )
    yield make.counter(
        "hedges",
        "Attempts sent beside a slow one, by route and outcome: won, lost (it came too late) or failed.",
        ("route", "outcome"),
        by_reason((name, cells.hedges) for name, cells in routes.items()),
    )
    yield make.counter(
        "cache_operations",
        "Requests of routes with a cache, by route and by what the cache did.",
        ("route", "outcome"),
        by_reason((name, cells.cache) for name, cells in routes.items()),
    )
    yield make.gauge(
        "cache_hit_rate",
        "Share of those requests that were answered from the cache, since the start.",
        ("route",),
        (((name,), hit_rate(cells.cache)) for name, cells in routes.items() if cells.cache),
    )
    yield make.counter(
        "fallbacks",
        "Requests without a good answer, by route and by what was answered instead.",
        ("route", "rung"),
        by_reason((name, cells.fallbacks) for name, cells in routes.items()),
    )
    for name, text, attribute in (
        (
            "circuit_breaker_rejections",
            "Attempts refused by an open circuit breaker.",
            "breaker_rejections",
        ),
        (
            "concurrency_limit_rejections",
            "Attempts refused because the limit was full.",
            "limit_rejections",
        ),
        (
            "rate_limit_rejections",
            "Requests refused because their client sends too many.",
            "rate_rejections",
        ),
        (
            "rate_limit_unshared",
            "Requests whose shared rate limit could not be asked: what `failure` says was done.",
            "rate_unshared",
        ),
        (
            "responses_aborted",
            "Responses cut off because the body broke after its head went out.",
            "aborts",
        ),
        ("clients_gone", "Requests whose client left before the answer was complete.", "clients_gone"),
    ):
        yield make.counter(
            name,
            text,
            ("route",),
            [((route,), getattr(cells, attribute)) for route, cells in routes.items()],
        )
    yield make.counter(
        "degraded",
        "Answers of the app that were made without an upstream they need, by route and upstream.",
        ("route", "upstream"),
        by_reason((name, cells.degradations) for name, cells in routes.items()),
    )
    yield make.counter(
        "pace_rejections",
        "Attempts refused for want of quota, by route and reason: no turn within the patience or the "
        "deadline; held while it is used up.",
        ("route", "reason"),
        by_reason((name, cells.pace_rejections) for name, cells in routes.items()),
    )
    yield make.counter(
        "shadow_rejections",
        "What policies in shadow mode would have refused, by route and layer.",
        ("route", "layer"),
        by_reason((name, cells.shadow_rejections) for name, cells in routes.items()),
    )
    yield make.counter(
        "faults_injected",
        "Attempts that an injected fault hit, by route and by what it did.",
        ("route", "kind"),
        by_reason((name, cells.faults_injected) for name, cells in routes.items()),
    )
    yield make.gauge(
        "route_info",
        "1 for each route, with the upstream that serves it.",
        ("route", "upstream"),
        (((name, cells.upstream), 1) for name, cells in routes.items()),
    )


def _status(status: int) -> str:
    """A class (0 to 5, see `RouteCells.record`) still matches the usual `status=~"5.."`."""
    if status >= 100:
        return str(status)
    return f"{status}xx" if status else "other"


def hit_rate(outcomes: Mapping[str, int]) -> float:
    """Revalidated answers count: their body did not come from the origin."""
    served = sum(outcomes.get(outcome, 0) for outcome in ("hit", "stale", "updating", "revalidated"))
    return served / sum(outcomes.values())
