"""What came in between two readings of the metrics."""

from __future__ import annotations

from sidecar.telemetry.history import STEP, History, RouteFigures, route_windows, window_starts
from sidecar.telemetry.metrics import Metrics


def minute(history: History, now: float) -> tuple[RouteFigures, float]:
    reading = history.read(now)
    [(_, windows)] = route_windows(reading, window_starts(history, reading))
    return windows["1"]


def test_a_window_counts_what_came_in_it() -> None:
    """Requests, errors, refusals, hits and rungs, with the seconds that there really were."""
    metrics = Metrics()
    route = metrics.route("matching", "app")
    history = History(metrics, 0.0)
    for status in (200, 200, 404, 503, 799):
        route.record("GET", status, 0.02)
    for outcome in ("hit", "miss", "stale"):
        route.cached(outcome)
    route.fell_back("respond")
    route.would_reject("rate_limit")
    figures, seconds = minute(history, 10.0)
    assert (figures.requests, figures.errors, figures.refused) == (5, 2, 1)
    assert (figures.hits, figures.looked_up) == (2, 3)
    assert (figures.fallbacks, figures.shadow) == ({"respond": 1}, {"rate_limit": 1})
    assert seconds == 10.0
    for step in range(1, 60):
        history.keep(step * STEP)
    figures, seconds = minute(history, 60 * STEP)
    assert (figures.requests, figures.errors, dict(figures.fallbacks)) == (0, 0, {})
    assert seconds == 60.0
    route.record("GET", 200, 0.02)
    assert minute(history, 60 * STEP)[0].requests == 1


def test_a_sparkline_has_the_counts_of_each_step() -> None:
    """The last ones, with the errors among them."""
    metrics = Metrics()
    route = metrics.route("matching", "app")
    history = History(metrics, 0.0)
    for step in range(1, 4):
        for _ in range(step):
            route.record("GET", 500 if step == 2 else 200, 0.02)
        history.keep(step * STEP)
    assert history.sparks() == {"matching": ([1, 2, 3], [0, 2, 0])}


def test_what_is_kept_is_bounded() -> None:
    """A quarter of an hour, and routes without traffic cost nothing more."""
    metrics = Metrics()
    metrics.route("matching", "app")
    history = History(metrics, 0.0)
    for step in range(1, 1000):
        history.keep(step * STEP)
    assert len(history._kept) == 181
    assert len({id(reading.routes["matching"]) for reading in history._kept}) == 1
