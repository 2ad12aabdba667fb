"""TLS for the hosts that policies own, on whatever connection their client made: the intercept listener's,
for apps whose hosts file leads here, and those of a CONNECT.

The ClientHello is read first. It names a host: one of ours is answered with a leaf of the local authority,
and the requests inside go through the pipeline; any other is passed through byte for byte, or refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from sidecar.errors import BadRequest, rescue
from sidecar.exchange import Exchange, Request, Response
from sidecar.listeners import hello, probe, reply
from sidecar.listeners.calls import CallListener, Routes
from sidecar.listeners.hello import NotTls, read_hello
from sidecar.listeners.parser import Incoming
from sidecar.listeners.protocol import ServerProtocol
from sidecar.listeners.tls import TlsTransport

if TYPE_CHECKING:
    from sidecar.listeners.authority import Authority
    from sidecar.listeners.ingress import Limits
    from sidecar.listeners.memo import Memo
    from sidecar.listeners.parser import RequestParser
    from sidecar.pipeline import Handler

HTTPS: Final = 443


class Interceptor(CallListener):
    """A listener that can take TLS for the hosts of policies."""

    door: ClassVar[str]
    """By which its TLS comes in."""

    def __init__(
        self,
        *arguments: Any,
        routes: Routes,
        authority: Authority | None,
        on_failed: Callable[[str, str, str], None],
        **settings: Any,
    ) -> None:
        """As `Listener`; `on_failed` hears of TLS that came to nothing: client, host if known, reason.

        Without an `authority` no policy file lists hosts, and there is nothing to intercept.
        """
        super().__init__(*arguments, **settings)
        self.routes = routes
        self.authority = authority
        self._on_failed = on_failed
        self._doors: dict[str, Door] = {}

    def intercept(
        self, opening: Opening, raw: asyncio.Transport, data: bytes, name: str, port: int
    ) -> TlsTransport:
        """Answers a ClientHello, and serves what is asked inside of `name`, which must be ours."""
        assert self.authority is not None
        host = f"{name}:{port}"
        door = self._doors.get(host)
        if door is None:
            door = self._doors[host] = Door(self, host)
        serving = door

        def make() -> ServerProtocol:
            self._cells.intercepted += 1
            protocol = ServerProtocol(serving)
            self.succeed(opening, protocol)
            return protocol

        def failed(reason: str) -> None:
            self.failed(opening.peer, host, reason)
            self.forget(opening)

        context = self.authority.context(name, self.clock.wall())
        tls = TlsTransport(raw, context, make, failed)
        tls.begin(data)
        return tls

    def failed(self, peer: str, host: str, reason: str) -> None:
        self._cells.tls_failures += 1
        self._on_failed(peer, host, reason)


class InterceptListener(Interceptor):
    """TLS from the first byte."""

    door = probe.HOSTS

    def protocol(self) -> asyncio.Protocol:
        return Opening(self)


class Door:
    """What a connection made for one host is served by: its listener, with the host's routes."""

    def __init__(self, listener: Interceptor, host: str) -> None:
        """`host` with its port."""
        self._listener = listener
        self._host = host
        self._probe = probe.answers(listener.door)
        self.clock = listener.clock
        self.memo: Memo | None = None
        self.loop = listener.loop
        self.always = listener.always
        self.admit = listener.admit
        self.forget = listener.forget
        self.refused = listener.refused
        self.request_id = listener.request_id
        self.identify = listener.identify
        self.forwarded = listener.forwarded

    @property
    def draining(self) -> bool:
        return self._listener.draining

    @property
    def limits(self) -> Limits:
        return self._listener.limits  # another with each reload; a door outlives many

    def route(self, exchange: Exchange) -> Handler:
        if exchange.request.path.endswith(probe.PATH):
            return self._probe
        return self._listener.routes().intercepted(self._host, exchange)

    def parser(self, on_body_end: Callable[[Incoming], None]) -> RequestParser:
        return self._listener.parser(on_body_end, "https", proxy=False)


