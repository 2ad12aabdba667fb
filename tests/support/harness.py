"""The data plane in the test's own loop: a real listener, a compiled pipeline, a real pool.

Time is a `ManualClock` unless a test brings another: nothing times out, and no back-off ends, until the
test says so; the sockets are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, Self

import orjson

from sidecar.caching.cache import Caching
from sidecar.clock import Clock, Ids, SystemRandom
from sidecar.config.addresses import Address
from sidecar.config.schema import Route
from sidecar.errors import ClientError
from sidecar.exchange import Exchange, Response
from sidecar.listeners.ingress import Limits, Listener
from sidecar.overlap import Overlaps
from sidecar.pipeline import Handler, Place, Services, compile_pipeline
from sidecar.state import State
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import Metrics
from sidecar.upstreams.dial import Resolve, system_resolve
from sidecar.upstreams.pool import TlsComplaint, Upstream
from sidecar.upstreams.tls import UpstreamTls
from tests.support.clock import ManualClock
from tests.support.origin import BETWEEN_PIECES, LARGEST_READ, Origin, reset

LONGEST = 40.0
"""Seconds that a test may take."""
PATIENCE = 10.0
"""Seconds after which a test stops to wait for what should have come at once."""

GET = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n"

ALL_POLICIES: Mapping[str, Any] = {
    "deadline": "30s",
    "attempt_timeout": "10s",
    "idle": "20s",
    "retry": {"attempts": 2, "backoff": {"strategy": "fixed", "base": "0ms"}, "budget": "off"},
    "circuit_breaker": {"consecutive": "off", "failure_ratio": "off"},
    "concurrency_limit": {"max": 64},
}
"""A route with every policy on, none of which gets in the way of a second request."""


async def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Waits until `condition` holds. For what other tasks do about real sockets."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(what or "did not happen")
        await asyncio.sleep(0.001)


@dataclass
class Answer:
    """A response as the client got it."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    head: bytes
    body: bytes = b""
    trailers: bytes = b""
    chunks: list[int] = field(default_factory=list)
    framing: str = "none"
    """`length`, `chunked`, `close` or `none`."""

    def header(self, name: str) -> str | None:
        """The first field called `name`, in lower case."""
        return next(iter(self.every(name)), None)

    def every(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def closes(self) -> bool:
        return (self.header("connection") or "").lower() == "close"

    @property
    def problem(self) -> dict[str, Any]:
        """The body of an error of the sidecar's own (RFC 9457)."""
        assert self.header("content-type") == "application/problem+json"
        members = orjson.loads(self.body)
        assert isinstance(members, dict)
        assert members["status"] == self.status
        return members


class Client:
    """One raw connection to the sidecar."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Sends each piece as a segment of its own."""
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(BETWEEN_PIECES)
            self.writer.write(piece)
            await self.writer.drain()

    async def head(self) -> Answer:
        """The next head, of an interim response perhaps."""
        raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        version, status, reason = first.split(" ", 2)
        assert version == "HTTP/1.1"
        pairs = [line.partition(":") for line in lines]
        return Answer(int(status), reason, [(name, value.strip()) for name, _, value in pairs], raw)

    async def answer(self, method: str = "GET") -> Answer:
        """The next final response, by its framing. Raises `IncompleteReadError` where it is cut short."""
        answer = await self.head()
        async with asyncio.timeout(PATIENCE):
            await self._body(answer, method)
        return answer

    async def _body(self, answer: Answer, method: str) -> None:
        length = answer.header("content-length")
        chunked = answer.header("transfer-encoding")
        assert length is None or chunked is None
        if method == "HEAD" or answer.status < 200 or answer.status in (204, 304):
            return
        if chunked is not None:
            assert chunked == "chunked"
            answer.framing = "chunked"
            body = []
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                answer.chunks.append(size)
                body.append(await self.reader.readexactly(size))
                assert await self.reader.readexactly(2) == b"\r\n"
            answer.body = b"".join(body)
            while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
                answer.trailers += line
        elif length is not None:
            answer.framing = "length"
            answer.body = await self.reader.readexactly(int(length))
        else:
            answer.framing = "close"
            answer.body = await self.reader.read()

    async def ask(self, *pieces: bytes) -> Answer:
        """Sends a request and reads its answer."""
        await self.send(*pieces)
        return await self.answer(pieces[0].split(b" ", 1)[0].decode())

    async def rest(self) -> bytes:
        """All that still comes until the sidecar ends the connection. Raises `ConnectionResetError`."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE)

    async def ended(self) -> bool:
        """True once the sidecar ended the connection without another byte, in whatever way."""
        with contextlib.suppress(ConnectionError):
            return await self.rest() == b""
        return True

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        reset(self.writer.transport)

    def close(self) -> None:
        self.writer.close()


class Harness:
    """A sidecar of one route in front of one origin. Used with `async with`."""

    def __init__(
        self,
        origin: Origin | Address,
        route: Mapping[str, Any] | None = None,
        *,
        limits: Mapping[str, Any] | None = None,
        trusted: Sequence[str] = (),
        debug: Sequence[str] = (),
        clock: Clock | None = None,
        tls: UpstreamTls | None = None,
        server_name: str = "localhost",
        resolve: Resolve = system_resolve,
        egress: bool = False,
        complain: TlsComplaint = lambda *_: None,
    ) -> None:
        self.manual = ManualClock()
        self.clock: Clock = clock if clock is not None else self.manual
        self.metrics = Metrics()
        self.exchanges: list[Exchange] = []
        """All that reached the route, in order."""
        self.refused: list[ClientError] = []
        """What the listener answered before there was a request."""
        self.ended: list[str] = []
        """How the answers ended, as the listener told `observe`."""
        self.clients: list[Client] = []
        self.address = Address()
        services = Services(
            clock=self.clock,
            overlaps=Overlaps(self.clock),
            random=SystemRandom(),
            state=State(self.metrics, self.clock),
            metrics=self.metrics,
            access_log=AccessLog(None, self.clock),
            caching=Caching.unused(self.clock),
        )
        ids = Ids()
        self.upstream = Upstream(
            "origin",
            origin.address if isinstance(origin, Origin) else origin,
            clock=self.clock,
            ids=ids,
            cells=self.metrics.upstream("origin"),
            tls=tls,
            server_name=server_name,
            resolve=resolve,
            egress=egress,
            complain=complain,
        )
        self.route = Route.model_validate({"name": "tested", **(route or {})})
        place = Place(route=self.route, upstream="origin", services=services)
        self.state = services.state
        self._handler = compile_pipeline(place, self.upstream.handler(self.route.idle))
        settings = {
            "head": 32 * 1024,
            "body": None,
            "connections": 1024,
            "header_timeout": 10.0,
            "idle": 75.0,
            "drain": 30.0,
            **(limits or {}),
        }
        self.listener = Listener(
            Limits(**settings),
            self._route,
            clock=self.clock,
            ids=ids,
            cells=self.metrics.listener("ingress"),
            trusted=tuple(ip_network(network) for network in trusted),
            debug=tuple(ip_network(network) for network in debug),
            on_refused=lambda _, error: self.refused.append(error),
        )

    def _route(self, exchange: Exchange) -> Handler:
        self.exchanges.append(exchange)
        return self._watched

    async def _watched(self, exchange: Exchange) -> Response:
        response = await self._handler(exchange)
        told = exchange.on_sent
        assert told is not None

        def sent(exchange: Exchange, response: Response | None, how: str) -> None:
            self.ended.append(how)
            told(exchange, response, how)

        exchange.on_sent = sent
        return response

    async def __aenter__(self) -> Self:
        self.address = await self.listener.start(Address("127.0.0.1", 0))
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        self.listener.stop_accepting()
        for connection in tuple(self.listener._connections):
            connection.abort()
        self.upstream.close()
        await eventually(lambda: not self.listener.connections and not self.upstream.connections)

    async def connect(self, *, window: int | None = None) -> Client:
        """`window`: bytes that kernel and client hold unread, where back-pressure is to be felt soon."""
        with socket.socket() as sock:
            if window is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (self.address.host, self.address.port))
            reader, writer = await asyncio.open_connection(
                sock=sock.dup(), limit=LARGEST_READ if window is None else window
            )
        client = Client(reader, writer)
        self.clients.append(client)
        return client

    async def ask(self, *pieces: bytes) -> Answer:
        """One request over a connection of its own."""
        client = await self.connect()
        answer = await client.ask(*pieces)
        client.close()
        return answer

    def sweep(self, seconds: float = 0.0) -> None:
        """What the app does once a second, as it would be `seconds` from now."""
        now = self.clock.now() + seconds
        self.listener.sweep(now)
        self.upstream.sweep(now)

    # -- what must be given back -----------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Permits of the concurrency limit."""
        return sum(limit.in_flight for limit in self.metrics.limits.values())

    @property
    def probing(self) -> int:
        """Probes of the breaker."""
        return sum(cells.breaker.probing for cells in self.metrics.breakers.values())


@contextlib.contextmanager
def no_trouble() -> Iterator[list[dict[str, Any]]]:
    """Collects what the event loop could not give to anybody: exceptions in callbacks and in lost tasks.

    Also ends a test that hangs: uvloop does not let the signal of pytest-timeout through.
    """
    loop = asyncio.get_running_loop()
    troubles: list[dict[str, Any]] = []

    def end() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel("the test hangs")

    loop.set_exception_handler(lambda _, context: troubles.append(context))
    guard = loop.call_later(LONGEST, end)
    try:
        yield troubles
    finally:
        guard.cancel()
        loop.set_exception_handler(None)
    assert not troubles, troubles
