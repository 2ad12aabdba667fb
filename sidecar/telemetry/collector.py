"""What `/metrics` says: the cells read into metric families, in the format that the scraper asks for."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector as CollectorBase

from sidecar.telemetry.families import Families, Source
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.policy_families import pace_families, policy_families
from sidecar.telemetry.process_families import listener_families, process_families
from sidecar.telemetry.route_families import route_families
from sidecar.telemetry.upstream_families import dns_families, upstream_families

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.telemetry.access_log import AccessLog
    from sidecar.telemetry.system import System

_OF_CELLS: tuple[Callable[[Families, Metrics], Iterator[Metric]], ...] = (
    route_families,
    upstream_families,
    dns_families,
    policy_families,
    pace_families,
    listener_families,
)


SLICE: Final = 0.002
"""Seconds that reading may keep the event loop at a time, as far as one family takes no longer."""


class _Collected(CollectorBase):
    """Families that were collected already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class Exposition:
    """What one scrape found, not yet written: writing it needs nothing of the event loop."""

    def __init__(self, families: list[Metric], accept: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collected(families))
        try:
            self._encode, self.content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            self._encode, self.content_type = choose_encoder("")

    def write(self) -> bytes:
        return self._encode(self._registry)


class Collector:
    """Reads the cells of one process at each scrape, and whatever else was added."""

    def __init__(
        self, metrics: Metrics, *, clock: Clock, system: System, access_log: AccessLog, version: str
    ) -> None:
        self._metrics = metrics
        self._system = system
        self._access_log = access_log
        self._build = {"version": version, "python": platform.python_version()}
        self._families = Families(metrics.namespace, clock)
        self._sources: list[Source] = []

    def add(self, source: Source) -> None:
        """Shows what `source` has, from now on. No two sources may give families of the same name."""
        self._sources.append(source)

    async def gather(self, accept: str = "") -> Exposition:
        """All figures of now: OpenMetrics where `Accept` asks for it, else text. On the event loop.

        It gives way to others after each `SLICE`, as hundreds of routes take a while: a family is of one
        moment, two of them need not be of the same.
        """
        clock = self._families.clock
        families = []
        until = clock.now() + SLICE
        for family in self.collect():
            families.append(family)
            if clock.now() >= until:
                await clock.sleep(0)
                until = clock.now() + SLICE
        return Exposition(families, accept)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type, at one go."""
        exposition = Exposition(list(self.collect()), accept)
        return exposition.write(), exposition.content_type

    async def refresh(self) -> None:
        """Awaited before a scrape: where figures come from other processes too, they are fetched."""

    def collect(self, families: Families | None = None) -> Iterator[Metric]:
        """Every family, made by `families` if they are given."""
        make = families if families is not None else self._families
        yield from self._of_cells(make)
        yield from self._own(make)
        yield self._what_runs(make)
        for source in self._sources:
            yield from source(make)

    def rest(self) -> Iterator[Metric]:
        """What comes from no cell: the process, the log, and what was added."""
        yield from self._own(self._families)
        for source in self._sources:
            yield from source(self._families)

    def _of_cells(self, make: Families) -> Iterator[Metric]:
        for of_cells in _OF_CELLS:
            yield from of_cells(make, self._metrics)

    def _what_runs(self, make: Families) -> Metric:
        return make.info("build", "What is running.", self._build)

    def _own(self, make: Families) -> Iterator[Metric]:
        yield from process_families(make, self._system)
        yield make.counter(
            "access_log_lines_dropped",
            "Lines of the access log that could not be written.",
            (),
            [((), self._access_log.dropped)],
        )
        yield make.counter(
            "access_log_lines_left_out",
            "Requests that went well and are not logged, as `logging.sample` wants it.",
            (),
            [((), self._access_log.left_out)],
        )
