"""The dashboard: a page at `/`, and the server-sent events that keep it live.

One sampler makes one frame a second for all who watch, and runs only while somebody does. Who does not keep
up misses frames, never holds others up, and is let go after a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from sidecar.admin.page import Page, problem_page
from sidecar.admin.recent import Recent
from sidecar.admin.route import EVENTS, TEXT, Answer, Route, problem
from sidecar.admin.stream import HEADERS, events
from sidecar.admin.troubles import troubles
from sidecar.decisions.buckets import histogram_quantile
from sidecar.telemetry.history import (
    FAILED,
    LIMITED,
    STEP,
    WINDOWS,
    RouteFigures,
    UpstreamFigures,
    route_windows,
    window_starts,
)
from sidecar.telemetry.log import get_logger
from sidecar.telemetry.stamp import Stamp

if TYPE_CHECKING:
    from sidecar.admin.breaker_pages import Breakers
    from sidecar.admin.config_pages import InForce
    from sidecar.clock import Clock
    from sidecar.telemetry.access_log import AccessLog
    from sidecar.telemetry.health import Health
    from sidecar.telemetry.history import History, Reading
    from sidecar.telemetry.metrics import Metrics

LIVE: Final = "/admin/events"
MOST_VIEWERS: Final = 16
PERIOD: Final = 1.0
"""Seconds between two frames."""
PATIENCE: Final = 20.0
"""Seconds that a viewer may take for a frame."""

_FILES: Final = Path(__file__).with_name("dashboard")
_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
PAGE_HEADERS: Final = {
    **HEADERS,
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""CSP 3: nothing but what this listener serves, nothing inline, no frame around it."""


