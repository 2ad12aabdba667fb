"""The ingress listener: clients in front, the app's routes behind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from sidecar.config.addresses import Address, Network, within
from sidecar.errors import ClientError
from sidecar.headers import REQUEST_KINDS, Kind, Lines
from sidecar.heads import RequestHeads
from sidecar.listeners.parser import Incoming, RequestParser
from sidecar.listeners.protocol import ServerProtocol

if TYPE_CHECKING:
    import socket

    from sidecar.clock import Clock, Ids
    from sidecar.exchange import Exchange
    from sidecar.listeners.memo import Memo
    from sidecar.pipeline import Handler
    from sidecar.telemetry.metrics import ListenerCells

_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_HEXADECIMAL: Final = b"0123456789abcdef"
_OURS: Final = Kind.OURS  # a global is found faster than a member of an Enum
FORWARDED: Final = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\n"
_NO: Final = frozenset({b"0", b"false"})
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16
_DASH: Final = ord("-")
_LENGTH: Final = 55


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of the listener. Sizes in bytes, times in seconds."""

    head: int
    body: int | None
    connections: int
    header_timeout: float
    idle: float
    drain: float


BACKLOG: Final = 1024
"""Connections that may wait to be accepted."""


class Connection(Protocol):
    """What a listener knows of a connection that came in by it."""

    transport: asyncio.Transport | None
    peer: str
    trusted: bool

    def check(self, now: float) -> None: ...
    def shut_down(self) -> None: ...
    def abort(self) -> None: ...


