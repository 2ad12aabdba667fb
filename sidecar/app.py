"""The composition root: builds everything from a configuration, starts it, drains it, stops it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidecar.admin import api as admin
from sidecar.admin.batch_pages import BatchPages
from sidecar.admin.breaker_pages import BreakerPages, Breakers
from sidecar.admin.cache_pages import CachePages
from sidecar.admin.config_pages import ConfigPages
from sidecar.admin.dashboard_pages import Dashboard
from sidecar.admin.fault_pages import FaultPages
from sidecar.admin.feature_pages import FeaturePages
from sidecar.admin.health_pages import HealthPages, MetricsPages
from sidecar.admin.performance_pages import PerformancePages
from sidecar.admin.stress_pages import StressPages
from sidecar.admin.system_pages import SystemPages
from sidecar.batch import setup as batch
from sidecar.caching.control import Control
from sidecar.data_plane import APP, DataPlane
from sidecar.listeners.binding import binding
from sidecar.process_setup import tune_collector, version_here
from sidecar.reload import Reloading
from sidecar.stress_tests import StressTests
from sidecar.telemetry.batch_families import batch_source
from sidecar.telemetry.cache_families import cache_source, redis_source
from sidecar.telemetry.collector import Collector
from sidecar.telemetry.config_families import config_source
from sidecar.telemetry.health import Health
from sidecar.telemetry.health_families import health_source
from sidecar.telemetry.history import History, HistoryKeeper
from sidecar.telemetry.own_checks import BatchCheck, RedisCheck, StoreQuestion, disk_checks, fault_checks
from sidecar.telemetry.probes import Probe, probe_of
from sidecar.telemetry.system import System
from sidecar.telemetry.trace_families import trace_source
from sidecar.telemetry.upstream_checks import UpstreamChecks
from sidecar.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.admin.cache_pages import CacheControl
    from sidecar.admin.fault_pages import FaultControl
    from sidecar.admin.pages import Pages
    from sidecar.admin.route import Subject
    from sidecar.clock import Clock
    from sidecar.config.load import Loaded, Source
    from sidecar.config.schema import Address
    from sidecar.decisions.breaker import State
    from sidecar.listeners.authority import Authority
    from sidecar.overlap import Overlaps
    from sidecar.state import Hints
    from sidecar.telemetry.metrics import Metrics

STORE_PATIENCE: Final = 15.0
"""Seconds that the batch store may take to answer a question: it may be taking in a large file just then."""


class App(DataPlane):
    """All parts of one sidecar process: what serves, and the admin listener with what it tells of."""

    def __init__(
        self,
        loaded: Loaded,
        clock: Clock,
        source: Source | None = None,
        *,
        overlaps: Overlaps | None = None,
        hints: Hints | None = None,
    ) -> None:
        """`source` is where `loaded` came from, for reloads; the rest as `DataPlane` has it.

        Raises `CannotStart`.
        """
        super().__init__(loaded, clock, overlaps=overlaps, hints=hints)
        config = loaded.config
        self.figures = self._figures()
        """What is shown: of all processes that serve."""
        self.admin: admin.AdminServer | None = None
        self.system = self._system()
        self.system.watch_folder("ca", Path(config.ca.dir), written=False)
        if loaded.log_file is not None:
            self.system.watch_folder("log", loaded.log_file.parent)
        self.history = History(self.figures, clock.now())
        self._keeper = HistoryKeeper(self.history, clock)
        self.health = Health(
            clock,
            system=self.system,
            probe=self._probe(),
            interval=config.app.health_interval,
            failures=config.app.health_failures,
            answers=lambda: self.figures.upstream(APP).answers(),
            version=version_here(),
        )
        self._add_checks()
        self.collector = self._collector()
        self.breakers = Breakers(self.figures, clock, self._forced)
        self.collector.add(health_source(self.health))
        if self.tracer is not None:
            self.collector.add(trace_source(self.tracer.counts))
        if self.caching.in_use:
            self.collector.add(cache_source(self.caching))
        if self.redis is not None:
            self.collector.add(redis_source(self.redis.stats))
        self.dashboard = Dashboard(
            clock,
            metrics=self.figures,
            history=self.history,
            health=self.health,
            breakers=self.breakers,
            access_log=self.access_log,
            current=lambda: self.in_force,
        )
        self.batches: batch.Batches | None = None
        self.stress_tests = StressTests(self._token)
        self.reloading = Reloading(self, source)
        self.health.add_all(self.reloading.checks)
        self.flags.on_change = self.reloading.switched
        self.watching = Watching(self.reloading, source, clock) if source is not None else None
        self.collector.add(config_source(self.reloading.cells))
        self._ticker: asyncio.Task[None] | None = None

    # -- what differs where workers serve (`workers/lead.py`) ------------------------------------

    def _figures(self) -> Metrics:
        return self.metrics

    def _system(self) -> System:
        return System(self.clock)

    def _collector(self) -> Collector:
        return Collector(
            self.figures,
            clock=self.clock,
            system=self.system,
            access_log=self.access_log,
            version=version_here(),
        )

    def _forced(self, name: str, state: State, until: float, now: float) -> None:
        """An operator has overruled a breaker."""

    def _cache_control(self) -> CacheControl | None:
        return self.cache_control if self.caching.in_use else None

    def _fault_control(self) -> FaultControl:
        return self.services.state.faults

    def _warm(self) -> None:
        """What is configured to be in the cache from the start."""
        if self.caching.in_use:
            self.cache_control.warm(())

    def restart_workers(self) -> None:
        """Replaces the processes that serve, one after the other."""
        self.log.warning("there are no workers to restart: this takes workers: 2, or more")

    # ------------------------------------------------------------------------------------------

    def _add_checks(self) -> None:
        """What `/health/detailed` shows besides the app and the event loop."""
        health = self.health
        health.add_all(UpstreamChecks(self.figures, self.history, self.clock))
        if self.redis is not None:
            health.add(RedisCheck(self.redis.stats))
        health.add_all(lambda: disk_checks(self.system))
        health.add_all(fault_checks(self.services.state.faults.scopes))

    def _probe(self) -> Probe | None:
        if not self.flags.effective(self.config.features).health_monitoring:
            return None
        app = self.config.app
        return probe_of(app.url, app.health, timeout=app.health_timeout)

    def _takes_batches(self) -> bool:
        return self.flags.effective(self.config.features).batch

    def follow_features(self) -> None:
        super().follow_features()
        monitored = self.flags.effective(self.config.features).health_monitoring
        if monitored != self.health.probing:
            self._watching = asyncio.get_running_loop().create_task(self.health.watch(self._probe()))

    async def adopt(self, before: Loaded, loaded: Loaded, authority: Authority | None) -> None:
        """What is no part of any pipeline follows the configuration, too."""
        config, was = loaded.config, before.config
        self.follow(loaded, authority)
        if self.batches is not None:
            self.batches.follow({route.name: route for it in loaded.policies for route in it.routes})
        monitored = self.flags.effective(config.features).health_monitoring
        if config.app != was.app or monitored != self.health.probing:
            await self.health.watch(self._probe())

    def _pages(self) -> Pages | None:
        return None if self.admin is None else self.admin.pages

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Binds the listeners and begins to serve. Raises `CannotStart`."""
        listen = self.config.listen
        self.system.start()
        ingress = await self.listen()
        self.cache_control = Control(
            self.caching, self._route_any, self._ids, _authority(ingress), self.egress.homes
        )
        self.batches = batch.build(
            self._loaded,
            self._route_any,
            clock=self.clock,
            random=self.services.random,
            ids=self._ids,
            metrics=self.metrics,
            system=self.system,
            authority=_authority(ingress),
        )
        if self.batches is not None:
            asked = self.health.poll(StoreQuestion(self.batches.ask), timeout=STORE_PATIENCE)
            self.health.add(BatchCheck(self.batches.reason, asked))
            self.collector.add(batch_source(self.batches.runner.stats, self.clock.now))
            await self.batches.start()
        with binding("listen.admin", listen.admin):
            self.admin = await admin.start(
                listen.admin,
                self._subjects(),
                version=version_here(),
                token=self._token,
            )
        self.stress_tests.at(ingress, self.admin.address)
        self._warm()
        self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="tick")
        self.health.start()
        self._keeper.start()
        self.health.open()
        self.reloading.keep_first()
        if self.watching is not None:
            self.watching.start()
        tune_collector()
        self.log.info(
            "listening",
            ingress=str(ingress),
            **self.egress.shown,
            admin=str(self.admin.address),
            app=str(self.config.app.url),
            environment=self.config.environment,
        )

    def _token(self) -> str | None:
        """What acting takes; asked each time, as its file may be replaced."""
        token = self.config.admin.token
        return token.get_secret_value() if token is not None else None

    def _subjects(self) -> Iterator[Subject]:
        """What the admin listener tells of and lets be acted upon."""
        production = self.config.environment == "production"
        yield self.dashboard
        yield HealthPages(self.health)
        yield SystemPages(self.health, self.system)
        yield PerformancePages(self.figures, self.history, self.health, self.clock)
        yield MetricsPages(self.collector, enabled=self.config.metrics.enabled)
        yield CachePages(self._cache_control)
        yield BreakerPages(self.breakers)
        yield FaultPages(self._fault_control(), production=production)
        yield BatchPages(self.batches, self.clock, self._takes_batches)
        yield ConfigPages(lambda: self.in_force, self.reloading.reload)
        yield FeaturePages(self.flags, lambda: self.in_force.loaded.config.features)
        yield StressPages(self.stress_tests, self._takes_stress_tests)

    def _takes_stress_tests(self) -> bool:
        """In production somebody must have said so, in the files or for a time."""
        files = self.in_force.loaded.config.features
        if not self.flags.effective(files).stress_test:
            return False
        said = "stress_test" in files.model_fields_set or self.flags.switched("stress_test")
        return said or self.config.environment != "production"

    async def _tick(self) -> None:
        tick = self.tick
        while True:
            await self.clock.sleep(tick)
            now = self.clock.now()
            self.sweep(now)
            self.flags.sweep(now)
            self.reloading.sweep(now)

    async def drain(self) -> None:
        """No new requests; those in flight get `limits.drain`. The app may still call out for them."""
        self.health.drain()
        ending = [self.batches.stop(self.config.limits.drain)] if self.batches is not None else []
        await asyncio.gather(self.drain_clients(), *ending)

    async def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        if self.batches is not None:
            await self.batches.stop(0.0)
        if self.watching is not None:
            await self.watching.close()
        await self.reloading.close()
        await self.stress_tests.close()
        await self.health.close()
        await self.dashboard.close()
        await self._keeper.close()
        await self.system.close()
        await super().stop()

    async def close_logs(self) -> None:
        # Last, so that an operator who looks sees the end.
        if self.admin is not None:
            await self.admin.close()
        await super().close_logs()


def _authority(address: Address) -> str:
    """The host of requests that the sidecar makes itself, as a client beside it would name it."""
    return "localhost" if address.unix is not None else str(address)