class Opening(asyncio.Protocol):
    """A connection of which nothing is known yet but, after a CONNECT, what that asked for."""

    __slots__ = ("_asked", "_data", "_done", "_listener", "_since", "_tls", "peer", "transport", "trusted")

    def __init__(self, listener: Interceptor, asked: tuple[str, int] | None = None) -> None:
        """`asked`: host and port of the CONNECT; the host is one of ours."""
        self._listener = listener
        self._asked = asked
        self._data = b""
        self._since = listener.clock.now()
        self._tls: TlsTransport | None = None
        """Once the ClientHello was answered."""
        self._done = False
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self.trusted = False

    def begin(self, transport: asyncio.Transport, data: bytes) -> None:
        """Goes on with a connection that was another's, and what came in on it already."""
        self.transport = transport
        transport.set_protocol(self)
        transport.resume_reading()
        if data:
            self.data_received(data)

    # -- transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if not self._listener.admit(self):
            self._done = True
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._done or self.transport is None:
            return
        self._data += data
        try:
            found = read_hello(self._data)
        except NotTls as error:
            self._not_tls(str(error))
            return
        if found is not None:
            self._done = True
            self._decide(self.transport, found.name)

    def eof_received(self) -> bool:
        self._left()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._listener.forget(self)
        self._left()

    def _left(self) -> None:
        if self._done:
            return
        self._done = True
        if self._data or self._asked is not None:  # else: a port that somebody looked at
            self._listener.failed(self.peer, self._host, "the client left before it began TLS")

    @property
    def _host(self) -> str:
        return "" if self._asked is None else f"{self._asked[0]}:{self._asked[1]}"

    # -- what becomes of it ----------------------------------------------------------------------

    def _decide(self, raw: asyncio.Transport, name: str | None) -> None:
        routes = self._listener.routes()
        if self._asked is not None:
            host, port = self._asked
            if name is not None and name != host:
                if not routes.share(f"{host}:{port}", f"{name}:{port}"):
                    self._fail(f"the ClientHello asks for {name}", hello.UNRECOGNIZED_NAME)
                    return
                host = name
        elif name is None:
            self._fail("the ClientHello names no host (SNI)", hello.UNRECOGNIZED_NAME)
            return
        else:
            at = raw.get_extra_info("sockname")
            own: int = at[1] if isinstance(at, tuple) else HTTPS
            # A port that only leads here, 8443 for 443 say, is as good as the one it stands for.
            host, port = name, own if routes.owns(f"{name}:{own}") else HTTPS
            if not routes.owns(f"{host}:{port}"):
                self._pass_through(raw, f"{name}:{own}")
                return
        self._tls = self._listener.intercept(self, raw, self._data, host, port)

    def _pass_through(self, raw: asyncio.Transport, authority: str) -> None:
        if self._listener.routes().denies:
            reason = f"no policy file lists {authority}, and egress.unlisted is deny"
            self._fail(reason, hello.UNRECOGNIZED_NAME)
            return
        protocol = PassThrough(self._listener)
        self._listener.succeed(self, protocol)
        raw.set_protocol(protocol)
        protocol.connection_made(raw)
        protocol.begin(authority, self._data)

    def _not_tls(self, what: str) -> None:
        if self._asked is None and what == hello.PLAIN_HTTP and self.transport is not None:
            self.transport.write(_told_in_plain(self._listener.request_id()))
        self._fail(f"{what} instead of TLS")

    def _fail(self, reason: str, alert: int | None = None) -> None:
        self._done = True
        self._listener.failed(self.peer, self._host, reason)
        if self.transport is not None:
            if alert is not None:
                self.transport.write(hello.alert(alert))
            self.transport.close()

    # -- time ----------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Called about once a second: the handshake has the time of a request's head."""
        limit = self._listener.limits.header_timeout
        if self.transport is None or now - self._since <= limit:
            return
        reason = f"no TLS within {limit:g} s"
        if self._tls is not None:
            self._tls.give_up(reason)
            return
        if not self._done:
            self._done = True
            self._listener.failed(self.peer, self._host, reason)
        self.transport.abort()

    def shut_down(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._done = True
        if self._tls is not None:
            self._tls.give_up(None)
            self._listener.forget(self)
        elif self.transport is not None:
            self.transport.abort()


class PassThrough(ServerProtocol):
    """A connection that goes on to the host its ClientHello names: a CONNECT that nobody said aloud."""

    __slots__ = ()

    def begin(self, authority: str, data: bytes) -> None:
        """`data`: all that came in so far."""
        target = authority.encode("ascii")
        request = Request("CONNECT", target, (), host=target, upgrade=True)
        incoming = Incoming(request, keep_alive=False, expect=False, upgrade=True, length=0)
        incoming.complete = True
        self._parser.leftover = data
        self._queue.append(incoming)
        self._advance(self._listener.clock.now())

    async def _answer(self, exchange: Exchange, response: Response, incoming: Incoming) -> None:
        exchange.first_byte = self._listener.clock.now()
        await self._join(exchange, response)

    def _answer_whole(self, exchange: Exchange, response: Response, body: bytes, incoming: Incoming) -> None:
        """There is no tunnel; TLS has one way to say so."""
        exchange.first_byte = self._listener.clock.now()
        if self.transport is not None:
            denied = response.status == 403
            self.transport.write(hello.alert(hello.ACCESS_DENIED if denied else hello.INTERNAL_ERROR))


def _told_in_plain(request_id: str) -> bytes:
    response = rescue(BadRequest("this listener takes TLS"), request_id, "")
    assert isinstance(response.body, bytes)
    ours = b"X-Request-ID: %b\r\n" % request_id.encode()
    head = reply.head(response, method="GET", http10=False, keep_alive=False, ours=ours)
    return head + response.body


def pass_through(routes: Routes) -> Callable[[Exchange], Handler]:
    """The route of the intercept listener's own connections."""
    return lambda exchange: routes().tunnelled(exchange)
