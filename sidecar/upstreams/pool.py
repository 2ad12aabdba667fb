"""An upstream: where it is, and the kept-alive connections to it. The innermost handler.

Where its name stands for several addresses, an attempt goes to one that has not failed its request before:
over a kept connection, or a new one; and when one does not take the connection, to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol

from sidecar.clock import Clock, Ids
from sidecar.config.addresses import Address, Url
from sidecar.decisions.replay import IDEMPOTENT
from sidecar.errors import ConnectFailed, SidecarError, TlsFailed
from sidecar.exchange import Exchange, Request, Response, Stream
from sidecar.headers import RESPONSE_KINDS, Lines
from sidecar.heads import ResponseHeads
from sidecar.upstreams.addresses import Addresses
from sidecar.upstreams.connection import Stale, UpstreamConnection
from sidecar.upstreams.dial import Dial, Resolve, dial, in_time, over, reach, system_resolve
from sidecar.upstreams.forward import request_head
from sidecar.upstreams.injection import Injection
from sidecar.upstreams.race import race
from sidecar.upstreams.tls import UpstreamTls

CONNECT_TIMEOUT: Final = 5.0
"""Seconds to make a connection, TLS included, where no attempt timeout is shorter. Of several addresses, each
gets its share of what is left for TLS."""
KEEP_IDLE: Final = 4.0
"""Seconds that an unused connection is kept. Below the 5 s after which uvicorn and Node close theirs:
a request that meets such a close must be sent anew, which only idempotent ones may."""
MOST_IDLE: Final = 256
KEEP_IDLE_PROVIDER: Final = 50.0
"""The same for https to providers, where a handshake costs a millisecond and two round trips. Below the 60 s
of AWS's load balancers and the 75 s of nginx; Google and Cloudflare keep them for minutes."""
MOST_IDLE_PROVIDER: Final = 64


class Cells(Protocol):
    """What the pool counts (`telemetry.metrics`)."""

    connections_opened: int
    connections_reused: int
    connect_failures: int
    idle: Callable[[], int] | None

    def handshake(self, *, resumed: bool) -> None: ...
    def tls_failed(self, fault: str) -> None: ...


TlsComplaint = Callable[[str, str, TlsFailed], None]
"""Hears of TLS that failed: the upstream's name, the address, the error."""