class Listener:
    """Listening addresses, and the connections that came in by them."""

    def __init__(
        self,
        limits: Limits,
        route: Callable[[Exchange], Handler],
        *,
        clock: Clock,
        ids: Ids,
        cells: ListenerCells,
        trusted: Sequence[Network] = (),
        debug: Sequence[Network] = (),
        on_refused: Callable[[str, ClientError], None] | None = None,
        scheme: str = "http",
        kinds: Mapping[bytes, Kind] = REQUEST_KINDS,
    ) -> None:
        """`trusted` are the proxies that are believed, `debug` those who may ask for the decision trail."""
        self.limits = limits
        self.route = route
        """Finds the handler of an exchange, and names its route."""
        self.always = b""
        """Header lines of answers to what never became a request."""
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.draining = False
        self.memo: Memo | None = None
        """Of the routes in force: heads that their caches have answered before."""
        self._ids = ids
        self._cells = cells
        self._trusted = trusted
        self._debug = debug
        self._on_refused = on_refused
        self._scheme = scheme
        self._lines = Lines(kinds)
        self._heads = RequestHeads(kinds)
        self._connections: set[Any] = set()
        """Of type `Connection`."""
        self._servers: list[asyncio.Server] = []
        self._emptied: asyncio.Event = asyncio.Event()

    # -- life ----------------------------------------------------------------------------------

    async def start(self, address: Address, inherited: Sequence[socket.socket] = ()) -> Address:
        """Binds one more address; returns it with its real port. Raises `OSError`.

        `inherited` are sockets that are bound to it already: then none is made.
        """
        loop = asyncio.get_running_loop()
        if inherited:
            for sock in inherited:
                self._servers.append(await self.accept_from(address, sock))
            return address if address.unix else Address(address.host, inherited[0].getsockname()[1])
        if address.unix is not None:
            self._servers.append(await loop.create_unix_server(self.protocol, address.unix))
            return address
        server = await loop.create_server(
            self.protocol, address.host, address.port, backlog=BACKLOG, reuse_address=True
        )
        self._servers.append(server)
        return Address(address.host, server.sockets[0].getsockname()[1])

    async def accept_from(self, address: Address, sock: socket.socket) -> asyncio.Server:
        """Accepts from a socket that listens already, and that others may accept from as well.

        The socket is closed with the server; what waits on it then is for those others.
        """
        loop = asyncio.get_running_loop()
        if address.unix is not None:
            return await loop.create_unix_server(self.protocol, sock=sock)
        return await loop.create_server(self.protocol, sock=sock, backlog=BACKLOG)

    def protocol(self) -> asyncio.Protocol:
        """What serves a new connection."""
        return ServerProtocol(self)

    def believe(self, trusted: Sequence[Network], debug: Sequence[Network]) -> None:
        """From now on, for new connections: as for the constructor."""
        self._trusted = trusted
        self._debug = debug

    def stop_accepting(self) -> None:
        for server in self._servers:
            server.close()

    async def drain(self, seconds: float | None = None, linger: float = 0.0) -> int:
        """Lets what is in flight finish, at most `seconds`, or else `limits.drain`.

        An idle connection ends at once, or has `linger` seconds of these for one more request: its client
        may have sent it already. Returns how many connections were cut off.
        """
        patience = self.limits.drain if seconds is None else seconds
        until = self.clock.now() + patience
        self.stop_accepting()
        if linger:
            # What was accepted just now is made known in the next turn of the loop, and is no newcomer.
            await self.clock.sleep(0)
            await self.clock.sleep(0)
        self.draining = True
        if linger:
            await self._empty_by(min(self.clock.now() + linger, until))
        for connection in tuple(self._connections):
            connection.shut_down()
        await self._empty_by(until)
        cut = len(self._connections)
        for connection in tuple(self._connections):
            connection.abort()
        return cut

    async def _empty_by(self, until: float) -> None:
        """Waits until no connection is left, or the time is up."""
        if self._connections:
            up = asyncio.Event()
            self._emptied = up
            timer = self.clock.arm(until, up.set)
            await up.wait()
            timer.cancel()

    def sweep(self, now: float) -> None:
        """Called about once a second: ends connections whose client is too slow."""
        for connection in tuple(self._connections):
            connection.check(now)

    # -- called by connections -------------------------------------------------------------------

    @property
    def connections(self) -> int:
        return len(self._connections)

    def parser(
        self, on_body_end: Callable[[Incoming], None], scheme: str | None = None, *, proxy: bool = False
    ) -> RequestParser:
        return RequestParser(
            self._lines,
            self._heads,
            scheme=scheme or self._scheme,
            max_head=self.limits.head,
            max_body=self.limits.body,
            on_body_end=on_body_end,
            proxy=proxy,
        )

    def admit(self, connection: Connection) -> bool:
        """Takes a connection in; False when there are too many, or the listener is closing."""
        if connection in self._connections:  # it goes on for another, see `succeed`
            return True
        if self.draining or len(self._connections) >= self.limits.connections:
            self._cells.refused += 1
            return False
        self._connections.add(connection)
        self._cells.accepted += 1
        self._cells.active += 1
        transport = connection.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        connection.peer = peer[0] if isinstance(peer, tuple) else "unix"
        connection.trusted = self._trusts(connection.peer)
        return True

    def succeed(self, old: Connection, new: Connection) -> None:
        """`new` goes on with the connection that `old` began."""
        self._connections.discard(old)
        self._connections.add(new)
        new.peer, new.trusted = old.peer, old.trusted

    def forget(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self._cells.active -= 1
        if self.draining and not self._connections:
            self._emptied.set()

    def refused(self, error: ClientError, peer: str) -> None:
        """Bytes that were not a request were answered with `error`."""
        self._cells.bad_requests += 1
        if self._on_refused is not None:
            self._on_refused(peer, error)

    def request_id(self) -> str:
        """An id for what never became a request."""
        return self._ids.request_id()

    # -- who is asking -------------------------------------------------------------------------

    def identify(self, exchange: Exchange, connection: ServerProtocol) -> None:
        """Settles the ids of an exchange, its client, and what the upstream is told of them."""
        request = exchange.request
        peer = connection.peer
        forwarded_for = proto = host = b""
        forwarded: list[bytes] = []
        trusted = connection.trusted
        request_id = ""
        debug = False
        for line in request.headers if request.ours is None else request.ours:
            if line.kind is not _OURS:
                continue
            name = line.name
            if name == b"x-request-id":
                request_id = valid_request_id(line.value) or request_id
            elif name == b"traceparent":
                exchange.traceparent = parse_traceparent(line.value)
            elif name == b"x-sidecar-debug":
                debug = asks(line.value)
            elif not trusted:
                continue
            elif name == b"x-forwarded-for":
                forwarded_for = forwarded_for + b", " + line.value if forwarded_for else line.value
            elif name == b"x-forwarded-proto":
                proto = line.value
            elif name == b"x-forwarded-host":
                host = line.value
            else:
                forwarded.append(line.value)
        if request_id:
            exchange.request_id = request_id
            exchange.id_line = b"X-Request-ID: %b\r\n" % request_id.encode()
        else:
            exchange.request_id, exchange.id_line = self._ids.request_line()
        if not request.http10:  # which knows no 1xx (RFC 9110, 15.2)
            exchange.informational = connection.informational
        if not trusted:
            exchange.forwarded = connection.forwarded_for(request.host)
            if debug:
                exchange.debug = within(exchange.client, self._debug)
            return
        address = peer.encode()
        if forwarded_for:
            exchange.client = self._client(forwarded_for, peer)
            address = forwarded_for + b", " + address
        if debug:
            exchange.debug = within(exchange.client, self._debug)
        exchange.forwarded = FORWARDED % (address, proto or self._scheme.encode(), host or request.host)
        if forwarded:
            ours = b"for=%b;host=%b;proto=%b" % (_node(peer), _quoted(request.host), self._scheme.encode())
            exchange.forwarded += b"Forwarded: %b\r\n" % b", ".join([*forwarded, ours])

    def forwarded(self, peer: str, host: bytes) -> bytes:
        """The lines for a client whose own word does not count."""
        return FORWARDED % (peer.encode(), self._scheme.encode(), host)

    def _client(self, chain: bytes, peer: str) -> str:
        """The last address that no trusted proxy has: what stands before it anybody could have written."""
        client = peer
        for hop in reversed(chain.split(b",")):
            client = hop.strip(b" \t").decode("latin-1")
            if not self._trusts(client):
                break
        return client

    def _trusts(self, address: str) -> bool:
        return bool(self._trusted) and within(address, self._trusted)


def valid_request_id(value: bytes) -> str:
    """`X-Request-ID` as a client sent it; empty where it is not to be kept."""
    return value.decode("ascii") if _REQUEST_ID.fullmatch(value) else ""


def asks(value: bytes) -> bool:
    """Whether `X-Sidecar-Debug` asks for the decision trail."""
    return value.lower() not in _NO


def parse_traceparent(value: bytes) -> tuple[bytes, bytes] | None:
    """Trace id and flags; None when malformed: then the trace starts anew downstream.

    W3C Trace Context, 3.2.2: `version-trace-span-flags`, in lower-case hexadecimal digits; later versions
    may append fields after another dash (3.2.4). No regular expression: its groups cost twice as much.
    """
    known = value[:_LENGTH]
    if len(known) != _LENGTH or known.translate(None, _HEXADECIMAL) != b"---":
        return None
    if not known[2] == known[35] == known[52] == _DASH:
        return None
    trace = known[3:35]
    if trace == _NO_TRACE or known[36:52] == _NO_SPAN or known.startswith(b"ff"):
        return None
    if len(value) != _LENGTH and (known.startswith(b"00") or value[_LENGTH] != _DASH):
        return None
    return trace, known[53:]


def _node(address: str) -> bytes:
    """RFC 7239, 6: an IPv6 address is bracketed and quoted."""
    return b'"[%b]"' % address.encode() if ":" in address else address.encode()


def _quoted(value: bytes) -> bytes:
    return b'"%b"' % value if b":" in value else value
