"""What a client may ask of the listener, and how long it may take over it. Time moves when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sidecar.listeners.protocol import ServerProtocol
from tests.support.harness import ALL_POLICIES, GET, Harness, eventually
from tests.support.origin import OK, Origin, OriginConnection

POST = b"POST / HTTP/1.1\r\nHost: app\r\n"
SHORT = {"header_timeout": 10.0, "idle": 60.0, "drain": 20.0}


async def hang(connection: OriginConnection) -> None:
    await connection.request()
    await connection.gone()


# -- size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 20], ids=["one line", "many lines"])
async def test_head(count: int) -> None:
    """A head up to the limit passes; a larger one is 431, however it is cut."""
    async with Origin() as origin, Harness(origin, limits={"head": 2000}) as proxy:
        fits = (
            b"GET / HTTP/1.1\r\nHost: app\r\n" + (b"X: " + b"a" * (1800 // count) + b"\r\n") * count + b"\r\n"
        )
        assert (await proxy.ask(fits)).status == 200
        large = fits[:-2] + b"Y: " + b"b" * 400 + b"\r\n\r\n"
        assert (await proxy.ask(large)).status == 431
        assert (await proxy.ask(*(large[i : i + 50] for i in range(0, len(large), 50)))).status == 431
        assert len(origin.requests) == 1


@pytest.mark.parametrize("prefix", [b"GET /", b"GET / HTTP/1.1\r\nHost: app\r\nX: ", b"GET / HTTP/1.1\r\nX"])
async def test_a_line_without_end(prefix: bytes) -> None:
    """It is refused as soon as it is too long, and not collected until it ends."""
    async with Origin() as origin, Harness(origin, limits={"head": 2000}) as proxy:
        client = await proxy.connect()
        answer = await client.ask(prefix, *[b"a" * 500] * 10)
        assert (answer.status, answer.closes) == (431, True)
        assert origin.connections == 0


@pytest.mark.parametrize(
    "tail",
    [b"5;" + b"a" * 40_000 + b"\r\nhello\r\n0\r\n\r\n", b"0\r\nX: " + b"a" * 40_000 + b"\r\n\r\n"],
    ids=["chunk extension", "trailer"],
)
async def test_chunk_extensions_and_trailers(tail: bytes) -> None:
    """They are bounded as the head is: memory is not to be had that way either."""
    async with Origin() as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        message = POST + b"Transfer-Encoding: chunked\r\n\r\n" + tail
        answer = await client.ask(*(message[i : i + 1000] for i in range(0, len(message), 1000)))
        assert (answer.status, answer.closes) == (431, True)
        assert not any(request.complete for request in origin.requests)


async def test_counted_body() -> None:
    """A length above the limit is refused before a byte of the body is read."""
    async with Origin() as origin, Harness(origin, limits={"body": 5}) as proxy:
        client = await proxy.connect()
        assert (await client.ask(POST + b"Content-Length: 5\r\n\r\nhello")).status == 200
        answer = await client.ask(POST + b"Content-Length: 6\r\n\r\n")
        assert (answer.status, answer.problem["code"], answer.closes) == (413, "body_too_large", True)
        assert await client.ended()
        assert len(origin.requests) == 1


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
async def test_chunked_body(later: bool) -> None:
    """A chunked body is counted as it comes; one that grows too large never looks complete to the app."""
    chunks = b"3\r\nhel\r\n2\r\nlo\r\n"
    async with Origin() as origin, Harness(origin, ALL_POLICIES, limits={"body": 5}) as proxy:
        client = await proxy.connect()
        head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        assert (await client.ask(head + chunks + b"0\r\n\r\n")).status == 200
        pieces = (head + chunks, b"1\r\n!\r\n0\r\n\r\n")
        answer = await client.ask(*(pieces if later else (b"".join(pieces),)))
        assert (answer.status, answer.closes) == (413, True)
        assert await client.ended()
        assert sum(request.complete for request in origin.requests) == 1
        assert proxy.in_flight == 0


async def test_connections() -> None:
    """One more than the limit is told 503 and closed; when another leaves there is room again."""
    async with Origin() as origin, Harness(origin, limits={"connections": 2}) as proxy:
        first, second = await proxy.connect(), await proxy.connect()
        assert (await first.ask(GET)).status == (await second.ask(GET)).status == 200
        third = await proxy.connect()
        answer = await third.answer()
        assert (answer.status, answer.closes) == (503, True)
        assert answer.problem["detail"] == "too many connections"
        assert await third.ended()
        assert proxy.listener.connections == 2
        first.close()
        await eventually(lambda: proxy.listener.connections == 1)
        assert (await proxy.ask(GET)).status == 200
        assert proxy.metrics.listener("ingress").refused == 1


# -- time ------------------------------------------------------------------------------------------


async def test_slow_head() -> None:
    """A head that drips in is 408 when its time is over, however steadily it drips."""
    async with Origin() as origin, Harness(origin, limits=SHORT) as proxy:
        client = await proxy.connect()
        await client.send(b"GET / HTTP/1.1\r\n")
        await eventually(lambda: proxy.listener.connections)
        for _ in range(10):
            await client.send(b"X: a\r\n")
            await asyncio.sleep(0.003)
            await proxy.manual.advance(1)
            proxy.sweep()
        assert proxy.listener.connections == 1
        await proxy.manual.advance(1)
        proxy.sweep()
        answer = await client.answer()
        assert (answer.status, answer.problem["code"], answer.closes) == (408, "request_timeout", True)
        assert await client.ended()
        assert origin.connections == 0
        proxy.sweep(3)
        await eventually(lambda: not proxy.listener.connections)


async def test_slow_second_head() -> None:
    """The time starts with the head's first byte, not with the connection."""
    async with Origin() as origin, Harness(origin, limits=SHORT) as proxy:
        client = await proxy.connect()
        assert (await client.ask(GET)).status == 200
        await proxy.manual.advance(30)
        assert (await client.ask(GET[:10], GET[10:])).status == 200
        await proxy.manual.advance(30)
        proxy.sweep()
        assert (await client.ask(GET)).status == 200