class Upstream:
    """A pool of connections to one server; calling it makes one attempt."""

    def __init__(
        self,
        name: str,
        address: Address,
        *,
        clock: Clock,
        ids: Ids,
        cells: Cells,
        tls: UpstreamTls | None = None,
        server_name: str | None = None,
        resolve: Resolve = system_resolve,
        egress: bool = False,
        url: Url | None = None,
        complain: TlsComplaint = lambda *_: None,
        inject: Injection | None = None,
    ) -> None:
        """`resolve` also says to which addresses connections may be made.

        `egress`: the requests are the app's own calls, and made out to `url`; `inject` is put on each.
        """
        self.name = name
        self.url = url
        self.address = address
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.response_lines = Lines(RESPONSE_KINDS)
        self.response_heads = ResponseHeads(RESPONSE_KINDS)
        self._ids = ids
        self._cells = cells
        self._tls = tls
        self._addresses = Addresses(address, clock, resolve)
        self._egress = egress
        self._inject = inject
        self._server_name = server_name
        self._complain = complain
        provider = egress and tls is not None
        self._keep_idle = KEEP_IDLE_PROVIDER if provider else KEEP_IDLE
        self._most_idle = MOST_IDLE_PROVIDER if provider else MOST_IDLE
        self._idle: list[tuple[UpstreamConnection, float]] = []
        self._open: set[UpstreamConnection] = set()
        self.shown()

    def shown(self) -> None:
        """It is the one of its name that metrics show."""
        self._cells.idle = self._idle.__len__

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def connections(self) -> int:
        """All open connections."""
        return len(self._open)

    def handler(self, idle: float | None) -> Callable[[Exchange], Awaitable[Response]]:
        """The pool as a pipeline's innermost handler; `idle` is the route's limit for a silent body."""
        return partial(self.attempt, idle=idle)

    async def attempt(self, exchange: Exchange, idle: float | None) -> Response:
        """One attempt. A kept connection that turns out to be closed is replaced without counting.

        Raises `ConnectFailed`, `ConnectionReset`, `BadUpstreamResponse`.
        """
        exchange.attempts += 1
        exchange.upstream = self.name
        head = request_head(exchange, self._ids, egress=self._egress, inject=self._inject)
        while True:
            connection = self._take() if not exchange.avoid else self._take_elsewhere(exchange.avoid)
            kept = connection is not None
            if connection is None:
                connection = await self._connect(exchange)
            else:
                self._cells.connections_reused += 1
                exchange.address = connection.address
            answer = connection.send(exchange, head, idle)
            try:
                response = await answer
            except Stale:
                if not kept or not _may_resend(exchange.request):
                    raise
            except asyncio.CancelledError:
                connection.give_up(answer)
                raise
            else:
                break
        if self._tls is not None and not kept and connection.tls is not None:
            self._tls.answered(connection.tls)
        if self._egress:
            _keep_id(exchange, response)
        return response

    def _take(self) -> UpstreamConnection | None:
        idle = self._idle
        while idle:
            connection, _ = idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        return None

    def _take_elsewhere(self, avoid: Sequence[str]) -> UpstreamConnection | None:
        avoid = self._addresses.avoidable(avoid)
        for position in range(len(self._idle) - 1, -1, -1):
            connection, _ = self._idle[position]
            if connection.address not in avoid:
                del self._idle[position]
                if connection.transport is not None and not connection.transport.is_closing():
                    return connection
        return None

    async def _connect(self, exchange: Exchange) -> UpstreamConnection:
        """A new connection, to the first address that takes one.

        Raises `ConnectFailed`, and what `resolve` says of addresses that may not be called.
        """
        until = self.clock.now() + CONNECT_TIMEOUT
        try:
            with in_time(self.clock, CONNECT_TIMEOUT):
                await self._addresses.find()
        except SidecarError:
            self._cells.connect_failures += 1
            raise
        left = self._addresses.ordered(exchange.avoid)
        failure = ConnectFailed(f"{self.address.host} has no address")
        while left:
            address = left[0]
            by: Dial = dial
            exchange.address = address.host
            try:
                if len(left) > 1:
                    address, by = await self._race(left, until)
                    exchange.address = address.host
                left.remove(address)
                patience = max(until - self.clock.now(), 0.0) / (len(left) + 1)
                return await self._connect_to(address, by, patience)
            except ConnectFailed as error:
                failure = error
        raise failure

    async def _race(self, left: list[Address], until: float) -> tuple[Address, Dial]:
        """The first of `left` that takes a connection, and a way to use that; those that fail leave `left`.

        Raises `ConnectFailed` when all have.
        """

        def failed(address: Address) -> None:
            self._failed(address)
            left.remove(address)

        try:
            with in_time(self.clock, until - self.clock.now()):
                sock, address = await race(
                    tuple(left), self.clock, failed=failed, overtaken=self._addresses.failed
                )
        except ConnectFailed:
            for address in tuple(left):
                failed(address)
            raise
        return address, over(sock)

    async def _connect_to(self, address: Address, by: Dial, patience: float) -> UpstreamConnection:
        """A connection to `address`, TLS included. Raises `ConnectFailed`."""
        connection = UpstreamConnection(self)
        connection.address = address.host
        tls = self._tls
        if tls is not None:
            tls.begin(self.clock.now())
        try:
            await reach(by, connection, address, tls, self._server_name, clock=self.clock, patience=patience)
        except ConnectFailed as error:
            self._failed(address)
            if isinstance(error, TlsFailed):
                self.tls_failed(address.host, error)
            raise
        self._addresses.connected(address)
        self._cells.connections_opened += 1
        if connection.transport is not None:  # it may be lost already
            self._open.add(connection)
            if tls is not None:
                connection.tls = connection.transport.get_extra_info("ssl_object")
                self._cells.handshake(resumed=tls.made(connection.tls, self.clock.now()))
        return connection

    def _failed(self, address: Address) -> None:
        self._cells.connect_failures += 1
        self._addresses.failed(address)

    def tls_failed(self, address: str, error: TlsFailed) -> None:
        """TLS to `address` failed, while it was begun or by what the upstream said soon after."""
        if self._tls is not None:
            self._tls.failed()
        self._cells.tls_failed(error.fault)
        self._complain(self.name, address, error)

    def release(self, connection: UpstreamConnection) -> None:
        """Takes a connection back whose exchange is over."""
        if len(self._idle) < self._most_idle:
            self._idle.append((connection, self.clock.now()))
        elif connection.transport is not None:
            connection.transport.close()

    def forget(self, connection: UpstreamConnection) -> None:
        self._open.discard(connection)
        for position, (idle, _) in enumerate(self._idle):
            if idle is connection:
                del self._idle[position]
                return

    def sweep(self, now: float) -> None:
        """Called about once a second: closes what was idle for long, ends bodies that stand still."""
        fresh = []
        for connection, since in self._idle:
            transport = connection.transport
            if transport is not None and now - since > self._keep_idle:
                transport.close()
            else:
                fresh.append((connection, since))
        self._idle[:] = fresh
        for connection in tuple(self._open):
            connection.check(now)

    def leave(self) -> None:
        """No new request comes, save from those in flight: keeps no connection that none of them uses."""
        self._most_idle = 0
        for connection, _ in self._idle:
            if connection.transport is not None:
                connection.transport.close()
        self._idle.clear()

    def close(self) -> None:
        for connection in tuple(self._open):
            connection.abort()
        self._idle.clear()


def _keep_id(exchange: Exchange, response: Response) -> None:
    """Providers name an answer by an id of theirs, which the app's log and their support know it by."""
    for line in response.headers:
        if line.name == b"x-request-id":
            exchange.id_line = line.wire
            return


def _may_resend(request: Request) -> bool:
    """A server that closes an idle connection has not read what arrived after it (RFC 9112, 9.3.1): an
    idempotent request whose body is still here is sent again.
    """
    return request.method in IDEMPOTENT and not isinstance(request.body, Stream)
