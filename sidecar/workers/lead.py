"""The first process, where workers serve: it binds the ports, and has all that there is once.

That is the admin listener, health, the history, reloads, batches and the child. What it shows is the sum of
the workers' reports; what an operator orders goes to each. Its own pipelines serve batches, and calls of the
child by the hosts override.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sidecar.admin.page import Page
from sidecar.admin.worker_pages import WorkerPages
from sidecar.app import App
from sidecar.config.workers import shared_out
from sidecar.decisions.breaker import State
from sidecar.decisions.rollout import together
from sidecar.egress_plane import addresses_of
from sidecar.process_setup import version_here
from sidecar.rollout import Split
from sidecar.telemetry.checks import CheckResult, Known
from sidecar.telemetry.metrics import Metrics
from sidecar.workers import ledger, sockets
from sidecar.workers.crew import Crew, Member
from sidecar.workers.hints import Hints
from sidecar.workers.ledger import Ledger
from sidecar.workers.orders import Part, Serve, Start
from sidecar.workers.overlaps import SharedOverlaps
from sidecar.workers.sums import retired, retired_families, total
from sidecar.workers.system import CrewSystem
from sidecar.workers.views import CrewCache, CrewCollector, CrewFaults

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from prometheus_client.core import Metric

    from sidecar.admin.cache_pages import CacheControl
    from sidecar.admin.fault_pages import FaultControl
    from sidecar.admin.route import Subject
    from sidecar.caching.cache import Caching
    from sidecar.clock import Clock
    from sidecar.config.load import Loaded, Source
    from sidecar.config.schema import Address
    from sidecar.data_plane import Serving
    from sidecar.generation import Compiled
    from sidecar.listeners.authority import Authority
    from sidecar.telemetry.checks import Check
    from sidecar.telemetry.collector import Collector
    from sidecar.workers.report import Report

PERIOD: Final = 1.0
"""Seconds between two reports of each worker: as old may be what is shown, but for `/metrics`."""


class Lead(App):
    """One per sidecar with workers."""

    def __init__(self, loaded: Loaded, clock: Clock, source: Source | None, count: int) -> None:
        """Raises `CannotStart`."""
        self.count = count
        self._slots = 2 * count + 2
        """Of the ledger: while all are replaced there are more than `count`; one is this process's."""
        self._ledger = ledger.make(self._slots)
        self._order = 1
        self._reading = asyncio.Lock()
        self._gone: Metrics | None = None
        """Counts of workers that are no more."""
        self._gone_rest: list[Metric] = []
        self._sockets: dict[str, list[list[socket.socket]]] = {}
        self._cache: CrewCache | None = None
        self._crew_watched = False
        self._reporting: asyncio.Task[None] | None = None
        self._rolling: asyncio.Task[int] | None = None
        self.hints = Hints(clock, self._tell)
        self.crew = Crew(
            count,
            clock,
            # A file is rotated by one process alone; to the rest each writes in its turn.
            sink=None if loaded.log_file is None else lambda: self.sink,
            start=self._start_of,
            handlers=self._handlers,
            on_gone=self._retire_report,
            fds=self._inherited_fds,
        )
        overlaps = SharedOverlaps(clock, Ledger(self._ledger, self._slots, 0), self._tell)
        super().__init__(loaded, clock, source, overlaps=overlaps, hints=self.hints)
        self.hints.of(self)
        if loaded.log_file is None:
            self.sink.turn = partial(ledger.turn, self._ledger)
        self.services.state.faults.on_order = self._send_faults
        self.health.add_all(self._checks)
        self._sum_up()

    # -- what is shown -------------------------------------------------------------------------

    def _figures(self) -> Metrics:
        return Metrics(self.metrics.namespace, self.metrics.bounds)

    def _system(self) -> CrewSystem:
        return CrewSystem(self.clock, lambda: [it.pid for it in self.crew.members if it.pid])

    def _collector(self) -> Collector:
        collector = CrewCollector(
            self.figures,
            clock=self.clock,
            system=self.system,
            access_log=self.access_log,
            version=version_here(),
        )
        collector.refreshing = self.refresh
        collector.others = self._rests
        collector.crew = self.crew
        return collector

    def _reports(self) -> list[Report]:
        return [it.report for it in self.crew.members if it.report is not None]

    def _rests(self) -> Sequence[Sequence[Metric]]:
        return [*(it.rest for it in self._reports()), self._gone_rest]

    async def refresh(self) -> None:
        """Takes a report of each worker, and adds them up."""
        async with self._reading:
            watched = self.dashboard.recent.watched
            if watched != self._crew_watched:
                self._crew_watched = watched
                self._cast("watch", watched)
            await self.crew.take_reports()
            self._take_in()
            self._sum_up()

    def _take_in(self) -> None:
        """What a report tells once."""
        for report in self._reports():
            records, report.records = report.records, ()
            for record, epoch in records:
                self.dashboard.recent.take([record], epoch)
        current = self.current
        if isinstance(current, Split):
            trials = [it.trial for it in self._reports() if it.trial and it.trial[0] == current.new.number]
            if trials:
                current.trial.old = together([old for _, old, _ in trials])
                current.trial.new = together([new for _, _, new in trials])

    def _sum_up(self) -> None:
        parts = [self.metrics, *(it.metrics for it in self._reports())]
        total(self.figures, parts, self._gone, self.clock.now())

    def _retire_report(self, member: Member) -> None:
        report = member.report
        if report is not None:
            self._take_in()
            self._gone = retired(self._gone, report.metrics)
            self._gone_rest = retired_families(self.metrics.namespace, self._gone_rest, report.rest)
            member.report = None
            self._sum_up()

    async def _report(self) -> None:
        while True:
            await self.clock.sleep(PERIOD)
            try:
                await self.refresh()
            except Exception:
                # What is shown must not stand still for good; nobody waits for this task.
                self.log.exception("the workers' reports were not added up")

    def _checks(self) -> Iterator[Check]:
        """What health says of the workers."""
        serving = self.crew.serving
        behind = [it for it in serving if it.trouble]
        facts: dict[str, object] = {"serving": len(serving), "of": self.count}
        if not serving:
            result = CheckResult("unhealthy", "no worker serves", facts=facts)
        elif len({it.index for it in serving}) < self.count:
            result = CheckResult("degraded", f"{len(serving)} of {self.count} serve", facts=facts)
        elif behind:
            why = f"worker {behind[0].index + 1} serves an older generation: {behind[0].trouble}"
            result = CheckResult("degraded", why, facts=facts)
        else:
            result = CheckResult("healthy", facts=facts)
        yield Known("workers", result, required=not serving)

    def _told(self) -> dict[str, object]:
        now = self.clock.now()
        return {
            "workers": [self._told_of(it, now) for it in sorted(self.crew.members, key=lambda it: it.index)],
            "rolling": self.crew.rolling,
            "restarts": dict(self.crew.restarts),
        }

    def _told_of(self, member: Member, now: float) -> dict[str, Any]:
        row: dict[str, Any] = {
            "worker": member.index + 1,
            "pid": member.pid,
            "status": member.status,
            "up_seconds": round(now - member.since, 3),
        }
        report = member.report
        if report is not None:
            routes = report.metrics.routes.values()
            row |= {
                "connections": report.connections,
                "requests": sum(count for route in routes for (count,) in route.requests.values()),
                "lag_max_ms": round(report.lag * 1000, 3),
                "generation": report.generation,
            }
        if member.trouble:
            row["trouble"] = member.trouble
        return row

    # -- what is ordered -----------------------------------------------------------------------

    def compile(self, loaded: Loaded, number: int, suffix: str = "") -> Compiled:
        compiled = super().compile(shared_out(loaded, self.count, self.count), number, suffix)
        return replace(compiled, loaded=loaded)

    def _caching(self, loaded: Loaded) -> Caching:
        return super()._caching(shared_out(loaded, self.count, self.count))

    def serve(self, serving: Serving) -> None:
        super().serve(serving)
        self._order += 1
        self.crew.order(self._serve_order())

    async def adopt(self, before: Loaded, loaded: Loaded, authority: Authority | None) -> None:
        await super().adopt(before, loaded, authority)
        await self.crew.settled(self._order)

    def _serve_order(self) -> Serve:
        parts = [Part(it.loaded, it.number, it.since) for it in self.current.parts]
        return Serve(self._order, parts, self.flags.all_switched)

    def _start_of(self, member: Member) -> Start:
        now = self.clock.now()
        open_now = [
            (name, State.OPEN, now + cells.breaker.retry_after(now), cells.breaker.open_for)
            for name, cells in self.metrics.breakers.items()
            if cells.breaker.state(now) is State.OPEN
        ]
        return Start(
            index=member.index,
            count=self.count,
            slot=member.slot,
            slots=self._slots,
            ledger=self._ledger,
            sockets={address: sockets.numbers(workers) for address, workers in self._sockets.items()},
            serve=self._serve_order(),
            faults=self.services.state.faults.in_force(),
            forced=self.breakers.forced(),
            seen=tuple(self.services.overlaps.seen),
            breakers=open_now,
            kept=dict(self.services.overlaps.kept),
            held=[
                (name, until)
                for name, turns in self.services.state.paced()
                if (until := turns.pacer.hold.until) is not None
            ],
        )

    def _cast(self, name: str, *values: object) -> None:
        for channel in self.crew.others():
            channel.cast(name, *values)

    def _tell(self, name: str, *values: object) -> None:
        for channel in self.crew.others():
            channel.hint(name, *values)

    def _send_faults(self) -> None:
        self._cast("faults", self.services.state.faults.in_force())

    def _forced(self, name: str, state: State, until: float, now: float) -> None:
        cells = self.metrics.breakers.get(name)
        if cells is not None:
            cells.look()
            cells.breaker.force(state, until, now)
            cells.look()
        self._cast("force", name, state, until, now)

    def _cache_control(self) -> CacheControl | None:
        if not self.caching.in_use:
            return None
        if self._cache is None:
            self._cache = CrewCache(
                self.cache_control, self.crew, self._reports, shared=self._shared is not None
            )
        return self._cache

    def _fault_control(self) -> FaultControl:
        return CrewFaults(self.services.state.faults, self._reports)

    def _warm(self) -> None:
        if self._shared is not None:  # else each worker has warmed its own
            super()._warm()

    def _subjects(self) -> Iterator[Subject]:
        yield from super()._subjects()
        yield WorkerPages(self._told, self.restart)

    def restart(self) -> bool:
        """Begins to replace all workers; False where that is under way."""
        if self._rolling is not None and not self._rolling.done():
            return False
        self._rolling = asyncio.get_running_loop().create_task(self.crew.roll(), name="rolling restart")
        return True

    def restart_workers(self) -> None:
        self.log.info("workers are restarted", begun=self.restart())

    def _handlers(self, member: Member) -> dict[str, Callable[..., Any]]:
        """What a worker may ask, and what it tells: the others hear it too."""

        def relayed(name: str, hear: Callable[..., Any]) -> Callable[..., None]:
            def relay(*values: object) -> None:
                for channel in self.crew.others(member):
                    channel.hint(name, *values)
                hear(*values)

            return relay

        heard = {name: relayed(name, hear) for name, hear in self.hints.handlers().items()}
        return {**heard, "page": self._page}

    async def _page(self, path: str, accept: str) -> Page | None:
        pages = self._pages()
        return None if pages is None else await pages.get(path, accept)

    # -- life ----------------------------------------------------------------------------------

    def _inherited_fds(self) -> list[int]:
        found = {sock.fileno() for workers in self._sockets.values() for mine in workers for sock in mine}
        return [self._ledger, *sorted(found)]

    async def listen(self) -> Address:
        listen = self.config.listen
        ingress, self._sockets[str(listen.ingress)] = sockets.bind(
            "listen.ingress", listen.ingress, self.count
        )
        for key, addresses in addresses_of(self._loaded):
            bound = []
            for address in addresses:
                real, self._sockets[str(address)] = sockets.bind(key, address, self.count)
                bound.append(real)
            self.egress.listen_at(key, bound)
        self.connect()
        self.hints.start()
        await self.crew.start()
        self._reporting = asyncio.get_running_loop().create_task(self._report(), name="reports")
        return ingress

    async def drain_clients(self, linger: float = 0.0) -> int:
        self.crew.close_to_newcomers()
        cut, _ = await asyncio.gather(super().drain_clients(linger), self.crew.drain())
        return cut

    async def drain_egress(self) -> None:
        await asyncio.gather(super().drain_egress(), self.crew.drain_egress())

    async def stop(self) -> None:
        if self._reporting is not None:
            self._reporting.cancel()
        await self.crew.close()
        if self._rolling is not None:
            self._rolling.cancel()
        await self.hints.close()
        for workers in self._sockets.values():
            for mine in workers:
                for sock in mine:
                    sock.close()
        await super().stop()
