"""The admin listener's pages about health, and the metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sidecar.admin.page import Page, json_page, problem_page
from sidecar.admin.route import Answer, Route, Schema, in_json, problem, showing, showing_late

if TYPE_CHECKING:
    from sidecar.telemetry.collector import Collector
    from sidecar.telemetry.health import Health

_STATUS: Final[Schema] = {"type": "string", "enum": ["healthy", "degraded", "unhealthy", "critical"]}
_CHECK: Final[Schema] = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": _STATUS,
        "required": {"type": "boolean", "description": "Whether the sidecar is unready while this fails."},
        "reason": {"type": "string"},
        "since": {"type": "string", "format": "date-time"},
        "latency_ms": {"type": "number"},
        "circuit_breaker": {"type": "string", "enum": ["closed", "half_open", "open"]},
        "mode": {"type": "string", "enum": ["shadow"], "description": "Of a breaker that refuses nothing."},
        "active": {"type": "array", "items": {"type": "string"}, "description": "Of injected faults: where."},
        "attempts": {"type": "integer", "description": "Of an upstream, in the last minute."},
        "failed": {"type": "integer", "description": "Of these, those that failed."},
        "free_bytes": {"type": "integer", "description": "Of a disk."},
        "used_percent": {"type": "number"},
        "lag_ms": {"type": "number"},
        "lag_max_ms": {"type": "number"},
    },
}
_LIVE: Final[Schema] = {"type": "object", "required": ["status"], "properties": {"status": _STATUS}}
_READINESS: Final[Schema] = {
    "type": "object",
    "required": ["status", "ready"],
    "properties": {"status": _STATUS, "ready": {"type": "boolean"}, "reason": {"type": "string"}},
}
_REPORT: Final[Schema] = {
    "type": "object",
    "required": ["status", "ready", "version", "uptime_seconds", "checks"],
    "properties": {
        "status": _STATUS,
        "ready": {"type": "boolean"},
        "reason": {"type": "string"},
        "version": {"type": "string"},
        "uptime_seconds": {"type": "number"},
        "checks": {"type": "object", "additionalProperties": _CHECK},
        "system": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
_NOT_SERVING: Final = "It is starting or draining."


class HealthPages:
    """How well the sidecar can serve."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def routes(self) -> Iterator[Route]:
        yield showing("/health", self._overall, "Is it serving, and how well?", _probe(_REPORT, _NOT_SERVING))
        yield showing("/health/live", self._live, "Does the process answer at all?", _probe(_LIVE))
        yield showing(
            "/health/ready",
            self._ready,
            "Should traffic come here?",
            _probe(_READINESS, "Not now; `reason` says why."),
        )
        yield showing(
            "/health/detailed", self._detailed, "Every check, with figures.", _probe(_REPORT, _NOT_SERVING)
        )

    def _overall(self, _: str) -> Page:
        # What is degraded or even unhealthy is for the body: 503 would have a sidecar restarted
        # because its app is down.
        return json_page(self._health.report(), 200 if self._health.serving else 503)

    def _detailed(self, _: str) -> Page:
        return json_page(self._health.report(detailed=True), 200 if self._health.serving else 503)

    def _live(self, _: str) -> Page:
        return json_page({"status": "healthy"})

    def _ready(self, _: str) -> Page:
        ready, reason = self._health.ready()
        if ready:
            return json_page({"status": self._health.status(), "ready": True})
        return json_page({"status": self._health.status(), "ready": False, "reason": reason}, 503)


class MetricsPages:
    """The exposition."""

    def __init__(self, collector: Collector, *, enabled: bool = True) -> None:
        self._collector = collector
        self._enabled = enabled

    def routes(self) -> Iterator[Route]:
        text: Schema = {"type": "string"}
        exposition = Answer("The exposition.", {"text/plain": text, "application/openmetrics-text": text})
        yield showing_late(
            "/metrics",
            self._metrics,
            "Metrics for Prometheus, in the format that Accept asks for.",
            {"200": exposition, "404": problem("Metrics are turned off.")},
        )

    async def _metrics(self, accept: str) -> Page:
        if not self._enabled:
            detail = "metrics are turned off, by metrics.enabled: false or the variable PROMETHEUS_ENABLED"
            return problem_page(404, "Not Found", detail)
        await self._collector.refresh()
        # Counts are read on the event loop, which changes them; thousands of lines are written beside it.
        exposition = await self._collector.gather(accept)
        return Page(200, exposition.content_type, await asyncio.to_thread(exposition.write))


def _probe(schema: Schema, no: str = "") -> dict[str, Answer]:
    answers = {"200": in_json("Yes.", schema)}
    if no:
        answers["503"] = in_json(no, schema)
    return answers
