"""What the admin listener says on each path, as values: any listener can serve them.

A GET of any of these changes nothing; what acts is in `cache_pages` and `fault_pages`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson

from sidecar.admin.cache_pages import STATS, CacheControl, CachePages
from sidecar.admin.fault_pages import FAULTS, FaultControl, FaultPages
from sidecar.admin.openapi import describe
from sidecar.admin.page import JSON, Page, json_page

if TYPE_CHECKING:
    from sidecar.telemetry.collector import Collector
    from sidecar.telemetry.health import Health


class Pages:
    """The pages of one process, by path."""

    def __init__(
        self,
        health: Health,
        collector: Collector,
        *,
        version: str,
        cache: CacheControl | None = None,
        faults: FaultControl | None = None,
        production: bool = False,
    ) -> None:
        self.cache = CachePages(cache)
        self.faults = FaultPages(faults, production=production)
        self._health = health
        self._collector = collector
        self._openapi = orjson.dumps(describe(version))
        self._by_path: dict[str, Callable[[str], Page]] = {
            "/health": self._overall,
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/health/detailed": self._detailed,
            "/metrics": self._metrics,
            STATS: self._cache_stats,
            FAULTS: self._faults,
            "/openapi.json": self._describe,
        }

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self._by_path)

    def get(self, path: str, accept: str = "") -> Page | None:
        """The page at `path`, in the format that `Accept` asks for; None where there is none."""
        page = self._by_path.get(path)
        return None if page is None else page(accept)

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

    def _metrics(self, accept: str) -> Page:
        body, content_type = self._collector.render(accept)
        return Page(200, content_type, body)

    def _cache_stats(self, _: str) -> Page:
        return self.cache.stats()

    def _faults(self, _: str) -> Page:
        return self.faults.list()

    def _describe(self, _: str) -> Page:
        return Page(200, JSON, self._openapi)
