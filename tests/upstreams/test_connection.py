"""Bytes to responses, without sockets: where they are cut changes nothing, whatever they are."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

from sidecar.clock import Ids, SystemClock
from sidecar.config.addresses import Address
from sidecar.errors import UpstreamError
from sidecar.exchange import Exchange, Request, Response, Stream
from sidecar.telemetry.metrics import Metrics
from sidecar.upstreams.connection import UpstreamConnection
from sidecar.upstreams.pool import Upstream

SEEDS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nX-B:\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: X-A, keep-alive\r\nX-A: 1\r\n\r\nno",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
    b"HTTP/1.1 204 No Content\r\nKeep-Alive: timeout=5\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX-Request-ID: 1\r\n\r\nuntil the end",
]
SPLICES = [
    *(bytes([number]) for number in range(256)),
    *(
        b"\r\n",
        b"\n\r\n",
        b"\r\n\r\n",
        b" ",
        b": ",
        b" :",
        b"Content-Length: 5\r\n",
        b"Connection: close\r\n",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"HTTP/1.0", b"HTTP/2.0", b"100", b"204", b"999"),
]


class Wire(asyncio.Transport):
    """Takes what is written, and remembers whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: object) -> None:
        assert data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


Outcome = tuple[int, bytes, list[bytes], bytes] | None
"""Status, reason, header lines and body; None where it was refused or cut short."""


async def receive(upstream: Upstream, method: str, pieces: list[bytes]) -> Outcome:
    """What comes of a response in these pieces, after which the connection ends."""
    connection = UpstreamConnection(upstream)
    wire = Wire()
    connection.connection_made(wire)
    exchange = Exchange(Request(method, b"/", []), "", 0.0)
    sending = asyncio.ensure_future(connection.send(exchange, b"head", None))
    await asyncio.sleep(0)
    for piece in pieces:
        if piece and not wire.closed:
            connection.data_received(piece)
    connection.connection_lost(None)
    try:
        response: Response = await sending
        body = response.body
        if isinstance(body, Stream):
            body = b"".join([piece async for piece in reads(body)])
    except UpstreamError:
        return None
    return response.status, response.reason, [line.wire for line in response.headers], body


async def reads(body: Stream) -> AsyncIterator[bytes]:
    while data := await body.read():
        yield data


def mutated(chance: random.Random) -> bytes:
    message = chance.choice(SEEDS)
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        start = chance.randrange(len(message) + 1)
        end = min(len(message), start + chance.choice((0, 0, 1, 1, 2, 8)))
        message = message[:start] + chance.choice(SPLICES) + message[end:]
    return message


def upstream() -> Upstream:
    return Upstream(
        "app", Address("127.0.0.1", 1), clock=SystemClock(), ids=Ids(), cells=Metrics().upstream("app")
    )


async def test_cuts() -> None:
    """Read at once, byte by byte, or in any two pieces: the same response, or none.

    At once is where the pool reads known heads by memory; byte by byte is where llhttp reads all.
    """
    chance = random.Random(11)
    remembering = upstream()  # the memory of what was read before must not matter either
    refused = 0
    for number in range(4000):
        message = mutated(chance)
        method = "HEAD" if number % 7 == 0 else "GET"
        bytewise = await receive(upstream(), method, [message[i : i + 1] for i in range(len(message))])
        cut = chance.randrange(len(message) + 1)
        for pieces in ([message], [message], [message[:cut], message[cut:]]):
            assert await receive(remembering, method, pieces) == bytewise, (method, message, pieces)
        refused += bytewise is None
    assert 800 < refused < 3200, "the messages are neither all bad nor all good"
