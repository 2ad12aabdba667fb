"""Bodies, of any size and framing, both ways: byte for byte, at the pace of the slower side."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable

import pytest

from sidecar.clock import SystemClock
from sidecar.replayable import Recording
from tests.support.harness import ALL_POLICIES, GET, PATIENCE, Client, Harness, eventually
from tests.support.origin import OK, Origin, OriginConnection

BLOCK = random.Random(1).randbytes(1024 * 1024 + 7)
"""Odd in size, so that no piece begins where another did."""
SIZES = [
    pytest.param(0, id="0"),
    pytest.param(1, id="1"),
    pytest.param(64 * 1024, id="64KiB"),
    pytest.param(10 * 1024**2, id="10MiB"),
    pytest.param(100 * 1024**2, id="100MiB", marks=pytest.mark.slow),
]
FRAMINGS = pytest.mark.parametrize("chunked", [False, True], ids=["counted", "chunked"])


def blocks(size: int) -> list[bytes]:
    """`size` bytes in pieces."""
    whole, rest = divmod(size, len(BLOCK))
    return [BLOCK] * whole + [BLOCK[:rest]]


def digest(size: int) -> str:
    seen = hashlib.sha256()
    for block in blocks(size):
        seen.update(block)
    return seen.hexdigest()


async def write(writer: asyncio.StreamWriter, size: int, *, chunked: bool) -> None:
    for block in blocks(size):
        if not chunked:
            writer.write(block)
        elif block:
            writer.write(b"%x\r\n%b\r\n" % (len(block), block))
        await writer.drain()
    if chunked:
        writer.write(b"0\r\n\r\n")


def framing(size: int, *, chunked: bool) -> bytes:
    return b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size


async def read(client: Client) -> tuple[str, int]:
    """The digest of the body of the answer, and its size. What came whole with its head is counted now."""
    answer = await client.head()
    assert answer.status == 200
    seen = hashlib.sha256()
    size = 0
    chunked = answer.header("transfer-encoding") == "chunked"
    left = int(answer.header("content-length") or 0)
    while True:
        if chunked:
            left = int(await client.reader.readuntil(b"\r\n"), 16)
        last = left == 0
        while left:
            piece = await client.reader.read(min(left, 65536))
            assert piece
            left -= len(piece)
            size += len(piece)
            seen.update(piece)
        if chunked:
            assert await client.reader.readexactly(2) == b"\r\n"
        if last or not chunked:
            return seen.hexdigest(), size


@pytest.mark.parametrize("size", SIZES)
@FRAMINGS
async def test_down(size: int, chunked: bool) -> None:
    """A response body reaches the client as it was, and both connections can be used again."""

    async def script(connection: OriginConnection) -> None:
        while await connection.request() is not None:
            connection.writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing(size, chunked=chunked))
            await write(connection.writer, size, chunked=chunked)

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        for _ in range(2):
            await client.send(GET)
            assert await read(client) == (digest(size), size)
        assert origin.connections == 1
        assert proxy.exchanges[0].sent == size
        assert proxy.in_flight == 0


@pytest.mark.parametrize("size", SIZES)
@FRAMINGS
async def test_up(size: int, chunked: bool) -> None:
    """A request body reaches the app as it was, and both connections can be used again."""
    digests = []

    async def script(connection: OriginConnection) -> None:
        while (request := await connection.head()) is not None:
            seen = hashlib.sha256()
            async for piece in connection.pieces(request):
                seen.update(piece)
            digests.append(seen.hexdigest())
            await connection.send(OK)

    async with Origin(script, record=False) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        for _ in range(2):
            client.writer.write(
                b"POST / HTTP/1.1\r\nHost: app\r\n%b\r\n\r\n" % framing(size, chunked=chunked)
            )
            await write(client.writer, size, chunked=chunked)
            assert (await client.answer()).body == b"ok"
        assert digests == [digest(size)] * 2
        assert origin.connections == 1
        assert proxy.in_flight == 0


@FRAMINGS
async def test_both_ways_at_once(chunked: bool) -> None:
    """An app may answer while it reads: what goes up comes down, with neither end waiting for the other's."""
    size = 5_000_000

    async def script(connection: OriginConnection) -> None:
        request = await connection.head()
        assert request is not None
        connection.writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing(size, chunked=chunked))
        async for piece in connection.pieces(request):
            connection.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await connection.writer.drain()
        if chunked:
            connection.writer.write(b"0\r\n\r\n")
        await connection.gone()

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        client.writer.write(b"POST / HTTP/1.1\r\nHost: app\r\n%b\r\n\r\n" % framing(size, chunked=chunked))
        sending = asyncio.create_task(write(client.writer, size, chunked=chunked))
        assert await read(client) == (digest(size), size)
        await sending


