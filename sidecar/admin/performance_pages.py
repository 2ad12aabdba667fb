"""The admin listener's page about the last minutes: what each route did, and how long it took."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from sidecar.admin.page import Page, json_page
from sidecar.admin.route import COUNT, Route, Schema, in_json, showing_late
from sidecar.decisions.buckets import histogram_quantile
from sidecar.telemetry.history import NO_ROUTE, STEP, RouteFigures, route_windows, window_starts

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.telemetry.health import Health
    from sidecar.telemetry.history import History, Reading
    from sidecar.telemetry.metrics import Metrics

_QUANTILES: Final = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
_FIGURE: Final[Schema] = {"type": ["number", "null"]}
_WINDOW: Final[Schema] = {
    "type": "object",
    "properties": {
        "seconds": {"type": "number", "description": "How long it is: shorter after a start."},
        "requests": COUNT,
        "rate": {"type": "number", "description": "Requests a second."},
        "errors": {**COUNT, "description": "Answers of 500 and above."},
        "error_percent": _FIGURE,
        "hit_ratio": {
            **_FIGURE,
            "description": "Of requests that the cache had a say in, those it answered.",
        },
        "fallbacks": {"type": "object", "additionalProperties": COUNT, "description": "By rung."},
        **{
            name: {**_FIGURE, "description": "Interpolated in the buckets of the metrics."}
            for name in _QUANTILES
        },
    },
}
_WINDOWS: Final[Schema] = {"type": "object", "additionalProperties": _WINDOW, "description": "By length."}
_REPORT: Final[Schema] = {
    "type": "object",
    "required": ["status", "step_seconds", "totals", "routes"],
    "properties": {
        "status": {"type": "string"},
        "step_seconds": {"type": "number", "description": "Windows begin so exactly."},
        "totals": {
            "type": "object",
            "additionalProperties": _WINDOWS,
            "description": "Of all routes of ingress (clients' requests) and egress (the app's calls).",
        },
        "routes": {"type": "object", "additionalProperties": _WINDOWS},
    },
}


class PerformancePages:
    """From readings that are taken anyway: a request costs nothing for it, nor the event loop."""

    def __init__(self, metrics: Metrics, history: History, health: Health, clock: Clock) -> None:
        self._metrics = metrics
        self._history = history
        self._health = health
        self._clock = clock

    def routes(self) -> Iterator[Route]:
        yield showing_late(
            "/monitoring/performance",
            self._show,
            "Rate, errors, percentiles, hit ratio and fallbacks of the last 1, 5 and 15 minutes, by route.",
            {"200": in_json("The figures.", _REPORT)},
        )

    async def _show(self, _: str) -> Page:
        reading = self._history.read(self._clock.now())
        starts = window_starts(self._history, reading)
        upstreams = self._metrics.upstreams
        planes = {
            name: "egress" if (it := upstreams.get(cells.upstream)) is not None and it.external else "ingress"
            for name, cells in self._metrics.routes.items()
        }
        status = self._health.status()
        return await asyncio.to_thread(_page, status, reading, starts, planes, self._metrics.bounds)


def _page(
    status: str,
    reading: Reading,
    starts: Mapping[str, Reading],
    planes: Mapping[str, str],
    bounds: tuple[float, ...],
) -> Page:
    routes: dict[str, object] = {}
    sums: dict[str, dict[str, tuple[RouteFigures, float]]] = {}
    for name, windows in route_windows(reading, starts):
        routes[name] = {f"{length}m": _window(*it, bounds) for length, it in windows.items()}
        of_plane = sums.setdefault(planes[name], {})
        for length, (figures, seconds) in windows.items():
            whole, _ = of_plane.get(length, (NO_ROUTE, seconds))
            of_plane[length] = (whole.plus(figures), seconds)
    totals = {
        plane: {f"{length}m": _window(*it, bounds) for length, it in windows.items()}
        for plane, windows in sums.items()
    }
    return json_page({"status": status, "step_seconds": STEP, "totals": totals, "routes": routes})


def _window(figures: RouteFigures, seconds: float, bounds: tuple[float, ...]) -> dict[str, object]:
    requests = figures.requests
    quantiles = {
        name: histogram_quantile(share, bounds, figures.buckets) for name, share in _QUANTILES.items()
    }
    return {
        "seconds": round(seconds, 3),
        "requests": requests,
        "rate": round(requests / seconds, 3),
        "errors": figures.errors,
        "error_percent": round(100.0 * figures.errors / requests, 3) if requests else None,
        **{name: None if value is None else round(value * 1000, 3) for name, value in quantiles.items()},
        "hit_ratio": round(figures.hits / figures.looked_up, 4) if figures.looked_up else None,
        "fallbacks": {**figures.fallbacks},
    }
