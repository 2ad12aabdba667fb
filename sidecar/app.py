"""The composition root: builds everything from a configuration, starts it, drains it, stops it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from sidecar.admin import api as admin
from sidecar.caching.cache import Caching
from sidecar.caching.control import Control
from sidecar.child import FORWARDED, Child, interrupted_from_terminal
from sidecar.clock import Clock, Ids, SystemClock, SystemRandom
from sidecar.config.schema import Address, Tls, Url
from sidecar.generation import Generation
from sidecar.headers import RESPONSE_KINDS, Lines
from sidecar.listeners.ingress import Limits, Listener
from sidecar.pipeline import Services
from sidecar.state import State
from sidecar.stores.memory import Memory
from sidecar.stores.redis import RedisStore
from sidecar.stores.redis_url import parse as parse_redis
from sidecar.stores.tiered import Tiered
from sidecar.telemetry import log
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.collector import Collector
from sidecar.telemetry.health import Health
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.probes import probe_of
from sidecar.telemetry.sink import standard_output
from sidecar.telemetry.system import System
from sidecar.upstreams.pool import Upstream, tls_context

if TYPE_CHECKING:
    from sidecar.config.load import Loaded
    from sidecar.config.schema import PolicyFile
    from sidecar.errors import ClientError
    from sidecar.exchange import Exchange
    from sidecar.pipeline import Handler

APP: Final = "app"
"""The upstream of policy files that name none, and of requests that no route matches."""
LONGEST_TICK: Final = 1.0
"""Seconds between two looks for connections that have outlived their limits."""


class CannotStart(Exception):
    """Something outside the configuration's text is wrong; the message says what, and the mend."""