@pytest.mark.parametrize("before", [b"", b"\r\n"], ids=["nothing", "empty lines"])
async def test_idle(before: bytes) -> None:
    """A connection without a request is closed after `idle`, without a word; empty lines are no request."""
    async with Origin() as origin, Harness(origin, limits=SHORT) as proxy:
        fresh = await proxy.connect()
        used = await proxy.connect()
        assert (await used.ask(GET)).status == 200
        await eventually(lambda: proxy.listener.connections == 2)
        for _ in range(4):
            await fresh.send(before)
            await used.send(before)
            await asyncio.sleep(0.005)
            await proxy.manual.advance(14)
            proxy.sweep()
        assert proxy.listener.connections == 2
        await proxy.manual.advance(5)
        proxy.sweep()
        assert await fresh.ended()
        assert await used.ended()


async def test_a_slow_app_is_not_the_clients_fault() -> None:
    """A client that waits for its answer may wait for longer than `idle`."""
    async with Origin(hang) as origin, Harness(origin, limits=SHORT) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: origin.requests)
        proxy.sweep(1000)
        await asyncio.sleep(0.01)
        assert proxy.listener.connections == 1
        assert origin.open


@pytest.mark.parametrize(
    ("head", "body", "reached"),
    [
        (b"Content-Length: 5\r\n\r\n", b"hel", False),
        (b"Content-Length: 500000\r\n\r\n", b"hel", True),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nhel\r\n", True),
    ],
    ids=["small", "large", "chunked"],
)
async def test_body_that_stalls(head: bytes, body: bytes, reached: bool) -> None:
    """A body that stops is 408 after `idle`; one that goes on, however slowly, is not."""
    async with (
        Origin() as origin,
        Harness(origin, {"retry": {}, "concurrency_limit": {"max": 9}}, limits=SHORT) as proxy,
    ):
        client = await proxy.connect()
        await client.send(POST + head)
        await eventually(lambda: origin.requests if reached else proxy.listener.connections)
        for size in range(1, len(body) + 1):
            await client.send(body[size - 1 : size])
            await asyncio.sleep(0.003)
            await proxy.manual.advance(10)
            proxy.sweep()
        await proxy.manual.advance(49)
        proxy.sweep()
        await asyncio.sleep(0.003)
        assert proxy.listener.connections == 1
        await proxy.manual.advance(61)
        proxy.sweep()
        answer = await client.answer()
        assert (answer.status, answer.closes) == (408, True)
        assert await client.ended()
        assert bool(origin.requests) is reached
        assert not any(request.complete for request in origin.requests)
        await eventually(lambda: not origin.open)
        assert proxy.in_flight == 0


async def test_a_small_body_that_stalls_holds_nothing() -> None:
    """A request is not started before its small body is here: a slow client holds no permit."""
    async with Origin() as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(POST + b"Content-Length: 60000\r\n\r\n", b"x" * 59_999)
        await asyncio.sleep(0.02)
        assert (origin.connections, proxy.in_flight) == (0, 0)
        assert (await client.ask(b"x")).status == 200


