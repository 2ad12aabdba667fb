"""The egress half of a process: its pools, its authority, its listeners; built, bound, drained, closed."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from sidecar.alternates import pools
from sidecar.config.addresses import Address, Url
from sidecar.egress import UNLISTED, EgressRoutes
from sidecar.listeners.authority import Authority, AuthorityError, open_authority
from sidecar.listeners.binding import CannotStart, binding
from sidecar.listeners.calls import CallListener
from sidecar.listeners.egress import EgressListener
from sidecar.listeners.ingress import Limits, Listener
from sidecar.listeners.intercept import HTTPS, InterceptListener, pass_through
from sidecar.telemetry.log import get_logger
from sidecar.upstreams.anywhere import Anywhere
from sidecar.upstreams.dial import EgressDial, Resolve, system_resolve
from sidecar.upstreams.injection import Injection
from sidecar.upstreams.pool import Upstream, tls_context
from sidecar.upstreams.tunnel import Tunnels

if TYPE_CHECKING:
    from sidecar.clock import Clock, Ids
    from sidecar.config.load import Loaded
    from sidecar.config.schema import PolicyFile, Rung, Tls
    from sidecar.errors import ClientError
    from sidecar.exchange import Exchange
    from sidecar.pipeline import Handler, Services


def _urls(policy: PolicyFile) -> list[Url]:
    """The upstreams of an egress policy file."""
    if policy.upstream is not None:
        return [policy.upstream]
    named = (listed.partition(":") for listed in policy.hosts)
    return [Url("https", host, int(port or 443)) for host, _, port in named]


OVERRIDES: Final = 255
"""Addresses 127.66.0.n that sidecars on one machine share among their apps: n is below this."""


class EgressPlane:
    """All that serves the app's own calls."""

    def __init__(
        self,
        loaded: Loaded,
        services: Services,
        ids: Ids,
        limits: Limits,
        *,
        on_refused: Callable[[str, ClientError], None],
    ) -> None:
        """Raises `CannotStart`."""
        config = loaded.config
        self._loaded = loaded
        self._clock: Clock = services.clock
        self._metrics = services.metrics
        self._ids = ids
        self._log = get_logger("sidecar.egress")
        self._bound: list[Address] = []
        """Where its listeners listen."""
        self._dial = EgressDial(config.egress.allow_private, lambda: self._bound)
        self.upstreams: list[Upstream] = []
        self.tunnels = Tunnels(clock=self._clock, dial=self._dial)
        self.anywhere = Anywhere(
            clock=self._clock, ids=ids, cells=self._metrics.upstream(UNLISTED), resolve=self._dial.find
        )
        self.routes = EgressRoutes(
            loaded.policies,
            {it.name: self._pools(it) for it in loaded.policies if it.direction == "egress"},
            self.anywhere,
            self.tunnels,
            services,
            unlisted=config.egress.unlisted,
            purgers=config.trusted.debug,
            others=pools((it for it in loaded.policies if it.direction == "egress"), self._other),
        )
        self.homes = {
            route.name: urls[0]
            for policy in loaded.policies
            if policy.direction == "egress" and len(urls := _urls(policy)) == 1
            for route in policy.routes
        }
        """Where routes ask when a path is all that is known, by their names."""
        self.authority = self._authority()
        self._limits = limits
        self._on_refused = on_refused
        self.listeners: list[Listener] = []
        self.addresses: dict[str, tuple[Address, ...]] = {}
        """Where the listeners listen, by their keys."""
        self.shown: dict[str, str] = {}
        """Where the listeners listen, for the log."""

    # -- building ------------------------------------------------------------------------------

    def _pools(self, policy: PolicyFile) -> dict[str, Upstream]:
        """The pools of a policy file, as `EgressRoutes` takes them."""
        inject = Injection.of(policy.inject)
        if policy.upstream is not None:
            pool = self._pool(policy.name, policy.upstream, policy.connect_to, policy.tls, inject=inject)
            return {"": pool}
        found = {}
        for listed, url in zip(policy.hosts, _urls(policy), strict=True):
            name = policy.name if len(policy.hosts) == 1 else f"{policy.name}/{listed}"
            found[listed] = self._pool(name, url, policy.connect_to, policy.tls, listed=True, inject=inject)
        return found

    def _other(self, name: str, rung: Rung) -> Upstream:
        """The pool of an upstream that a fallback asks."""
        return self._pool(name, *rung.target)

    def _pool(
        self,
        name: str,
        url: Url,
        connect_to: Address | None,
        tls: Tls,
        *,
        listed: bool = False,
        inject: Injection | None = None,
    ) -> Upstream:
        """`listed`: the URL is made of a host that the file lists, no address of its own."""
        context = None
        if url.scheme == "https":
            try:
                context = tls_context(tls.ca, tls.cert, tls.key, verify=tls.verify)
            except (OSError, ssl.SSLError) as error:
                raise CannotStart(f"tls of upstream {name}: {error}") from error
        cells = self._metrics.upstream(name)
        cells.external = True
        upstream = Upstream(
            name,
            connect_to or url.address,
            clock=self._clock,
            ids=self._ids,
            cells=cells,
            tls=context,
            server_name=url.host,
            resolve=self._resolve_of(connect_to or (None if listed else url.address)),
            egress=True,
            url=url,
            inject=inject,
        )
        self.upstreams.append(upstream)
        return upstream

    def _resolve_of(self, named: Address | None) -> Resolve:
        """An address that a policy file itself gives is as good as listed; a name may lead anywhere."""
        return system_resolve if named is not None and named.literal else self._dial.find

    def _authority(self) -> Authority | None:
        loaded = self._loaded
        if not loaded.hosts or (loaded.egress is None and not loaded.config.listen.intercept):
            return None
        try:
            authority = open_authority(loaded.ca_directory, loaded.hosts, self._clock.wall())
        except AuthorityError as error:
            raise CannotStart(f"ca.dir: {error}") from error
        if authority.changed:
            self._log.warning(
                "the local CA has changed", change=authority.changed, bundle=str(authority.bundle)
            )
        return authority

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Binds the listeners that are configured. Raises `CannotStart`."""
        loaded = self._loaded
        listen = loaded.config.listen
        if loaded.egress is not None:
            await self._bind("listen.egress", self._egress_listener(), (loaded.egress,))
        if listen.intercept:
            await self._bind("listen.intercept", self._intercept_listener(), listen.intercept)
        for policy in loaded.policies:
            if policy.takeover:
                listener = self._takeover_listener(policy)
                await self._bind(f"takeover of {policy.name}", listener, policy.takeover)

    async def _bind(self, key: str, listener: Listener, addresses: tuple[Address, ...]) -> None:
        self.listeners.append(listener)
        bound = []
        for address in addresses:
            with binding(key, address):
                bound.append(await listener.start(address))
        self._bound += bound
        self.addresses[key.removeprefix("listen.")] = tuple(bound)
        self.shown[key.removeprefix("listen.").replace(" ", "_")] = ", ".join(map(str, bound))

    async def override(self) -> Address:
        """Where a hosts override may lead: an address of this machine whose port 443 intercepts.

        Where `listen.intercept` has none, a loopback address of its own is bound. Raises `CannotStart`.
        """
        for address in self.addresses.get("intercept", ()):
            if address.port == HTTPS:
                return address.reached
        listener = self._intercept_listener()
        for last in range(1, OVERRIDES):
            try:
                bound = await listener.start(Address(f"127.66.0.{last}", HTTPS))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise CannotStart(error.strerror or str(error)) from error
                continue
            self.listeners.append(listener)
            self._bound.append(bound)
            return bound
        raise CannotStart("another process listens on port 443 of all addresses")

    def _egress_listener(self) -> EgressListener:
        return EgressListener(
            self._limits,
            clock=self._clock,
            ids=self._ids,
            cells=self._metrics.listener("egress"),
            debug=self._loaded.config.trusted.debug,
            on_refused=self._on_refused,
            routes=self._current,
            authority=self.authority,
            on_failed=self._tls_failed("egress"),
        )

    def _intercept_listener(self) -> InterceptListener:
        return InterceptListener(
            self._limits,
            pass_through(self._current),
            clock=self._clock,
            ids=self._ids,
            cells=self._metrics.listener("intercept"),
            debug=self._loaded.config.trusted.debug,
            on_refused=self._on_refused,
            routes=self._current,
            authority=self.authority,
            on_failed=self._tls_failed("intercept"),
        )

    def _takeover_listener(self, policy: PolicyFile) -> CallListener:
        def route(exchange: Exchange) -> Handler:
            return self.routes.taken_over(policy.name, exchange)

        return CallListener(
            self._limits,
            route,
            clock=self._clock,
            ids=self._ids,
            cells=self._metrics.listener("takeover"),
            debug=self._loaded.config.trusted.debug,
            on_refused=self._on_refused,
        )

    def _current(self) -> EgressRoutes:
        return self.routes

    def _tls_failed(self, listener: str) -> Callable[[str, str, str], None]:
        def failed(peer: str, host: str, reason: str) -> None:
            self._log.warning("no tls", listener=listener, client=peer, host=host or None, reason=reason)

        return failed

    @property
    def connections(self) -> int:
        return sum(listener.connections for listener in self.listeners)

    def sweep(self, now: float) -> None:
        """Called about once a second."""
        for part in self._swept():
            part.sweep(now)

    def _swept(self) -> Iterator[Listener | Upstream | Tunnels | Anywhere]:
        yield from self.listeners
        yield from self.upstreams
        yield self.tunnels
        yield self.anywhere

    async def drain(self, seconds: float) -> int:
        """No new calls; those in flight get `seconds`. Returns how many connections were cut off."""
        self.tunnels.draining = True
        return sum(await asyncio.gather(*(listener.drain(seconds) for listener in self.listeners)))

    def close(self) -> None:
        for listener in self.listeners:
            listener.stop_accepting()
        for upstream in self.upstreams:
            upstream.close()
        self.tunnels.close()
        self.anywhere.close()
