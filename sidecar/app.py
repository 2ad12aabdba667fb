"""The composition root: builds everything from a configuration, starts it, drains it, stops it."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
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
from sidecar.alternates import pools
from sidecar.batch import setup as batch
from sidecar.caching.cache import Caching
from sidecar.caching.control import Control
from sidecar.clock import Clock, Ids, SystemRandom
from sidecar.config.features import Features, switched_off, without_features
from sidecar.config.schema import Address, Config, Logging, Tls, Url
from sidecar.egress import UNLISTED
from sidecar.egress_plane import EgressPlane, context_of
from sidecar.exposed import exposing
from sidecar.features import Flags
from sidecar.generation import Compiled, Generation
from sidecar.headers import RESPONSE_KINDS, Lines
from sidecar.listeners.binding import CannotStart, binding
from sidecar.listeners.ingress import Limits, Listener
from sidecar.overlap import Overlaps
from sidecar.pipeline import Services
from sidecar.reload import Reloading
from sidecar.rollout import Split
from sidecar.security_headers import ALWAYS, hardening
from sidecar.state import State, Use
from sidecar.stores.memory import Memory
from sidecar.stores.redis import RedisStore
from sidecar.stores.redis_server import RedisServer
from sidecar.stores.redis_url import parse as parse_redis
from sidecar.stores.tiered import Tiered
from sidecar.stress_tests import StressTests
from sidecar.telemetry import log
from sidecar.telemetry.access_log import AccessLog, Sampling
from sidecar.telemetry.batch_families import batch_source
from sidecar.telemetry.cache_families import cache_source, redis_source
from sidecar.telemetry.collector import Collector
from sidecar.telemetry.complaints import TlsComplaints
from sidecar.telemetry.config_families import config_source
from sidecar.telemetry.correlation import Fields
from sidecar.telemetry.health import Health
from sidecar.telemetry.health_families import health_source
from sidecar.telemetry.history import History, HistoryKeeper
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.own_checks import BatchCheck, RedisCheck, StoreQuestion, disk_checks, fault_checks
from sidecar.telemetry.probes import Probe, probe_of
from sidecar.telemetry.sink import Sink, file_sink, standard_output
from sidecar.telemetry.system import System
from sidecar.telemetry.trace import Tracer
from sidecar.telemetry.trace_families import trace_source
from sidecar.telemetry.upstream_checks import UpstreamChecks
from sidecar.upstreams.kept import KeptPools, SpareContexts
from sidecar.upstreams.pool import Upstream
from sidecar.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sidecar.admin.pages import Pages
    from sidecar.admin.route import Subject
    from sidecar.config.load import Loaded, Source
    from sidecar.config.schema import PolicyFile
    from sidecar.egress import EgressRoutes
    from sidecar.errors import ClientError
    from sidecar.exchange import Exchange
    from sidecar.listeners.authority import Authority
    from sidecar.pipeline import Handler
    from sidecar.telemetry.fault_report import FaultReport
    from sidecar.telemetry.trace_export import TraceExport

Serving = Compiled | Split
"""What requests are routed by."""

APP: Final = "app"
"""The upstream of policy files that name none, and of requests that no route matches."""
STORE_PATIENCE: Final = 15.0
"""Seconds that the batch store may take to answer a question: it may be taking in a large file just then."""
LONGEST_TICK: Final = 1.0
"""Seconds between two looks for connections that have outlived their limits."""


class App:
    """All parts of one sidecar process."""

    def __init__(self, loaded: Loaded, clock: Clock, source: Source | None = None) -> None:
        """`source` is where `loaded` came from, for reloads. Raises `CannotStart`."""
        config = loaded.config
        self._loaded = loaded
        self.config = config
        self.clock = clock
        self.sink = _log_sink(loaded)
        self._faults = self._fault_report(config)
        self.flags = Flags(clock)
        self.access_log = _access_log(config.logging, self.sink, clock)
        self._configure_logs()
        self.log = log.get_logger("sidecar")
        self.metrics = Metrics(config.metrics.namespace, config.metrics.buckets)
        self._ids = Ids()
        self.tracer: Tracer | None = None
        self._trace_export: TraceExport | None = None
        if config.tracing.otlp is not None:
            # OpenTelemetry takes a while to load, which a sidecar without need not wait for.
            from sidecar.telemetry.trace_export import TraceExport

            self.tracer = Tracer(clock, self._ids, SystemRandom(), config.tracing.ratio)
            self._trace_export = TraceExport(
                self.tracer,
                config.tracing,
                clock,
                log.get_logger("sidecar.tracing"),
                version=_version(),
                environment=config.environment,
            )
        self.redis = self._redis(loaded)
        self.caching = self._caching(loaded)
        nodes = self.redis.nodes if self.redis is not None else None
        self.services = Services(
            clock=clock,
            random=SystemRandom(),
            state=State(self.metrics, clock, nodes),
            metrics=self.metrics,
            access_log=self.access_log,
            caching=self.caching,
            overlaps=Overlaps(clock),
            tracer=self.tracer,
        )
        self.pools = KeptPools()
        self.spares = SpareContexts()
        self._complain = TlsComplaints(clock, self.log)
        use = Use()
        self.services.state.begin(use)
        # What the app sends is its own affair: the limit on bodies is for its clients.
        self.egress = EgressPlane(
            loaded,
            self.services,
            self._ids,
            replace(limits_of(config), body=None),
            on_refused=self._refused,
            use=use,
            spares=self.spares,
        )
        self.admin: admin.AdminServer | None = None
        self.current: Serving = self.compile(loaded, 1)
        self.egress.current = self._egress_routes
        self._retain(self.current)
        self.ingress = Listener(
            limits_of(config),
            self._route,
            clock=clock,
            ids=self._ids,
            cells=self.metrics.listener("ingress"),
            trusted=config.trusted.proxies,
            debug=config.trusted.debug,
            on_refused=self._refused,
        )
        self._face_clients(config)
        self.system = System(clock)
        self.system.watch_folder("ca", Path(config.ca.dir), written=False)
        if loaded.log_file is not None:
            self.system.watch_folder("log", loaded.log_file.parent)
        self.history = History(self.metrics, clock.now())
        self._keeper = HistoryKeeper(self.history, clock)
        self.health = Health(
            clock,
            system=self.system,
            probe=self._probe(),
            interval=config.app.health_interval,
            failures=config.app.health_failures,
            answers=self.metrics.upstream(APP).answers,
            version=_version(),
        )
        self._add_checks()
        self.collector = Collector(
            self.metrics,
            clock=clock,
            system=self.system,
            access_log=self.access_log,
            version=_version(),
        )
        self.breakers = Breakers(self.metrics, clock)
        self.collector.add(health_source(self.health))
        if self.tracer is not None:
            self.collector.add(trace_source(self.tracer.counts))
        if self.caching.in_use:
            self.collector.add(cache_source(self.caching))
        if self.redis is not None:
            self.collector.add(redis_source(self.redis.stats))
        self.dashboard = Dashboard(
            clock,
            metrics=self.metrics,
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
        self._drained_by = 0.0
        self._ticker: asyncio.Task[None] | None = None

    def _fault_report(self, config: Config) -> FaultReport | None:
        if config.sentry.dsn is None:
            return None
        from sidecar.telemetry.fault_report import FaultReport

        dsn = config.sentry.dsn.get_secret_value()
        return FaultReport(dsn, self.clock, version=_version(), environment=config.environment)

    def _add_checks(self) -> None:
        """What `/health/detailed` shows besides the app and the event loop."""
        health = self.health
        health.add_all(UpstreamChecks(self.metrics, self.history, self.clock))
        if self.redis is not None:
            health.add(RedisCheck(self.redis.stats))
        health.add_all(lambda: disk_checks(self.system))
        health.add_all(fault_checks(self.services.state.faults.scopes))

    def _redis(self, loaded: Loaded) -> RedisServer | None:
        """What replicas share, where a Redis is configured and something is to be shared."""
        url = loaded.config.cache.redis
        routes = [route for policy in loaded.policies for route in policy.routes]
        limits = [loaded.config.limits.rate_limit, *(route.rate_limit for route in routes)]
        wanted = any(route.cache is not None for route in routes) or any(
            limit is not None and limit.shared for limit in limits
        )
        if url is None or not wanted:
            return None
        return RedisServer(parse_redis(url.get_secret_value()), self.clock, self._redis_changed)

    def _caching(self, loaded: Loaded) -> Caching:
        """The cache: memory, and what replicas share."""
        settings = loaded.config.cache
        in_use = _caches(loaded)
        self._shared: RedisStore | None = None
        if self.redis is not None and in_use:
            self._shared = RedisStore(self.redis, self.clock, self._ids, Lines(RESPONSE_KINDS))
        store = Tiered(Memory(settings.memory, self.clock), self._shared, self.clock)
        return Caching(store, self.clock, in_use=in_use)

    def _redis_changed(self, reason: str) -> None:
        if reason:
            self.log.warning("redis is away, each replica goes on by itself", reason=reason)
        else:
            self.log.info("redis is there")

    # -- generations ---------------------------------------------------------------------------

    @property
    def in_force(self) -> Compiled:
        """The generation that serves, or that serves all but the share of one under trial."""
        return self.current.parts[0]

    def compile(self, loaded: Loaded, number: int, suffix: str = "") -> Compiled:
        """A configuration, ready to serve; nothing is served by it yet. Raises `CannotStart`.

        `suffix` of the names by which metrics show what no other generation has.
        """
        config = loaded.config
        features = self.flags.effective(config.features)
        policies = without_features(loaded.policies, features)
        use = Use(suffix)
        self.services.state.begin(use)
        self.pools.asked = set()
        self.egress.pools.asked = set()
        use.shown.add(("upstream", UNLISTED))
        self._note_features(loaded.policies, features, use)
        egress = self.egress.compile(loaded, policies, use)
        app = self._pool(loaded, use, APP, config.app.url, None, Tls())
        incoming = [policy for policy in policies if policy.direction == "ingress"]
        by_policy = {policy.name: self._upstream_of(loaded, use, policy, app) for policy in incoming}
        others = pools(incoming, lambda name, rung: self._pool(loaded, use, name, *rung.target))
        ingress = Generation(
            policies,
            by_policy,
            app,
            self.services,
            purgers=config.trusted.debug,
            rate_limit=config.limits.rate_limit if features.rate_limit else None,
            others=others,
        )
        asked = frozenset(self.pools.asked), frozenset(self.egress.pools.asked)
        return Compiled(number, self.clock.wall(), loaded, features, ingress, egress, use, asked)

    def _upstream_of(self, loaded: Loaded, use: Use, policy: PolicyFile, app: Upstream) -> Upstream:
        """The app's own pool, unless the file says something of its own about where and how."""
        if policy.upstream is None and policy.connect_to is None and policy.tls == Tls():
            return app
        url = policy.upstream or loaded.config.app.url
        return self._pool(loaded, use, policy.name, url, policy.connect_to, policy.tls)

    def _pool(
        self, loaded: Loaded, use: Use, name: str, url: Url, connect_to: Address | None, tls: Tls
    ) -> Upstream:
        use.places[name] = (str(url), connect_to)
        use.shown.add(("upstream", name))
        files = loaded.certificates(tls)

        def make() -> Upstream:
            return Upstream(
                name,
                connect_to or url.address,
                clock=self.clock,
                ids=self._ids,
                cells=self.metrics.upstream(name),
                tls=context_of(name, url, tls, self.spares.take((tls, files))),
                server_name=url.host,
                complain=self._complain,
            )

        return self.pools.get((name, url, connect_to, tls, files), make)

    def serve(self, serving: Serving) -> None:
        """Swaps: from the next request on. What no generation uses any more is let go."""
        self.current = serving
        self._retain(serving)

    def _retain(self, serving: Serving) -> None:
        parts = serving.parts
        self.services.state.keep([part.use for part in parts])
        self.pools.keep(part.pools[0] for part in parts)
        self.egress.pools.keep(part.pools[1] for part in parts)
        names = {route.name for part in parts for policy in part.loaded.policies for route in policy.routes}
        for name in [name for name in self.caching.routes if name not in names]:
            del self.caching.routes[name]

    def _note_features(self, policies: Sequence[PolicyFile], features: Features, use: Use) -> None:
        for policy in policies:
            for route in policy.routes:
                off = switched_off(route, features, policy.name)
                if off:
                    use.off[route.name] = off

    def _configure_logs(self) -> None:
        logging = self.config.logging
        features = self.flags.effective(self.config.features)
        style: log.Format = logging.format if features.structured_logging else "console"
        log.configure(self.sink, self.clock, format=style, level=logging.level, on_fault=self._faults)
        self.access_log.write(self.sink if logging.access else None, style)

    def _probe(self) -> Probe | None:
        if not self.flags.effective(self.config.features).health_monitoring:
            return None
        app = self.config.app
        return probe_of(app.url, app.health, timeout=app.health_timeout)

    def _takes_batches(self) -> bool:
        return self.flags.effective(self.config.features).batch

    def follow_features(self) -> None:
        """What is no part of a pipeline is switched, too."""
        self._configure_logs()
        monitored = self.flags.effective(self.config.features).health_monitoring
        if monitored != self.health.probing:
            self._watching = asyncio.get_running_loop().create_task(self.health.watch(self._probe()))

    async def adopt(self, before: Loaded, loaded: Loaded, authority: Authority | None) -> None:
        """What is no part of any pipeline follows the configuration, too."""
        config, was = loaded.config, before.config
        self.config = config
        limits = limits_of(config)
        self.ingress.limits = limits
        self.ingress.believe(config.trusted.proxies, config.trusted.debug)
        self._face_clients(config)
        self.egress.adopt(loaded, replace(limits, body=None), authority)
        self._configure_logs()
        self.caching.in_use = _caches(loaded)
        if self.batches is not None:
            self.batches.follow({route.name: route for it in loaded.policies for route in it.routes})
        monitored = self.flags.effective(config.features).health_monitoring
        if config.app != was.app or monitored != self.health.probing:
            await self.health.watch(self._probe())

    def _face_clients(self, config: Config) -> None:
        """What stands before the routes of ingress."""
        route = exposing(config.expose, self._pages, self._route)
        hardened = config.security_headers == "on"
        self.ingress.route = hardening(route) if hardened else route
        self.ingress.always = ALWAYS if hardened else b""

    def _route(self, exchange: Exchange) -> Handler:
        return self.current.ingress.route(exchange)

    def _egress_routes(self) -> EgressRoutes:
        return self.current.egress

    def _pages(self) -> Pages | None:
        return None if self.admin is None else self.admin.pages

    def _route_any(self, exchange: Exchange) -> Handler:
        """Of a request that no listener took in: its URL tells which way it goes."""
        current = self.current
        return current.egress.of_url(exchange) or current.ingress.route(exchange)

    def _refused(self, peer: str, error: ClientError) -> None:
        self.log.info(
            "request refused", client=peer, status=error.status, error=error.code, reason=error.detail
        )

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Binds the listeners and begins to serve. Raises `CannotStart`."""
        listen = self.config.listen
        self.system.start()
        with binding("listen.ingress", listen.ingress):
            ingress = await self.ingress.start(listen.ingress)
        await self.egress.start()
        if self.redis is not None:
            self.redis.start()
        if self._shared is not None:
            self._shared.start()
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
                version=_version(),
                token=self._token,
            )
        self.stress_tests.at(ingress, self.admin.address)
        if self.caching.in_use:
            self.cache_control.warm(())
        self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="tick")
        self.health.start()
        self._keeper.start()
        self.health.open()
        self.reloading.keep_first()
        if self.watching is not None:
            self.watching.start()
        _tune_collector()
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
        yield PerformancePages(self.metrics, self.history, self.health, self.clock)
        yield MetricsPages(self.collector, enabled=self.config.metrics.enabled)
        yield CachePages(lambda: self.cache_control if self.caching.in_use else None)
        yield BreakerPages(self.breakers)
        yield FaultPages(self.services.state.faults, production=production)
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
        limits = self.config.limits
        tick = min(LONGEST_TICK, limits.header_timeout / 4, limits.idle / 4)
        while True:
            await self.clock.sleep(tick)
            now = self.clock.now()
            self.ingress.sweep(now)
            self.egress.sweep(now)
            self.pools.sweep(now)
            self.services.state.faults.sweep(now)
            self.flags.sweep(now)
            self.reloading.sweep(now)

    async def drain(self) -> None:
        """No new requests; those in flight get `limits.drain`. The app may still call out for them."""
        self._drained_by = self.clock.now() + self.config.limits.drain
        self.health.drain()
        self.log.info("draining", connections=self.ingress.connections)
        ending = [self.batches.stop(self.config.limits.drain)] if self.batches is not None else []
        cut, *_ = await asyncio.gather(self.ingress.drain(), *ending)
        if cut:
            self.log.warning("cut off after limits.drain", connections=cut)

    async def drain_egress(self) -> None:
        """No new calls of the app, which serves nobody any more; those in flight get what time is left."""
        cut = await self.egress.drain(max(self._drained_by - self.clock.now(), 0.0))
        if cut:
            self.log.warning("calls of the app cut off after limits.drain", connections=cut)

    async def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        if self.batches is not None:
            await self.batches.stop(0.0)
        if self.watching is not None:
            await self.watching.close()
        await self.reloading.close()
        await self.stress_tests.close()
        await self.caching.close()
        await self.services.state.faults.close()
        if self.redis is not None:
            await self.redis.close()
        await self.health.close()
        await self.dashboard.close()
        await self._keeper.close()
        await self.system.close()
        self.pools.close()
        await self.egress.close()
        if self.admin is not None:
            await self.admin.close()
        self.access_log.close()
        if self._trace_export is not None:
            await asyncio.to_thread(self._trace_export.close)
        if self._faults is not None:
            await asyncio.to_thread(self._faults.close)
        self.log.info("stopped")
        self.sink.close()


def limits_of(config: Config) -> Limits:
    """What clients may ask of a listener."""
    limits = config.limits
    return Limits(
        head=limits.head,
        body=limits.body,
        connections=limits.connections,
        header_timeout=limits.header_timeout,
        idle=limits.idle,
        drain=limits.drain,
    )


def _caches(loaded: Loaded) -> bool:
    return any(route.cache is not None for policy in loaded.policies for route in policy.routes)


def _tune_collector() -> None:
    """The request path makes no cycles; looking for them at CPython's default pace took 9 % of the CPU.

    What was made at start is not looked at again, and new objects are looked at less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _log_sink(loaded: Loaded) -> Sink:
    """Where all lines go. Raises `CannotStart`."""
    path, rotate = loaded.log_file, loaded.config.logging.rotate
    if path is None:
        return standard_output()
    try:
        return file_sink(path, None if rotate is None else rotate.size, 1 if rotate is None else rotate.keep)
    except OSError as error:
        raise CannotStart(f"logging.file: {path}: {error.strerror}; may this user write there?") from error


def _access_log(settings: Logging, sink: Sink, clock: Clock) -> AccessLog:
    return AccessLog(
        sink if settings.access else None,
        clock,
        format=settings.format,
        sampling=Sampling(settings.sample, settings.slow),
        random=SystemRandom(),
        fields=Fields(settings.fields) if settings.fields else None,
    )


def _authority(address: Address) -> str:
    """The host of requests that the sidecar makes itself, as a client beside it would name it."""
    return "localhost" if address.unix is not None else str(address)


def _version() -> str:
    try:
        return version("nextvision-sidecar")
    except PackageNotFoundError:
        return "0"