@pytest.mark.parametrize("last", [False, True], ids=["keep-alive", "close"])
@pytest.mark.parametrize("size", [200_000, 60_000_000], ids=["at once", "streamed"])
async def test_a_client_that_stops_reading(size: int, last: bool) -> None:
    """It is cut off after `idle`, with all that it held; as long as it read, however slowly, it was not."""

    async def script(connection: OriginConnection) -> None:
        while await connection.request() is not None:
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, bytes(size))

    count = 60_000_000 // size
    async with Origin(script, record=False) as origin, Harness(origin, ALL_POLICIES, limits=SHORT) as proxy:
        client = await proxy.connect(window=64 * 1024)
        requests = GET * (count - 1) + (
            GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if last else GET
        )
        sending = asyncio.create_task(client.send(requests))
        (connection,) = await some(lambda: proxy.listener._connections)
        await eventually(lambda: connection._write_paused)
        for _ in range(10):
            await client.reader.readexactly(4_000_000)
            await asyncio.sleep(0.005)
            proxy.sweep()
            await proxy.manual.advance(20)
        assert proxy.listener.connections == 1
        for _ in range(4):
            proxy.sweep()
            await proxy.manual.advance(30)
        proxy.sweep()
        await eventually(lambda: not proxy.listener.connections and not origin.open)
        assert proxy.in_flight == 0
        await sending


async def some(found: Callable[[], set[ServerProtocol]]) -> set[ServerProtocol]:
    await eventually(found)
    return found()


async def test_unsent_bytes_of_a_last_answer() -> None:
    """A connection that is to close, and whose client stops to read, is not kept for what it did not take."""
    large = b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n" + bytes(5_000_000)
    async with Origin(large) as origin, Harness(origin, ALL_POLICIES, limits=SHORT) as proxy:
        client = await proxy.connect(window=64 * 1024)
        await client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await eventually(lambda: proxy.exchanges and proxy.exchanges[0].first_byte)
        for _ in range(5):
            await asyncio.sleep(0.005)
            proxy.sweep()
            await proxy.manual.advance(30)
        await eventually(lambda: not proxy.listener.connections)
        assert proxy.in_flight == 0


async def test_lingering() -> None:
    """After a last answer, what the client still sends is read for a moment, then it is cut off."""
    async with Origin() as origin, Harness(origin, limits={"body": 10}) as proxy:
        client = await proxy.connect()
        await client.send(POST + b"Content-Length: 1000000\r\n\r\n" + bytes(500_000))
        assert (await client.answer()).status == 413
        await client.send(bytes(100_000))
        proxy.sweep(1)
        await asyncio.sleep(0.01)
        assert proxy.listener.connections == 1
        proxy.sweep(3)
        await eventually(lambda: not proxy.listener.connections)


# -- draining --------------------------------------------------------------------------------------


async def test_draining() -> None:
    """Idle connections end at once, new ones are refused, requests in flight end with `Connection: close`."""
    go = asyncio.Event()

    async def script(connection: OriginConnection) -> None:
        while await connection.request() is not None:
            await go.wait()
            await connection.send(OK)

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES, limits=SHORT) as proxy:
        idle = await proxy.connect()
        busy, half = await proxy.connect(), await proxy.connect()
        await busy.send(GET)
        await half.send(GET[:20])
        await eventually(lambda: origin.requests and proxy.listener.connections == 3)
        await asyncio.sleep(0.01)
        draining = asyncio.create_task(proxy.listener.drain())
        assert await idle.ended()
        with pytest.raises(ConnectionRefusedError):
            await proxy.connect()
        await half.send(GET[20:])
        await eventually(lambda: len(origin.requests) == 2)
        assert not draining.done()
        go.set()
        for client in (busy, half):
            answer = await client.answer()
            assert (answer.status, answer.closes) == (200, True)
            assert await client.ended()
        assert await draining == 0


async def test_draining_takes_its_time() -> None:
    """What has not ended when the time is over is cut off, and gives back what it held."""
    async with (
        Origin(hang) as origin,
        Harness(origin, {"concurrency_limit": {"max": 9}}, limits=SHORT) as proxy,
    ):
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: origin.requests)
        draining = asyncio.create_task(proxy.listener.drain())
        await proxy.manual.advance(19)
        assert not draining.done()
        await proxy.manual.advance(1)
        assert await draining == 1
        assert await client.ended()
        await eventually(lambda: not origin.open)
        assert proxy.in_flight == 0


async def test_draining_nothing() -> None:
    """Without connections there is nothing to wait for."""
    async with Origin() as origin, Harness(origin) as proxy:
        assert await proxy.listener.drain() == 0


async def test_draining_a_stream() -> None:
    """An answer that streams is let finish, and the connection then ends though it was kept alive before."""
    go = asyncio.Event()

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await go.wait()
        await connection.send(b"world")
        await connection.gone()

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        assert (await client.head()).status == 200
        draining = asyncio.create_task(proxy.listener.drain())
        await asyncio.sleep(0.01)
        go.set()
        assert await client.rest() == b"helloworld"
        assert await draining == 0
