"""One worker: a data plane that accepts from inherited sockets, and does what the lead says."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sidecar.admin.recent import Recent
from sidecar.caching.control import Control
from sidecar.config.workers import shared_out
from sidecar.data_plane import DataPlane
from sidecar.listeners.binding import CannotStart
from sidecar.process_setup import tune_collector, version_here
from sidecar.reload import prepare
from sidecar.rollout import Split
from sidecar.telemetry.cache_families import cache_source, redis_source
from sidecar.telemetry.collector import Collector
from sidecar.telemetry.sink import standard_output
from sidecar.telemetry.system import System
from sidecar.telemetry.trace_families import trace_source
from sidecar.workers.channel import Channel, Lost, Refused
from sidecar.workers.hints import Hints
from sidecar.workers.ledger import Ledger, turn
from sidecar.workers.orders import Part, Serve, Start
from sidecar.workers.overlaps import SharedOverlaps
from sidecar.workers.report import Report, still

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.admin.page import Page
    from sidecar.admin.pages import Showing
    from sidecar.clock import Clock
    from sidecar.config.load import Loaded
    from sidecar.decisions.breaker import State
    from sidecar.generation import Compiled
    from sidecar.telemetry.sink import Sink

PAGE_PATIENCE: Final = 5.0
"""Seconds that the lead may take for a page that `expose` names."""
LINGER: Final = 5.0
"""Seconds that an idle connection of a client has for one more request, which is then told to be the last."""


class LeadPages:
    """The pages of the admin listener, which the lead has."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def get(self, path: str, accept: str = "") -> Page | None:
        try:
            page: Page | None = await self._channel.call("page", path, accept, within=PAGE_PATIENCE)
        except (Lost, Refused, TimeoutError):
            return None
        return page


class Worker(DataPlane):
    """Serves until it is told to finish, or the lead is gone."""

    def __init__(self, start: Start, clock: Clock, channel: Channel) -> None:
        """Raises `CannotStart`."""
        self._start = start
        self.index = start.index
        self._showing = LeadPages(channel)
        self.hints = Hints(clock, channel.hint)
        self._order = start.serve
        ledger = Ledger(start.ledger, start.slots, start.slot)
        self._overlaps = SharedOverlaps(clock, ledger, channel.hint)
        self._sockets = {
            address: [[_socket(fd) for fd in own] for own in workers]
            for address, workers in start.sockets.items()
        }
        super().__init__(
            self._part(start.serve.parts[0].loaded),
            clock,
            sink=_sink(start.ledger),
            overlaps=self._overlaps,
            hints=self.hints,
            inherited={address: workers[start.index] for address, workers in self._sockets.items()},
        )
        self.hints.of(self)
        self.system = System(clock)
        self._recent = Recent(self.access_log)
        self._told = 0
        """Number of the last request that was reported."""
        self._collector = Collector(
            self.metrics,
            clock=clock,
            system=self.system,
            access_log=self.access_log,
            version=version_here(),
        )
        if self.tracer is not None:
            self._collector.add(trace_source(self.tracer.counts))
        if self.caching.in_use:
            self._collector.add(cache_source(self.caching))
        if self.redis is not None:
            self._collector.add(redis_source(self.redis.stats))
        self._control: Control | None = None
        self._one = asyncio.Lock()
        self._covering: dict[int, list[asyncio.Server]] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._serve(start.serve)
        self.services.overlaps.seen.update(start.seen)
        self.services.state.faults.adopt(start.faults)
        now = clock.now()
        for name, (state, until) in start.forced.items():
            self.force(name, state, until, now)
        for told in start.breakers:
            self.hints.hear_breaker(*told)
        self.services.overlaps.kept.update(start.kept)
        for quota in start.held:
            self.hints.hear_held(*quota)

    def _part(self, loaded: Loaded) -> Loaded:
        return shared_out(loaded, self._start.index, self._start.count)

    def _pages(self) -> Showing | None:
        return self._showing

    # -- life ----------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Accepts, and serves. Raises `CannotStart`."""
        self.system.start()
        self.hints.start()
        ingress = await self.listen()
        authority = "localhost" if ingress.unix is not None else str(ingress)
        self._control = Control(self.caching, self._route_any, self._ids, authority, self.egress.homes)
        if self.caching.in_use and self.redis is None:  # else the lead warms what all share
            self._control.warm(())
        self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="tick")
        tune_collector()

    async def _tick(self) -> None:
        while True:
            await self.clock.sleep(self.tick)
            self.sweep(self.clock.now())
            self._overlaps.catch_up()

    async def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        await self.hints.close()
        await self.system.close()
        await super().stop()

    # -- orders --------------------------------------------------------------------------------

    def handlers(self) -> dict[str, Callable[..., Any]]:
        return {
            **self.hints.handlers(),
            "report": self.report,
            "serve": self.serve_order,
            "faults": self.services.state.faults.adopt,
            "force": self.force,
            "purge": self.purge,
            "warm": self.warm,
            "cover": self.cover,
            "uncover": self.uncover,
            "drain": self.leave,
            "drain_egress": self.drain_egress,
            "watch": self.watch,
        }

    def report(self) -> Report:
        """The counts of now."""
        current = self.current
        trial = None
        if isinstance(current, Split):
            trial = (current.new.number, current.trial.old, current.trial.new)
        records = self._recent.records_since(self._told)
        self._told = self._recent.count
        return Report(
            metrics=still(self.metrics, self.clock.now()),
            rest=list(self._collector.rest()),
            cache=self._control.stats() if self._control is not None and self.caching.in_use else {},
            faults=self.services.state.faults.listed(),
            records=records,
            trial=trial,
            generation=self.in_force.number,
            connections=self.ingress.connections + self.egress.connections,
            lag=self.system.lag_max,
        )

    async def serve_order(self, order: Serve) -> int:
        """Serves other generations from now on; the number of the order. Raises `CannotStart`."""
        async with self._one:
            newest = self._order.parts[-1].loaded
            loaded = order.parts[-1].loaded
            authority = await asyncio.to_thread(prepare, self, newest, self._part(loaded))
            try:
                self._serve(order)
            finally:
                self.spares.clear()
            if len(order.parts) == 1:
                self.follow(self._part(loaded), authority)
            self.follow_features()
            return order.number

    def _serve(self, order: Serve) -> None:
        self.flags.adopt(dict(order.switched))
        old, *new = order.parts
        compiled = self._compiled(old)
        if not new:
            self.serve(compiled)
        else:
            rule = new[0].loaded.config.rollout
            assert rule is not None
            candidate = self._compiled(new[0], f"@{new[0].number}")
            self.serve(Split(compiled, candidate, rule, self.clock))
        self._order = order

    def _compiled(self, part: Part, suffix: str = "") -> Compiled:
        compiled = self.compile(self._part(part.loaded), part.number, suffix)
        return replace(compiled, since=part.since)

    def force(self, name: str, state: State, until: float, now: float) -> None:
        """As an operator wants it."""
        cells = self.metrics.breakers.get(name)
        if cells is not None:
            cells.look()
            cells.breaker.force(state, until, now)
            cells.look()

    async def purge(self, selector: dict[str, str]) -> int:
        assert self._control is not None
        with contextlib.suppress(ValueError):  # the lead says what is wrong
            return await self._control.purge(**selector)
        return 0

    def warm(self, urls: list[str], route: str | None) -> int:
        assert self._control is not None
        return self._control.warm(urls, route)

    def watch(self, watched: bool) -> None:  # a message
        """Somebody looks at the dashboard: all requests are of interest."""
        self._recent.watched = watched

    async def cover(self, index: int) -> None:
        """Accepts from the sockets of another worker too, which has died."""
        if index in self._covering:
            return
        servers = self._covering[index] = []
        for listener, addresses in self.listening():
            for address in addresses:
                servers += [
                    await listener.accept_from(address, sock.dup())
                    for sock in self._sockets[str(address)][index]
                ]

    def uncover(self, index: int) -> None:
        for server in self._covering.pop(index, ()):
            server.close()

    async def leave(self, linger: bool) -> int:  # a message
        """Accepts no more; lets what is in flight end. How many connections were cut off.

        `linger`: there is a successor; idle connections get `LINGER` seconds, so that a request that is on
        its way is answered.
        """
        for index in tuple(self._covering):
            self.uncover(index)
        return await self.drain_clients(LINGER if linger else 0.0)