class Dashboard:
    """What the page shows of one process, and to whom."""

    def __init__(
        self,
        clock: Clock,
        *,
        metrics: Metrics,
        history: History,
        health: Health,
        breakers: Breakers,
        access_log: AccessLog,
        current: Callable[[], InForce],
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._health = health
        self._breakers = breakers
        self._current = current
        self._stamp = Stamp()
        self._log = get_logger("sidecar.admin")
        self._history = history
        self.recent = Recent(access_log)
        self.viewers = 0
        self._frame = b""
        self._made = asyncio.Event()
        """Set when there is a newer frame than those who wait have had; each frame has its own."""
        self._sampler: asyncio.Task[None] | None = None

    async def close(self) -> None:
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.cancel()
            await asyncio.gather(sampler, return_exceptions=True)

    # -- the page --------------------------------------------------------------------------------

    def routes(self) -> Iterator[Route]:
        for file in sorted(_FILES.iterdir()):
            if file.suffix in _KINDS:
                path = "/" if file.name == "index.html" else f"/dashboard/{file.name}"
                kind = _KINDS[file.suffix]
                yield Route(
                    method="GET",
                    path=path,
                    handler=_serving(file.read_bytes(), kind),
                    summary="The dashboard." if path == "/" else "A part of the dashboard.",
                    answers={"200": Answer("The file.", {kind.partition(";")[0]: TEXT})},
                )
        yield Route(
            method="GET",
            path=LIVE,
            handler=self._live,
            summary="What the dashboard shows, as server-sent events: `state` each second, and `decisions`.",
            answers={
                "200": Answer("Events without end.", {EVENTS: TEXT}),
                "503": problem("Too many are watching."),
            },
        )

    async def _live(self, request: web.Request) -> Page | web.StreamResponse:
        if self.viewers >= MOST_VIEWERS:
            detail = f"{MOST_VIEWERS} are watching, which is all there may be (close one)"
            return problem_page(503, "Service Unavailable", detail)
        self.viewers += 1
        try:
            async with events(request) as (response, stream):
                seen = -1
                async for frame in self._frames():
                    number = self.recent.count
                    decisions = b"event: decisions\ndata: " + self.recent.since(seen) + b"\n\n"
                    late = self._clock.arm(self._clock.now() + PATIENCE, lambda: _drop(request))
                    await stream.send_raw(frame + decisions if number > seen else frame)
                    late.cancel()
                    seen = number
            return response
        finally:
            self.viewers -= 1
            if not self.viewers and self._sampler is not None:
                self._sampler.cancel()
                self._sampler = None
                self.recent.watched = False

    async def _frames(self) -> AsyncIterator[bytes]:
        """The frame of now, and each newer one that is there when it is asked for."""
        if self._sampler is None:
            self.recent.watched = True
            self._sample()
            self._sampler = asyncio.get_running_loop().create_task(self._run(), name="dashboard sampler")
        while True:
            made = self._made
            yield self._frame
            await made.wait()

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(PERIOD)
            try:
                self._sample()
            except Exception:  # noqa: BLE001 - one bad figure must not leave all who watch without any
                self._log.exception("the dashboard's figures could not be read")

    def _sample(self) -> None:
        self._frame = b"event: state\ndata: " + orjson.dumps(self.state()) + b"\n\n"
        self._made.set()
        self._made = asyncio.Event()

    # -- what is shown ---------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """All figures of now, as plain values."""
        now = self._clock.now()
        reading = self._history.read(now)
        routes, minute = self._routes(reading)
        upstreams = self._upstreams(reading)
        breakers = self._breakers.listed()
        health = self._health.report(detailed=True)
        found = troubles(health, minute, breakers, upstreams)
        current = self._current()
        return {
            "at": self._stamp(self._clock.wall()),
            "period": PERIOD,
            "status": health["status"],
            "ready": health["ready"],
            "version": health["version"],
            "uptime_seconds": health["uptime_seconds"],
            "environment": current.loaded.config.environment,
            "configuration": {
                "generation": current.generation,
                "loaded_at": self._stamp(current.since),
                "warnings": len(current.loaded.warnings),
            },
            "troubles": [{"level": it.level, "text": it.text} for it in found],
            "checks": health["checks"],
            "system": health["system"],
            "routes": routes,
            "step": STEP,
            "breakers": breakers,
            "upstreams": upstreams,
            "viewers": self.viewers,
            "decisions": self.recent.enabled,
            "acting_takes_token": current.loaded.config.admin.token is not None,
        }

    def _routes(self, reading: Reading) -> tuple[list[dict[str, object]], list[dict[str, Any]]]:
        """Each route with its windows; and the last minute alone, for what is wrong."""
        sparks = self._history.sparks()
        shown: list[dict[str, object]] = []
        minute: list[dict[str, Any]] = []
        for name, windows in route_windows(reading, window_starts(self._history, reading)):
            cells = self._metrics.routes[name]
            upstream = self._metrics.upstreams.get(cells.upstream)
            requests, errors = sparks.get(name, ([], []))
            shown.append(
                {
                    "route": name,
                    "upstream": cells.upstream,
                    "plane": "egress" if upstream is not None and upstream.external else "ingress",
                    "windows": {
                        window: _window(*it, cells.durations.bounds) for window, it in windows.items()
                    },
                    "requests": requests,
                    "errors": errors,
                }
            )
            last = windows["1"][0]
            minute.append(
                {
                    "route": name,
                    "requests": last.requests,
                    "errors": last.errors,
                    "fallbacks": last.fallbacks,
                    "degraded": last.degraded,
                }
            )
        return shown, minute

    def _upstreams(self, reading: Reading) -> list[dict[str, Any]]:
        """The upstreams that the app calls, in the last minute."""
        start = self._history.before(WINDOWS["1"], reading.at)
        seconds = max(reading.at - start.at, 1.0)
        shown = []
        for name, cells in self._metrics.upstreams.items():
            if not cells.external:
                continue
            last = reading.upstreams[name].since(start.upstreams.get(name, UpstreamFigures()))
            calls = sum(last.verdicts.values())
            pace = self._metrics.paces.get(name)
            pacer = None if pace is None else pace.pacer
            shown.append(
                {
                    "upstream": name,
                    "calls": calls,
                    "rate": calls / seconds,
                    "failed": last.verdicts.get(FAILED, 0),
                    "limited": sum(last.verdicts.get(verdict, 0) for verdict in LIMITED),
                    "verdicts": {**last.verdicts},
                    "p95_ms": _milliseconds(histogram_quantile(0.95, self._metrics.bounds, last.buckets)),
                    "quota_left": None if pacer is None else pacer.remaining(reading.at),
                    "pace": None if pacer is None else pacer.pace(reading.at),
                    "held_seconds": None if pacer is None else pacer.held_for(reading.at),
                }
            )
        return shown


def _window(figures: RouteFigures, seconds: float, bounds: tuple[float, ...]) -> dict[str, object]:
    return {
        "seconds": seconds,
        "requests": figures.requests,
        "errors": figures.errors,
        "refused": figures.refused,
        "hits": figures.hits,
        "looked_up": figures.looked_up,
        "degraded": figures.degraded,
        "fallbacks": {**figures.fallbacks},
        "shadow": {**figures.shadow},
        "p50_ms": _milliseconds(histogram_quantile(0.5, bounds, figures.buckets)),
        "p95_ms": _milliseconds(histogram_quantile(0.95, bounds, figures.buckets)),
        "p99_ms": _milliseconds(histogram_quantile(0.99, bounds, figures.buckets)),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _serving(body: bytes, kind: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def serve(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={**PAGE_HEADERS, "Content-Type": kind})

    return serve


def _drop(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