class App:
    """All parts of one sidecar process."""

    def __init__(self, loaded: Loaded, clock: Clock) -> None:
        """Raises `CannotStart`."""
        config = loaded.config
        self.config = config
        self.clock = clock
        self.sink = standard_output()
        log.configure(self.sink, clock, format=config.logging.format, level=config.logging.level)
        self.log = log.get_logger("sidecar")
        self.metrics = Metrics(config.metrics.namespace)
        self.access_log = AccessLog(
            self.sink if config.logging.access else None, clock, format=config.logging.format
        )
        self._ids = Ids()
        self.caching = self._caching(loaded)
        self.services = Services(
            clock=clock,
            random=SystemRandom(),
            state=State(self.metrics, clock),
            metrics=self.metrics,
            access_log=self.access_log,
            caching=self.caching,
        )
        self.upstreams: dict[str, Upstream] = {}
        app = self._upstream(APP, config.app.url, None, Tls())
        by_policy = {policy.name: self._upstream_of(policy, app) for policy in loaded.policies}
        self.generation = Generation(loaded.policies, by_policy, app, self.services, config.trusted.debug)
        limits = config.limits
        self.ingress = Listener(
            Limits(
                head=limits.head,
                body=limits.body,
                connections=limits.connections,
                header_timeout=limits.header_timeout,
                idle=limits.idle,
                drain=limits.drain,
            ),
            self._route,
            clock=clock,
            ids=self._ids,
            cells=self.metrics.listener("ingress"),
            trusted=config.trusted.proxies,
            debug=config.trusted.debug,
            on_refused=self._refused,
        )
        self.system = System(clock)
        self.health = Health(
            clock,
            metrics=self.metrics,
            system=self.system,
            probe=probe_of(config.app.url, config.app.health),
            answers=self.metrics.upstream(APP).answers,
            version=_version(),
        )
        self.collector = Collector(
            self.metrics,
            clock=clock,
            system=self.system,
            access_log=self.access_log,
            version=_version(),
        )
        self.admin: admin.AdminServer | None = None
        self._ticker: asyncio.Task[None] | None = None

    def _caching(self, loaded: Loaded) -> Caching:
        """The cache: memory, and what replicas share where a Redis is configured."""
        settings = loaded.config.cache
        in_use = any(route.cache is not None for policy in loaded.policies for route in policy.routes)
        self.redis: RedisStore | None = None
        if settings.redis is not None and in_use:
            self.redis = RedisStore(
                parse_redis(settings.redis.get_secret_value()),
                self.clock,
                self._ids,
                Lines(RESPONSE_KINDS),
                changed=self._redis_changed,
            )
        store = Tiered(Memory(settings.memory, self.clock), self.redis, self.clock)
        return Caching(store, self.clock, in_use=in_use)

    def _redis_changed(self, reason: str) -> None:
        if reason:
            self.log.warning("redis is away, the cache goes on in memory", reason=reason)
        else:
            self.log.info("redis is there")

    def _upstream_of(self, policy: PolicyFile, app: Upstream) -> Upstream:
        """The app's own pool, unless the file says something of its own about where and how."""
        if policy.direction == "egress":
            url = policy.upstream or Url("https", policy.hosts[0], 443)
        elif policy.upstream is None and policy.connect_to is None and policy.tls == Tls():
            return app
        else:
            url = policy.upstream or self.config.app.url
        return self._upstream(policy.name, url, policy.connect_to, policy.tls)

    def _upstream(self, name: str, url: Url, connect_to: Address | None, tls: Tls) -> Upstream:
        context = None
        if url.scheme == "https":
            try:
                context = tls_context(tls.ca, tls.cert, tls.key, verify=tls.verify)
            except (OSError, ssl.SSLError) as error:
                raise CannotStart(f"tls of upstream {name}: {error}") from error
        upstream = self.upstreams[name] = Upstream(
            name,
            connect_to or url.address,
            clock=self.clock,
            ids=self._ids,
            cells=self.metrics.upstream(name),
            tls=context,
            server_name=url.host,
        )
        return upstream

    def _route(self, exchange: Exchange) -> Handler:
        return self.generation.route(exchange)

    def _refused(self, peer: str, error: ClientError) -> None:
        self.log.info(
            "request refused", client=peer, status=error.status, error=error.code, reason=error.detail
        )

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Binds the listeners and begins to serve. Raises `CannotStart`."""
        listen = self.config.listen
        self.system.start()
        with _binding("listen.ingress", listen.ingress):
            ingress = await self.ingress.start(listen.ingress)
        if self.redis is not None:
            self.redis.start()
        self.cache_control = Control(self.caching, self._route, self._ids, _authority(ingress))
        token = self.config.admin.token
        with _binding("listen.admin", listen.admin):
            self.admin = await admin.start(
                listen.admin,
                health=self.health,
                collector=self.collector,
                version=_version(),
                cache=self.cache_control if self.caching.in_use else None,
                token=token.get_secret_value() if token is not None else None,
            )
        if self.caching.in_use:
            self.cache_control.warm(())
        self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="tick")
        self.health.start()
        self.health.open()
        _tune_collector()
        self.log.info(
            "listening",
            ingress=str(ingress),
            admin=str(self.admin.address),
            app=str(self.config.app.url),
            environment=self.config.environment,
        )

    async def _tick(self) -> None:
        limits = self.config.limits
        tick = min(LONGEST_TICK, limits.header_timeout / 4, limits.idle / 4)
        while True:
            await self.clock.sleep(tick)
            now = self.clock.now()
            self.ingress.sweep(now)
            for upstream in self.upstreams.values():
                upstream.sweep(now)

    async def drain(self) -> None:
        """No new requests; those in flight get `limits.drain`."""
        self.health.drain()
        self.log.info("draining", connections=self.ingress.connections)
        cut = await self.ingress.drain()
        if cut:
            self.log.warning("cut off after limits.drain", connections=cut)

    async def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        await self.caching.close()
        if self.redis is not None:
            await self.redis.close()
        await self.health.close()
        await self.system.close()
        for upstream in self.upstreams.values():
            upstream.close()
        if self.admin is not None:
            await self.admin.close()
        self.access_log.close()
        self.log.info("stopped")
        self.sink.close()


async def serve(loaded: Loaded, command: Sequence[str]) -> int:
    """Serves until a signal or the end of the child; returns the exit code."""
    clock = SystemClock()
    app = App(loaded, clock)
    try:
        await app.start()
    except BaseException:
        await app.stop()
        raise
    stopping: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def stop(number: int) -> None:
        if not stopping.done():
            stopping.set_result(number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    child: Child | None = None
    try:
        if command:
            try:
                child = await Child.start(command, os.environ, clock)
            except OSError as error:
                raise CannotStart(f"{command[0]}: {error.strerror}; is the command right?") from error
            app.log.info("started the app", command=command[0], pid=child.pid)
            for number in FORWARDED:
                loop.add_signal_handler(number, child.signal, number)
            await asyncio.wait((stopping, child.exited), return_when=asyncio.FIRST_COMPLETED)
        else:
            await stopping
        await app.drain()
        if child is not None:
            by_terminal = (
                stopping.done() and stopping.result() == signal.SIGINT and interrupted_from_terminal()
            )
            await child.stop(loaded.config.limits.drain, by_terminal=by_terminal)
            app.log.info("the app ended", code=child.exit_code)
            return child.exit_code
        return 0
    finally:
        await app.stop()


def run(loaded: Loaded, command: Sequence[str]) -> int:
    """`sidecar run`: 0 after a clean stop, the child's code where there is one, 2 where it cannot start."""
    try:
        return uvloop.run(serve(loaded, command))
    except CannotStart as error:
        sys.stderr.write(f"sidecar: {error}\n")
        return 2


@contextlib.contextmanager
def _binding(key: str, address: Address) -> Iterator[None]:
    """Turns the failure to bind into words."""
    if address.unix is not None:
        with contextlib.suppress(OSError):
            _remove_dead_socket(address.unix)
    try:
        yield
    except OSError as error:
        mend = {
            errno.EADDRINUSE: "another process listens there: stop it, or choose another port",
            errno.EACCES: "not allowed: choose a port above 1023, or give the right to bind it",
            errno.EADDRNOTAVAIL: "this machine has no such address: 0.0.0.0 stands for all that it has",
        }.get(error.errno or 0, error.strerror or str(error))
        raise CannotStart(f"{key}: cannot listen on {address}: {mend}") from error


def _remove_dead_socket(path: str) -> None:
    """A socket that a killed process left is removed; one that somebody listens on is not."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()


def _tune_collector() -> None:
    """The request path makes no cycles; looking for them at CPython's default pace took 9 % of the CPU.

    What was made at start is not looked at again, and new objects are looked at less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _authority(address: Address) -> str:
    """The host of requests that the sidecar makes itself, as a client beside it would name it."""
    return "localhost" if address.unix is not None else str(address)


def _version() -> str:
    try:
        return version("nextvision-sidecar")
    except PackageNotFoundError:
        return "0"