def _sink(ledger: int) -> Sink:
    """Standard output, which is the lead's, or leads to it where it has a file to write."""
    sink = standard_output()
    sink.turn = partial(turn, ledger)
    return sink


def _socket(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


async def serve(fd: int, clock: Clock) -> int:
    """The life of a worker whose end of the channel is `fd`; returns the exit code."""
    made: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
    finishing = asyncio.Event()
    lost = asyncio.Event()

    def start(order: Start) -> None:
        # At once: whatever the lead says next is for somebody who is there.
        try:
            worker = Worker(order, clock, channel)
        except CannotStart as error:
            made.set_exception(error)
        else:
            handlers.update(worker.handlers())
            made.set_result(worker)

    def on_lost() -> None:
        lost.set()
        finishing.set()
        if not made.done():
            made.cancel()

    handlers: dict[str, Callable[..., Any]] = {"start": start, "finish": finishing.set}
    channel = Channel(clock, handlers, on_lost)
    await channel.open(_socket(fd))
    loop = asyncio.get_running_loop()
    # A terminal sends its SIGINT to the lead as well, which knows what to do; so does a supervisor that
    # stops a whole group. One that is sent here alone asks for another in this one's place.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_signal_handler(signal.SIGTERM, channel.cast, "leaving")
    try:
        worker = await made
        await worker.begin()
    except CannotStart as error:
        channel.cast("failed", str(error))
        return 2
    except asyncio.CancelledError:
        return 0  # the lead is gone before it said anything
    channel.cast("serving")
    await finishing.wait()
    if lost.is_set():
        worker.log.error("the lead is gone: this worker ends", worker=worker.index + 1)
        await worker.leave(linger=False)
        await worker.drain_egress()
    await worker.stop()
    channel.close()
    return 0
