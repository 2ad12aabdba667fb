"""Tunnels to hosts that no policy file lists: bytes both ways, as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from sidecar.errors import BodyBroken
from sidecar.exchange import End, Exchange, Response, Stream
from sidecar.upstreams.anywhere import parse_authority
from sidecar.upstreams.dial import Abortable, Dial, reach

if TYPE_CHECKING:
    from sidecar.clock import Clock

CONNECT_TIMEOUT: Final = 10.0
"""Seconds to make the connection."""
IDLE: Final = 3600.0
"""Seconds without a byte in either direction after which a tunnel is ended, as Envoy's TCP proxy does: what
it carries is unknown, and may be silent for long."""

QUIET: Final = 1.0
"""The same while the sidecar drains."""


class TunnelConnection(Abortable):
    """The far side of a tunnel. It is the `Source` of the bytes it receives."""

    __slots__ = (
        "_callbacks",
        "_drain_waiter",
        "_tunnels",
        "_write_paused",
        "inbound",
        "last_activity",
        "transport",
    )

    def __init__(self, tunnels: Tunnels) -> None:
        self._tunnels = tunnels
        self._callbacks: list[Callable[[End], None]] = []
        self._drain_waiter: asyncio.Future[None] | None = None
        self._write_paused = False
        self.inbound = Stream(self)
        self.last_activity = 0.0
        self.transport: asyncio.Transport | None = None

    # -- transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.last_activity = self._tunnels.clock.now()
        self._tunnels.open_ones.add(self)

    def data_received(self, data: bytes) -> None:
        self.last_activity = self._tunnels.clock.now()
        self.inbound.feed(data)

    def eof_received(self) -> bool:
        self.inbound.finish()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._tunnels.open_ones.discard(self)
        self.resume_writing()
        if exc is None:
            self.inbound.finish()
        else:
            self.inbound.fail(BodyBroken("the tunnel broke"))
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(End.DONE if exc is None else End.BROKEN)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        waiter, self._drain_waiter = self._drain_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # -- source of what comes in ---------------------------------------------------------------

    def pause(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.transport is not None:
            self.last_activity = self._tunnels.clock.now()
            self.transport.resume_reading()

    def abandon(self) -> None:
        self.abort()

    # -- tunnel --------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.last_activity = self._tunnels.clock.now()
            self.transport.write(data)

    def write_eof(self) -> None:
        if self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()

    async def drain(self) -> None:
        if self._write_paused and self.transport is not None:
            self._drain_waiter = asyncio.get_running_loop().create_future()
            await self._drain_waiter

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def on_end(self, callback: Callable[[End], None]) -> None:
        if self.transport is None:
            callback(End.DONE)
        else:
            self._callbacks.append(callback)


class Tunnels:
    """Opens tunnels, and ends those on which nothing moves."""

    def __init__(self, *, clock: Clock, dial: Dial) -> None:
        self.clock = clock
        self.open_ones: set[TunnelConnection] = set()
        self.draining = False
        """What is silent now is ended: nobody can tell whether it would ever speak again."""
        self._dial = dial

    @property
    def connections(self) -> int:
        return len(self.open_ones)

    async def open(self, exchange: Exchange) -> Response:
        """Answers a CONNECT, whose target is `host:port`. Raises `BadRequest` and `ConnectFailed`."""
        address = parse_authority(exchange.request.target, None)
        exchange.attempts += 1
        exchange.upstream = str(address)
        connection = TunnelConnection(self)
        await reach(self._dial, connection, address, None, None, clock=self.clock, patience=CONNECT_TIMEOUT)
        response = Response(200, (), reason=b"Connection established")
        response.tunnel = connection
        return response

    def sweep(self, now: float) -> None:
        """Called about once a second."""
        for connection in tuple(self.open_ones):
            if now - connection.last_activity > (QUIET if self.draining else IDLE):
                connection.abort()

    def close(self) -> None:
        for connection in tuple(self.open_ones):
            connection.abort()
