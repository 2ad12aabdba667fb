"""The egress half of a process: its pools, its authority, its listeners; built, bound, drained, closed."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sidecar.alternates import pools
from sidecar.config.addresses import Address, Url
from sidecar.egress import UNLISTED, EgressRoutes
from sidecar.listeners.authority import Authority, AuthorityError, open_authority
from sidecar.listeners.binding import CannotStart, binding
from sidecar.listeners.calls import CallListener
from sidecar.listeners.egress import EgressListener
from sidecar.listeners.ingress import Limits, Listener
from sidecar.listeners.intercept import HTTPS, InterceptListener, Interceptor, pass_through
from sidecar.state import Use
from sidecar.telemetry.complaints import TlsComplaints
from sidecar.telemetry.log import get_logger
from sidecar.upstreams.anywhere import Anywhere
from sidecar.upstreams.dial import EgressDial, Resolve, system_resolve
from sidecar.upstreams.injection import Injection
from sidecar.upstreams.kept import KeptPools, SpareContexts
from sidecar.upstreams.names import Names
from sidecar.upstreams.pool import Upstream
from sidecar.upstreams.tls import UpstreamTls, tls_context
from sidecar.upstreams.tunnel import Tunnels

if TYPE_CHECKING:
    import socket

    from sidecar.clock import Clock, Ids
    from sidecar.config.inject_policy import Inject
    from sidecar.config.load import Loaded
    from sidecar.config.schema import PolicyFile, Tls
    from sidecar.errors import ClientError
    from sidecar.exchange import Exchange
    from sidecar.pipeline import Handler, Services
    from sidecar.upstreams.resolver import Resolver


def _urls(policy: PolicyFile) -> list[Url]:
    """The upstreams of an egress policy file."""
    if policy.upstream is not None:
        return [policy.upstream]
    named = (listed.partition(":") for listed in policy.hosts)
    return [Url("https", host, int(port or 443)) for host, _, port in named]


def _homes(policies: Sequence[PolicyFile]) -> dict[str, Url]:
    return {
        route.name: urls[0]
        for policy in policies
        if policy.direction == "egress" and len(urls := _urls(policy)) == 1
        for route in policy.routes
    }


def context_of(name: str, url: Url, tls: Tls, spare: UpstreamTls | None = None) -> UpstreamTls | None:
    """How TLS is spoken to an upstream, as `spare` does if there is one; None where it is not.

    Raises `CannotStart`.
    """
    if url.scheme != "https":
        return None
    if spare is not None:
        return spare
    try:
        return tls_context(tls.ca, tls.cert, tls.key, verify=tls.verify)
    except (OSError, ssl.SSLError) as error:
        raise CannotStart(f"tls of upstream {name}: {error}") from error


def authority_of(loaded: Loaded, wall: float) -> Authority | None:
    """The authority that signs for the hosts of policy files; None where there are none to sign for.

    Raises `CannotStart`. Writes files.
    """
    if not loaded.hosts or (loaded.egress is None and not loaded.config.listen.intercept):
        return None
    try:
        return open_authority(loaded.ca_directory, loaded.hosts, wall)
    except AuthorityError as error:
        raise CannotStart(f"ca.dir: {error}") from error


def addresses_of(loaded: Loaded) -> list[tuple[str, tuple[Address, ...]]]:
    """Where the app's calls are listened for, by the key that says so."""
    found: list[tuple[str, tuple[Address, ...]]] = []
    if loaded.egress is not None:
        found.append(("listen.egress", (loaded.egress,)))
    if loaded.config.listen.intercept:
        found.append(("listen.intercept", loaded.config.listen.intercept))
    found += [(f"takeover of {it.name}", it.takeover) for it in loaded.policies if it.takeover]
    return found


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
        use: Use | None = None,
        spares: SpareContexts | None = None,
        inherited: Mapping[str, Sequence[socket.socket]] = MappingProxyType({}),
    ) -> None:
        """`use` learns what is compiled at first; `spares` are contexts made ahead; `inherited` are sockets
        that listen already, by the address as it is configured. Raises `CannotStart`.
        """
        config = loaded.config
        self._loaded = loaded
        self._clock: Clock = services.clock
        self._metrics = services.metrics
        self._ids = ids
        self._log = get_logger("sidecar.egress")
        self._inherited = inherited
        self._bound: list[Address] = []
        """Where its listeners listen."""
        self._complain = TlsComplaints(self._clock, self._log)
        self._resolver: Resolver | None = None
        self._servers: tuple[Address, ...] = ()
        self._dial = EgressDial(
            config.egress.allow_private, lambda: self._bound, self._names(loaded), clock=self._clock
        )
        self.pools = KeptPools()
        self._spares = spares or SpareContexts()
        self._services = services
        self.tunnels = Tunnels(clock=self._clock, dial=self._dial)
        self.anywhere = Anywhere(
            clock=self._clock, ids=ids, cells=self._metrics.upstream(UNLISTED), resolve=self._dial.find
        )
        first = self.compile(loaded, loaded.policies, use or Use())
        self.current: Callable[[], EgressRoutes] = lambda: first
        """The routes of the generation in force: set by whoever swaps generations."""
        self.homes = _homes(loaded.policies)
        """Where routes ask when a path is all that is known, by their names."""
        self.authority = self._authority()
        self._limits = limits
        self._on_refused = on_refused
        self.listeners: list[Listener] = []
        self.listening: list[tuple[Listener, tuple[Address, ...]]] = []
        """Those that are configured, with their addresses as they are written."""
        self.addresses: dict[str, tuple[Address, ...]] = {}
        """Where the listeners listen, by their keys."""
        self.shown: dict[str, str] = {}
        """Where the listeners listen, for the log."""

    # -- building ------------------------------------------------------------------------------

    @property
    def routes(self) -> EgressRoutes:
        return self.current()

    @property
    def upstreams(self) -> list[Upstream]:
        return self.pools.there

    def compile(self, loaded: Loaded, policies: Sequence[PolicyFile], use: Use) -> EgressRoutes:
        """The routes of a configuration; nothing is served by them yet. Raises `CannotStart`.

        `policies`: what of its files counts. `use` learns where the upstreams are.
        """
        files = [it for it in policies if it.direction == "egress"]
        return EgressRoutes(
            policies,
            {it.name: self._pools(loaded, it, use) for it in files},
            self.anywhere,
            self.tunnels,
            self._services,
            unlisted=loaded.config.egress.unlisted,
            purgers=loaded.config.trusted.debug,
            others=pools(files, lambda name, rung: self._pool(loaded, use, name, *rung.target)),
        )

    @staticmethod
    def urls(policy: PolicyFile, app: Url) -> list[Url]:
        """Where the requests of a policy file of either plane go; `app`: where those of ingress do."""
        return _urls(policy) if policy.direction == "egress" else [policy.upstream or app]

    def adopt(self, loaded: Loaded, limits: Limits, authority: Authority | None) -> None:
        """What the listeners, the resolver and the authority are to heed from now on."""
        self._loaded = loaded
        self._limits = limits
        self.homes.clear()
        self.homes.update(_homes(loaded.policies))
        if authority is not None:
            self.authority = authority
        for listener in self.listeners:
            listener.limits = limits
            listener.believe((), loaded.config.trusted.debug)
            if isinstance(listener, Interceptor):
                listener.authority = self.authority
        self._dial.follow(loaded.config.egress.allow_private, self._names(loaded))

    def _names(self, loaded: Loaded) -> Resolve:
        """Who resolves the names of hosts that the app calls."""
        files = [it for it in loaded.policies if it.direction == "egress"]
        if not files and loaded.egress is None:
            return system_resolve
        # dnspython takes a while to load, which a sidecar without egress need not wait for.
        from sidecar.upstreams.name_servers import SystemServers, fixed
        from sidecar.upstreams.resolver import Resolver

        servers = loaded.config.dns.servers
        if self._resolver is None or servers != self._servers:
            asked = fixed(servers) if servers else SystemServers()
            self._servers = servers
            if self._resolver is None:
                self._resolver = Resolver(asked, clock=self._clock, cells=self._metrics.dns, log=self._log)
            else:
                self._resolver.ask(asked)
        written = [it.connect_to or (it.upstream.address if it.upstream else None) for it in files]
        written += [
            rung.connect_to or rung.upstream.address
            for it in files
            for route in it.routes
            for rung in route.fallback or ()
            if rung.upstream is not None
        ]
        return Names(
            self._resolver.resolve,
            written=[address.host for address in written if address is not None],
            listed=loaded.hosts,
        )

    def _pools(self, loaded: Loaded, policy: PolicyFile, use: Use) -> dict[str, Upstream]:
        """The pools of a policy file, as `EgressRoutes` takes them."""
        if policy.upstream is not None:
            where = policy.upstream, policy.connect_to, policy.tls
            return {"": self._pool(loaded, use, policy.name, *where, inject=policy.inject)}
        found = {}
        for listed, url in zip(policy.hosts, _urls(policy), strict=True):
            name = policy.name if len(policy.hosts) == 1 else f"{policy.name}/{listed}"
            where = url, policy.connect_to, policy.tls
            found[listed] = self._pool(loaded, use, name, *where, listed=True, inject=policy.inject)
        return found

    def _pool(
        self,
        loaded: Loaded,
        use: Use,
        name: str,
        url: Url,
        connect_to: Address | None,
        tls: Tls,
        *,
        listed: bool = False,
        inject: Inject | None = None,
    ) -> Upstream:
        """`listed`: the URL is made of a host that the file lists, no address of its own."""
        use.places[name] = (str(url), connect_to)
        use.shown.add(("upstream", name))
        cells = self._metrics.upstream(name)
        cells.external = True

        def make() -> Upstream:
            return Upstream(
                name,
                connect_to or url.address,
                clock=self._clock,
                ids=self._ids,
                cells=cells,
                tls=context_of(name, url, tls, self._spares.take((tls, loaded.certificates(tls)))),
                server_name=url.host,
                resolve=self._resolve_of(connect_to or (None if listed else url.address)),
                egress=True,
                url=url,
                complain=self._complain,
                inject=Injection.of(inject) if inject is not None else None,
            )

        key = (name, url, connect_to, tls, loaded.certificates(tls), listed, inject)
        return self.pools.get(key, make)

    def _resolve_of(self, named: Address | None) -> Resolve:
        """An address that a policy file itself gives is as good as listed; a name may lead anywhere."""
        return system_resolve if named is not None and named.literal else self._dial.find

    def _authority(self) -> Authority | None:
        authority = authority_of(self._loaded, self._clock.wall())
        self.told(authority)
        return authority

    def told(self, authority: Authority | None) -> None:
        """Says in the log what whoever deploys the bundle must know."""
        if authority is not None and authority.changed:
            self._log.warning(
                "the local CA has changed", change=authority.changed, bundle=str(authority.bundle)
            )

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Binds the listeners that are configured. Raises `CannotStart`."""
        takeovers = iter([it for it in self._loaded.policies if it.takeover])
        for key, addresses in addresses_of(self._loaded):
            if key == "listen.egress":
                listener: Listener = self._egress_listener()
            elif key == "listen.intercept":
                listener = self._intercept_listener()
            else:
                listener = self._takeover_listener(next(takeovers))
            self.listeners.append(listener)
            self.listening.append((listener, addresses))
            bound = []
            for address in addresses:
                with binding(key, address):
                    bound.append(await listener.start(address, self._inherited.get(str(address), ())))
            self.listen_at(key, bound)

    def listen_at(self, key: str, bound: Sequence[Address]) -> None:
        """The listener with this key listens there: in this process, or in its workers."""
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
        return self.current()

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

    def _swept(self) -> Iterator[Listener | KeptPools | Tunnels | Anywhere]:
        yield from self.listeners
        yield self.pools
        yield self.tunnels
        yield self.anywhere

    async def drain(self, seconds: float) -> int:
        """No new calls; those in flight get `seconds`. Returns how many connections were cut off."""
        self.tunnels.draining = True
        return sum(await asyncio.gather(*(listener.drain(seconds) for listener in self.listeners)))

    async def close(self) -> None:
        for listener in self.listeners:
            listener.stop_accepting()
        self.pools.close()
        self.tunnels.close()
        self.anywhere.close()
        if self._resolver is not None:
            await self._resolver.close()