@FRAMINGS
async def test_slow_client_pauses_the_app(chunked: bool) -> None:
    """What a client does not take is not taken from the app: at most a few buffers are in between."""
    size = 64 * 1024**2
    written = 0

    async def script(connection: OriginConnection) -> None:
        nonlocal written
        await connection.request()
        connection.writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing(size, chunked=chunked))
        for _ in range(size // 65536):
            piece = bytes(65536)
            connection.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await connection.writer.drain()
            written += 65536
        if chunked:
            connection.writer.write(b"0\r\n\r\n")
        await connection.gone()

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect(window=16 * 1024)
        await client.send(GET)
        await still(lambda: written)
        assert 0 < written < 12 * 1024**2, "kernel buffers, and a few of ours"
        (connection,) = proxy.upstream._open
        assert connection._stream is not None
        assert connection._stream.buffered < 1024**2
        before = written
        total = 0
        while total < size:
            total += len(await asyncio.wait_for(client.reader.read(256 * 1024), PATIENCE))
            if total > 20 * 1024**2 and written == before:
                raise AssertionError("the app was not resumed")
        assert written == size


async def still(value: Callable[[], int]) -> None:
    """Waits until `value()` has not changed for a while."""
    last, same = value(), 0
    while same < 20:
        await asyncio.sleep(0.01)
        now = value()
        last, same = now, same + 1 if now == last and now else 0


@FRAMINGS
async def test_slow_app_pauses_the_client(chunked: bool) -> None:
    """What the app does not read is not read from the client: at most a few buffers are in between."""
    go = asyncio.Event()
    size = 64 * 1024**2

    async def script(connection: OriginConnection) -> None:
        request = await connection.head()
        assert request is not None
        connection.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await go.wait()
        connection.reader._transport.resume_reading()  # type: ignore[attr-defined]
        async for _ in connection.pieces(request):
            pass
        await connection.send(OK)

    sent = 0

    async def upload(client: Client) -> None:
        nonlocal sent
        client.writer.write(b"POST / HTTP/1.1\r\nHost: app\r\n%b\r\n\r\n" % framing(size, chunked=chunked))
        for _ in range(size // 65536):
            piece = bytes(65536)
            client.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await client.writer.drain()
            sent += 65536
        if chunked:
            client.writer.write(b"0\r\n\r\n")

    async with (
        Origin(script, record=False, buffer=16 * 1024) as origin,
        Harness(origin, ALL_POLICIES) as proxy,
    ):
        client = await proxy.connect()
        sending = asyncio.create_task(upload(client))
        await still(lambda: sent)
        assert sent < 16 * 1024**2, "kernel buffers, and a few of ours"
        body = proxy.exchanges[0].request.body
        assert isinstance(body, Recording)
        assert body._stream.buffered < 1024**2
        go.set()
        assert (await client.answer()).status == 200
        await sending
        assert origin.requests[0].complete


async def test_events_are_passed_on_at_once() -> None:
    """Each server-sent event reaches the client within 50 ms of its being sent."""
    sent: list[float] = []
    now = asyncio.get_running_loop().time
    next_one = asyncio.Event()

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(100):
            await next_one.wait()
            next_one.clear()
            event = b"data: %d\n\n" % number
            sent.append(now())
            connection.writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        await connection.send(b"0\r\n\r\n")
        await connection.gone()

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES, clock=SystemClock()) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        assert (await client.head()).header("content-type") == "text/event-stream"
        delays = []
        for number in range(100):
            next_one.set()
            size = int(await client.reader.readuntil(b"\r\n"), 16)
            event = await client.reader.readexactly(size + 2)
            delays.append(now() - sent[number])
            assert event == b"data: %d\n\n\r\n" % number
        assert max(delays) < 0.050


async def test_events_of_many_writes_stay_in_order() -> None:
    """Pieces that are sent in a burst arrive whole and in order."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        connection.writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for number in range(10_000):
            connection.writer.write(b"data: %d\n\n" % number)
        await connection.writer.drain()

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        answer = await proxy.ask(GET)
        assert answer.body == b"".join(b"data: %d\n\n" % number for number in range(10_000))


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_last_bytes_before_a_close(version: bytes) -> None:
    """A large answer on a connection that then closes arrives whole, however slowly it is read meanwhile."""
    size = 3_000_000

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        connection.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        await connection.gone()

    request = b"GET / HTTP/%b\r\nHost: app\r\nConnection: close\r\n\r\n" % version
    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect(window=16 * 1024)
        await client.send(request)
        await eventually(lambda: proxy.exchanges and proxy.exchanges[0].first_byte)
        await client.head()
        total = 0
        for _ in range(100):
            await proxy.manual.advance(3)
            proxy.sweep()
            total += len(await client.reader.read(30_000))
        while data := await client.reader.read(1_000_000):
            total += len(data)
        assert total == size
        assert proxy.ended == ["done"]


async def test_a_kept_connection_reads_again() -> None:
    """A connection to the app whose last bytes came while it was paused serves the next request, too."""
    sizes = [8_000_000 + number * 33_333 for number in range(8)]

    async def script(connection: OriginConnection) -> None:
        while (request := await connection.request()) is not None:
            size = int(request.target[1:])
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, bytes(size))

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        for size in sizes:
            slow, quick = await proxy.connect(window=16 * 1024), await proxy.connect()
            await slow.send(b"GET /%d HTTP/1.1\r\nHost: app\r\n\r\n" % size)
            await slow.head()
            (connection,) = proxy.upstream._open
            await eventually(lambda connection=connection: connection._read_paused)  # type: ignore[misc]
            await slow.reader.readexactly(size)
            assert (await quick.ask(b"GET /2 HTTP/1.1\r\nHost: app\r\n\r\n")).body == bytes(2)
        assert origin.connections == 1
