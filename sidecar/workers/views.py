"""The admin listener's views of all workers: what is shown is their sum, what is ordered reaches each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from sidecar.telemetry.collector import Collector
from sidecar.telemetry.families import Families
from sidecar.workers.sums import cache_stats, merged

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from sidecar.caching.control import Control
    from sidecar.config.fault_policy import Fault
    from sidecar.faults import Faults
    from sidecar.workers.crew import Crew
    from sidecar.workers.report import Report

PURGE_PATIENCE: Final = 10.0
"""Seconds that a worker may take to purge."""

Reports = Callable[[], Sequence["Report"]]


class CrewCollector(Collector):
    """The cells are those of all already; the rest is added here."""

    refreshing: Callable[[], Awaitable[None]]
    others: Callable[[], Sequence[Sequence[Metric]]]
    crew: Crew

    async def refresh(self) -> None:
        await self.refreshing()

    def collect(self, families: Families | None = None) -> Iterator[Metric]:
        make = families if families is not None else self._families
        yield from self._of_cells(make)
        yield from merged(make.namespace, self.rest(), self.others())
        yield self._what_runs(make)
        crew = self.crew
        members = crew.members
        yield make.gauge(
            "workers",
            "Processes that serve on the same ports, by what they do.",
            ("status",),
            [
                ((status,), sum(it.status == status for it in members))
                for status in ("starting", "serving", "draining")
            ],
        )
        yield make.counter(
            "worker_restarts",
            "Workers that were started in the place of others: that had died, or on request.",
            ("reason",),
            [((reason,), count) for reason, count in crew.restarts.items()],
        )


class CrewCache:
    """The cache of all workers."""

    def __init__(self, control: Control, crew: Crew, reports: Reports, *, shared: bool) -> None:
        """`shared`: there is a Redis that all have in common."""
        self._control = control
        self._crew = crew
        self._reports = reports
        self._shared = shared

    def stats(self) -> dict[str, object]:
        others = [report.cache for report in self._reports() if report.cache]
        return cache_stats([self._control.stats(), *others])

    async def purge(self, **selector: str | None) -> int:
        """How many answers there were; one that several have in memory counts as often, but in a Redis."""
        named = {name: value for name, value in selector.items() if value is not None}
        # Before this process: by a hint they would hear of it first, and have nothing to count.
        counts: list[int] = await self._crew.ask_all("purge", named, within=PURGE_PATIENCE)
        own = await self._control.purge(**named)
        return max([own, *counts]) if self._shared else own + sum(counts)

    def warm(self, urls: Sequence[str], route: str | None = None) -> int:
        """Where all share a Redis one fetches for all; else each for itself."""
        count = self._control.warm(urls, route)
        if not self._shared:
            for channel in self._crew.others():
                channel.cast("warm", list(urls), route)
        return count


class CrewFaults:
    """The faults in force in all workers; they are sent whenever an order changes them."""

    def __init__(self, faults: Faults, reports: Reports) -> None:
        self._faults = faults
        self._reports = reports

    def listed(self) -> list[dict[str, object]]:
        rows = self._faults.listed()
        reported = [row for report in self._reports() for row in report.faults]
        for row in rows:
            place = _place(row)
            same = [it for it in reported if _place(it) == place]
            for figure in ("attempts", "injected"):
                row[figure] = sum([int(str(it[figure])) for it in (row, *same)])
        return rows

    def set(self, kind: Literal["route", "upstream"], name: str, settings: Fault) -> None:
        self._faults.set(kind, name, settings)

    def clear(self, kind: Literal["route", "upstream"] | None = None, name: str = "") -> int:
        return self._faults.clear(kind, name)


def _place(row: Any) -> tuple[object, object]:
    return row.get("route"), row.get("upstream")
