"""Calls to hosts that no policy file lists: a small pool for each, made when it is first called."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from sidecar.config.addresses import Address
from sidecar.decisions.reachable import DisguisedAddress, NotAHost, canonical_host
from sidecar.errors import BadRequest, EgressDenied
from sidecar.upstreams.pool import Upstream

if TYPE_CHECKING:
    from sidecar.clock import Clock, Ids
    from sidecar.exchange import Exchange, Response
    from sidecar.upstreams.dial import Resolve
    from sidecar.upstreams.pool import Cells

MOST_HOSTS: Final = 256
"""Hosts that kept connections are remembered for; the one called least recently goes first."""


class Anywhere:
    """Plain HTTP to whichever host a request names."""

    def __init__(self, *, clock: Clock, ids: Ids, cells: Cells, resolve: Resolve) -> None:
        self._clock = clock
        self._ids = ids
        self._cells = cells
        self._resolve = resolve
        self._upstreams: OrderedDict[bytes, Upstream] = OrderedDict()
        self._leaving: set[Upstream] = set()
        """Forgotten, with requests still in flight."""
        cells.idle = lambda: sum(upstream.idle for upstream in self._upstreams.values())

    @property
    def connections(self) -> int:
        """All open connections."""
        return sum(it.connections for it in (*self._upstreams.values(), *self._leaving))

    def handler(self, idle: float | None) -> Callable[[Exchange], Awaitable[Response]]:
        """As `Upstream.handler`."""

        async def attempt(exchange: Exchange) -> Response:
            return await self._upstream(exchange.request.host).attempt(exchange, idle)

        return attempt

    def _upstream(self, host: bytes) -> Upstream:
        upstream = self._upstreams.get(host)
        if upstream is not None:
            self._upstreams.move_to_end(host)
            return upstream
        upstream = Upstream(
            host.decode("latin-1"),
            parse_authority(host, 80),
            clock=self._clock,
            ids=self._ids,
            cells=_Shared(self._cells),
            resolve=self._resolve,
            egress=True,
        )
        self._upstreams[host] = upstream
        if len(self._upstreams) > MOST_HOSTS:
            _, oldest = self._upstreams.popitem(last=False)
            self._leaving.add(oldest)
        return upstream

    def sweep(self, now: float) -> None:
        """Called about once a second; see `Upstream.sweep`."""
        for upstream in self._upstreams.values():
            upstream.sweep(now)
        for upstream in tuple(self._leaving):
            upstream.sweep(now)
            if not upstream.connections:
                self._leaving.discard(upstream)

    def close(self) -> None:
        for upstream in (*self._upstreams.values(), *self._leaving):
            upstream.close()
        self._upstreams.clear()
        self._leaving.clear()


class _Shared:
    """The cells of all hosts together, but for `idle`, which each pool would make its own."""

    __slots__ = ("_cells", "idle")

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self.idle: Callable[[], int] | None = None

    def handshake(self, *, resumed: bool) -> None:
        self._cells.handshake(resumed=resumed)

    def tls_failed(self, fault: str) -> None:
        self._cells.tls_failed(fault)

    @property
    def connections_opened(self) -> int:
        return self._cells.connections_opened

    @connections_opened.setter
    def connections_opened(self, value: int) -> None:
        self._cells.connections_opened = value

    @property
    def connections_reused(self) -> int:
        return self._cells.connections_reused

    @connections_reused.setter
    def connections_reused(self, value: int) -> None:
        self._cells.connections_reused = value

    @property
    def connect_failures(self) -> int:
        return self._cells.connect_failures

    @connect_failures.setter
    def connect_failures(self, value: int) -> None:
        self._cells.connect_failures = value


def parse_authority(authority: bytes, port: int | None) -> Address:
    """`host` or `host:port` of a request as an address; `port` where it names none.

    Raises `BadRequest`: for what is no host, for a port that is none (RFC 9110, 4.2.1), and where there must
    be one; and `EgressDenied` for an address in disguise (`decisions.reachable`).
    """
    host, colon, digits = authority.rpartition(b":")
    if not colon or authority.endswith(b"]"):
        host, digits = authority, b""
    if not host:
        raise BadRequest("the request names no host")
    text = host.decode("latin-1")
    try:
        name = canonical_host(text)
    except DisguisedAddress as error:
        raise EgressDenied(f"{text[:64]}: {error}") from None
    except NotAHost as error:
        raise BadRequest(f"{text[:64]}: {error}") from None
    if digits:
        number = int(digits) if digits.isdigit() and len(digits) < 6 else 0
        if not 0 < number < 65536:
            raise BadRequest(f"{digits[:8].decode('latin-1')} is no port: write a number of 1 to 65535")
        return Address(name, number)
    if port is None:
        raise BadRequest("the request names no port: CONNECT takes host:port")
    return Address(name, port)
