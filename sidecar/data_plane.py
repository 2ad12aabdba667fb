"""What serves requests, of both planes: built from a configuration, bound, swapped, drained, closed.

A process that serves by itself has the admin listener and all that watches beside it (`app.py`); where
several share the ports, each worker has one of these and no more (`workers/`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sidecar.alternates import pools
from sidecar.caching.cache import Caching
from sidecar.clock import Clock, Ids, SystemRandom
from sidecar.config.features import Features, switched_off, without_features
from sidecar.config.schema import Address, Config, Tls, Url
from sidecar.egress import UNLISTED
from sidecar.egress_plane import EgressPlane, context_of
from sidecar.exposed import exposing
from sidecar.features import Flags
from sidecar.generation import Compiled, Generation
from sidecar.headers import RESPONSE_KINDS, Lines
from sidecar.heads import LONGEST
from sidecar.listeners.binding import binding
from sidecar.listeners.ingress import Limits, Listener
from sidecar.overlap import Overlaps
from sidecar.pipeline import Services
from sidecar.process_setup import access_log, log_sink, version_here
from sidecar.rollout import Split
from sidecar.security_headers import ALWAYS, hardening
from sidecar.state import Hints, State, Use
from sidecar.stores.memory import Memory
from sidecar.stores.redis import RedisStore
from sidecar.stores.redis_server import RedisServer
from sidecar.stores.redis_url import parse as parse_redis
from sidecar.stores.tiered import Tiered
from sidecar.telemetry import log
from sidecar.telemetry.complaints import TlsComplaints
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.trace import Tracer
from sidecar.upstreams.kept import KeptPools, SpareContexts
from sidecar.upstreams.pool import Upstream

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from sidecar.admin.pages import Showing
    from sidecar.config.load import Loaded
    from sidecar.config.schema import PolicyFile
    from sidecar.egress import EgressRoutes
    from sidecar.errors import ClientError
    from sidecar.exchange import Exchange
    from sidecar.listeners.authority import Authority
    from sidecar.listeners.memo import Memo
    from sidecar.pipeline import Handler
    from sidecar.telemetry.fault_report import FaultReport
    from sidecar.telemetry.sink import Sink
    from sidecar.telemetry.trace_export import TraceExport

Serving = Compiled | Split
"""What requests are routed by."""
Inherited = Mapping[str, "Sequence[socket.socket]"]
"""Sockets that listen already, by the address as it is configured."""

APP: Final = "app"
"""The upstream of policy files that name none, and of requests that no route matches."""
LONGEST_TICK: Final = 1.0
"""Seconds between two looks for connections that have outlived their limits."""


class DataPlane:
    """The routes, their pipelines and what these share; the listeners of clients and of the app's calls."""

    def __init__(
        self,
        loaded: Loaded,
        clock: Clock,
        *,
        sink: Sink | None = None,
        overlaps: Overlaps | None = None,
        hints: Hints | None = None,
        inherited: Inherited = MappingProxyType({}),
    ) -> None:
        """`sink`: where lines go, unless as configured. The rest is for one of several workers: what it
        shares with the others, and what it accepts from. Raises `CannotStart`.
        """
        config = loaded.config
        self._loaded = loaded
        self.config = config
        self.clock = clock
        self._inherited = inherited
        self.sink = log_sink(loaded) if sink is None else sink
        self._faults = self._fault_report(config)
        self.flags = Flags(clock)
        self.access_log = access_log(config.logging, self.sink, clock)
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
                version=version_here(),
                environment=config.environment,
            )
        self.redis = self._redis(loaded)
        self.caching = self._caching(loaded)
        nodes = self.redis.nodes if self.redis is not None else None
        self.services = Services(
            clock=clock,
            random=SystemRandom(),
            state=State(self.metrics, clock, nodes, hints),
            metrics=self.metrics,
            access_log=self.access_log,
            caching=self.caching,
            overlaps=Overlaps(clock) if overlaps is None else overlaps,
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
            inherited=inherited,
        )
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
        self.ingress.memo = _memo_of(self.current)
        self._face_clients(config)
        self._drained_by = 0.0

    def _fault_report(self, config: Config) -> FaultReport | None:
        if config.sentry.dsn is None:
            return None
        from sidecar.telemetry.fault_report import FaultReport

        dsn = config.sentry.dsn.get_secret_value()
        return FaultReport(dsn, self.clock, version=version_here(), environment=config.environment)

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
        in_use = caches(loaded)
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
        self.ingress.memo = _memo_of(serving)
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

    def follow_features(self) -> None:
        """What is no part of a pipeline is switched, too."""
        self._configure_logs()

    def follow(self, loaded: Loaded, authority: Authority | None) -> None:
        """What is no part of any pipeline follows the configuration, too."""
        config = loaded.config
        self.config = config
        limits = limits_of(config)
        self.ingress.limits = limits
        self.ingress.believe(config.trusted.proxies, config.trusted.debug)
        self._face_clients(config)
        self.egress.adopt(loaded, replace(limits, body=None), authority)
        self._configure_logs()
        self.caching.in_use = caches(loaded)

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

    def _pages(self) -> Showing | None:
        """The pages that `expose` may name; None while there are none."""
        return None

    def _route_any(self, exchange: Exchange) -> Handler:
        """Of a request that no listener took in: its URL tells which way it goes."""
        current = self.current
        return current.egress.of_url(exchange) or current.ingress.route(exchange)

    def _refused(self, peer: str, error: ClientError) -> None:
        self.log.info(
            "request refused", client=peer, status=error.status, error=error.code, reason=error.detail
        )

    # -- life ----------------------------------------------------------------------------------

    async def listen(self) -> Address:
        """Binds the listeners; where that of clients is. Raises `CannotStart`."""
        listen = self.config.listen
        with binding("listen.ingress", listen.ingress):
            ingress = await self.ingress.start(listen.ingress, self._inherited.get(str(listen.ingress), ()))
        await self.egress.start()
        self.connect()
        return ingress

    def connect(self) -> None:
        """Begins to speak with the Redis, where there is one."""
        if self.redis is not None:
            self.redis.start()
        if self._shared is not None:
            self._shared.start()

    def sweep(self, now: float) -> None:
        """Ends what has outlived its limits: to be called each `tick` seconds."""
        self.ingress.sweep(now)
        self.egress.sweep(now)
        self.pools.sweep(now)
        self.services.state.faults.sweep(now)

    @property
    def tick(self) -> float:
        limits = self.config.limits
        return min(LONGEST_TICK, limits.header_timeout / 4, limits.idle / 4)

    def listening(self) -> list[tuple[Listener, tuple[Address, ...]]]:
        """The listeners, with their addresses as they are configured."""
        return [(self.ingress, (self.config.listen.ingress,)), *self.egress.listening]

    async def drain_clients(self, linger: float = 0.0) -> int:
        """No new requests; those in flight get `limits.drain`. The app may still call out for them.

        `linger` as `Listener.drain` has it. Returns how many connections were cut off.
        """
        self._drained_by = self.clock.now() + self.config.limits.drain
        self.log.info("draining", connections=self.ingress.connections)
        cut = await self.ingress.drain(linger=linger)
        if cut:
            self.log.warning("cut off after limits.drain", connections=cut)
        return cut

    async def drain_egress(self) -> None:
        """No new calls of the app, which serves nobody any more; those in flight get what time is left."""
        cut = await self.egress.drain(max(self._drained_by - self.clock.now(), 0.0))
        if cut:
            self.log.warning("calls of the app cut off after limits.drain", connections=cut)

    async def stop(self) -> None:
        """Ends all work, and lets everything go; the log last."""
        await self.caching.close()
        await self.services.state.faults.close()
        if self.redis is not None:
            await self.redis.close()
        self.pools.close()
        await self.egress.close()
        await self.close_logs()

    async def close_logs(self) -> None:
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


def caches(loaded: Loaded) -> bool:
    return any(route.cache is not None for policy in loaded.policies for route in policy.routes)


def _memo_of(serving: Serving) -> Memo | None:
    """Of the heads that its caches answered; none where a head that might be known is longer than allowed."""
    longest = serving.parts[0].loaded.config.limits.head
    return serving.ingress.memo if longest >= LONGEST else None
