"""Two connections joined: after a 101, bytes go both ways until both sides are done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.exchange import Exchange, Stream, Tunnel

if TYPE_CHECKING:
    from sidecar.listeners.protocol import ServerProtocol


async def splice(exchange: Exchange, client: ServerProtocol, from_client: Stream, tunnel: Tunnel) -> None:
    """Returns when both directions have ended; raises what broke either of them.

    An end of one direction is passed on as a half-close where the transport can (RFC 6455, 7.1.1
    needs the other direction to stay open for the closing handshake).
    """
    upward = asyncio.get_running_loop().create_task(_upward(exchange, from_client, tunnel))
    tunnel.on_end(lambda _: from_client.finish())
    try:
        await _downward(exchange, client, tunnel)
        await upward
    finally:
        if upward.done() and not upward.cancelled():
            upward.exception()  # what broke one direction has ended the other
        upward.cancel()
        tunnel.close()


async def _upward(exchange: Exchange, from_client: Stream, tunnel: Tunnel) -> None:
    while data := await from_client.read():
        exchange.received += len(data)
        tunnel.write(data)
        await tunnel.drain()
    tunnel.write_eof()


async def _downward(exchange: Exchange, client: ServerProtocol, tunnel: Tunnel) -> None:
    inbound = tunnel.inbound
    assert inbound is not None
    while data := await inbound.read():
        transport = client.transport
        if transport is None:
            return
        transport.write(data)
        exchange.sent += len(data)
        await client.drain()
    if client.transport is not None and client.transport.can_write_eof():
        client.transport.write_eof()
