"""The egress listener: a forward proxy for the app, and base URLs by the names of policy files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from sidecar.config.addresses import Address
from sidecar.errors import BadRequest, EgressDenied
from sidecar.listeners import probe
from sidecar.listeners.intercept import Interceptor, Opening
from sidecar.listeners.protocol import ServerProtocol
from sidecar.upstreams.anywhere import parse_authority

if TYPE_CHECKING:
    import socket

    from sidecar.exchange import Exchange, Request
    from sidecar.listeners.parser import Incoming, RequestParser
    from sidecar.pipeline import Handler

ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_BASED: Final = probe.answers(probe.BASE)


class EgressListener(Interceptor):
    """Takes URLs, CONNECT and `/POLICY/…`."""

    door = probe.PROXY

    def __init__(self, limits: Any, **settings: Any) -> None:
        """As `Interceptor`, without a route."""
        super().__init__(limits, self._routed, **settings)
        self._own: set[bytes] = set()
        """What `Host` says to a client that calls the listener itself."""

    async def start(self, address: Address, inherited: Sequence[socket.socket] = ()) -> Address:
        bound = await super().start(address, inherited)
        if bound.unix is None:
            for host in (bound.host, "localhost", "127.0.0.1", "::1"):
                self._own.add(str(Address(host, bound.port)).encode())
        return bound

    def protocol(self) -> asyncio.Protocol:
        return ProxyProtocol(self)

    def parser(
        self, on_body_end: Callable[[Incoming], None], scheme: str | None = None, *, proxy: bool = True
    ) -> RequestParser:
        return super().parser(on_body_end, scheme, proxy=proxy)

    def _routed(self, exchange: Exchange) -> Handler:
        routes = self.routes()
        request = exchange.request
        if request.method == "CONNECT":
            try:
                parse_authority(request.target, None)
            except (BadRequest, EgressDenied) as error:
                return routes.refused(exchange, error)
            return routes.tunnelled(exchange)
        if request.host.lower() in self._own:
            if request.path.endswith(probe.PATH) and routes.names(request.path):
                return _BASED
            return routes.based(exchange)
        return routes.proxied(exchange)

    def interception(self, request: Request) -> tuple[str, int] | None:
        """Host and port of a CONNECT whose TLS is to end here; None: it is a tunnel, or an error."""
        try:
            address = parse_authority(request.target, None)
        except (BadRequest, EgressDenied):
            return None
        return (address.host, address.port) if self.routes().owns(str(address)) else None


class ProxyProtocol(ServerProtocol):
    """One connection of the egress listener."""

    __slots__ = ()

    _listener: EgressListener

    def _takes(self, incoming: Incoming) -> bool:
        request = incoming.request
        if request.method != "CONNECT":
            return False
        # Whatever comes of it: what follows on this connection is not HTTP to this proxy.
        incoming.keep_alive = False
        asked = self._listener.interception(request)
        if asked is None:
            return False
        self._hand_over(asked)
        return True

    def _hand_over(self, asked: tuple[str, int]) -> None:
        """Says that the tunnel stands, and takes the client's TLS at its near end."""
        transport, self.transport = self.transport, None
        self._closing = True
        if transport is None:
            return
        transport.write(ESTABLISHED)
        opening = Opening(self._listener, asked)
        self._listener.succeed(self, opening)
        opening.begin(transport, self._parser.leftover or b"")
