"""Upgraded connections: bytes both ways, until both sides are done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from sidecar.config.addresses import Address
from tests.support.harness import ALL_POLICIES, Client, Harness, eventually
from tests.support.origin import Origin, OriginConnection

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: app\r\nConnection: keep-alive, Upgrade\r\nUpgrade: Echo\r\nX-Kept: 1\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n"
)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: Echo\r\nX-App: 1\r\n\r\n"


@asynccontextmanager
async def websocket_app() -> AsyncIterator[Address]:
    """A real server that echoes messages."""

    async def echo(request: web.Request) -> web.WebSocketResponse:
        server = web.WebSocketResponse(protocols=["chat"])
        await server.prepare(request)
        async for message in server:
            if message.type is aiohttp.WSMsgType.BINARY:
                await server.send_bytes(message.data)
            elif message.data == "leave":
                await server.close(code=4001, message=b"as you wish")
            else:
                await server.send_str(message.data)
        return server

    app = web.Application()
    app.router.add_get("/ws", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Address("127.0.0.1", runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def test_websocket_echo() -> None:
    """10,000 messages of a real client come back from a real server, and the closing handshake does."""
    async with (
        websocket_app() as app,
        Harness(app, ALL_POLICIES) as proxy,
        aiohttp.ClientSession() as session,
    ):
        client = await session.ws_connect(f"http://{proxy.address}/ws", protocols=["chat"])
        assert client.protocol == "chat"

        async def send() -> None:
            for number in range(10_000):
                await client.send_str(f"message {number}")

        sending = asyncio.create_task(send())
        for number in range(10_000):
            assert await client.receive_str() == f"message {number}"
        await sending
        large = bytes(range(256)) * 8000
        await client.send_bytes(large)
        assert await client.receive_bytes() == large
        assert proxy.in_flight == 1, "a permit is held as long as the tunnel is"
        assert await client.close(code=4000, message=b"bye")
        assert client.close_code == aiohttp.WSCloseCode.OK, "what the server answers a close with"
        await eventually(lambda: not proxy.listener.connections and not proxy.upstream.connections)
        assert proxy.in_flight == 0
        assert proxy.ended == ["done"]
        assert proxy.exchanges[0].received > 10_000 * 10


async def test_websocket_closed_by_the_app() -> None:
    """The app's close code and reason reach the client."""
    async with (
        websocket_app() as app,
        Harness(app, ALL_POLICIES) as proxy,
        aiohttp.ClientSession() as session,
    ):
        client = await session.ws_connect(f"http://{proxy.address}/ws")
        await client.send_str("leave")
        message = await client.receive()
        assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "as you wish")
        await eventually(lambda: not proxy.listener.connections and not proxy.upstream.connections)
        assert proxy.in_flight == 0


async def echo(connection: OriginConnection) -> None:
    await connection.request()
    await connection.send(SWITCH)
    while data := await connection.reader.read(65536):
        await connection.send(data)


async def joined(proxy: Harness) -> Client:
    client = await proxy.connect()
    await client.send(UPGRADE)
    assert (await client.head()).status == 101
    return client


async def test_heads_of_an_upgrade() -> None:
    """The upgrade goes both ways with its `Connection`; other lines go as ever."""
    async with Origin(echo) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        await client.send(UPGRADE)
        answer = await client.head()
        assert (answer.status, answer.reason) == (101, "Switching Protocols")
        assert (answer.header("connection"), answer.header("upgrade")) == ("Upgrade", "Echo")
        assert answer.header("x-app") == "1"
        assert answer.header("content-length") is None
        (request,) = origin.requests
        assert (request.header("connection"), request.header("upgrade")) == ("Upgrade", "Echo")
        assert request.header("sec-websocket-version") == "13"
        assert request.header("x-kept") == "1"


async def test_bytes_right_behind_the_heads() -> None:
    """What either side sends together with its head, or before the other's, is the tunnel's."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(SWITCH + b"first")
        while data := await connection.reader.read(65536):
            await connection.send(data)

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        for pieces in ((UPGRADE + b"\x00early",), (UPGRADE, b"\x00early")):
            client = await proxy.connect()
            await client.send(*pieces)
            assert (await client.head()).status == 101
            assert await client.reader.readexactly(11) == b"first\x00early"


async def test_an_upgrade_behind_another_request() -> None:
    """What came right behind the upgrade's head is the tunnel's, though a request before it was answered."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await echo(connection)

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n" + UPGRADE + b"\x00early")
        assert (await client.answer()).body == b"ok"
        assert (await client.head()).status == 101
        assert await client.reader.readexactly(6) == b"\x00early"


async def test_client_half_closes() -> None:
    """The app sees the end of what the client sends, and may still answer (RFC 6455, 7.1.1)."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(SWITCH)
        everything = await connection.reader.read()
        await connection.send(b"got " + everything)

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await joined(proxy)
        await client.send(b"hello")
        client.half_close()
        assert await client.rest() == b"got hello"
        await eventually(lambda: not proxy.listener.connections and not proxy.upstream.connections)
        assert proxy.in_flight == 0
        assert proxy.ended == ["done"]


async def test_app_half_closes() -> None:
    """The client sees the end of what the app sends, and may still send."""
    got = []

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(SWITCH + b"bye")
        connection.half_close()
        got.append(await connection.reader.read())

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await joined(proxy)
        assert await client.rest() == b"bye"
        await client.send(b"one more")
        client.close()
        await eventually(lambda: got)
        assert got == [b"one more"]
        await eventually(lambda: not proxy.listener.connections and not proxy.upstream.connections)
        assert proxy.in_flight == 0


@pytest.mark.parametrize("side", ["client", "app"])
async def test_reset(side: str) -> None:
    """A tunnel that breaks on one side ends on the other."""
    broken = asyncio.Event()

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(SWITCH)
        if side == "app":
            await connection.reader.readexactly(5)
            connection.reset()
        else:
            await connection.gone()
        broken.set()

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await joined(proxy)
        await client.send(b"hello")
        if side == "client":
            client.reset()
        else:
            assert await client.ended()
        await broken.wait()
        await eventually(lambda: not proxy.listener.connections and not proxy.upstream.connections)
        assert proxy.in_flight == 0


async def test_app_leaves_and_the_client_stays() -> None:
    """A client that does not react to the end of its tunnel is not waited for without end."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(SWITCH)

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await joined(proxy)
        assert await client.rest() == b""
        await eventually(lambda: not origin.open)
        proxy.sweep(21)  # the route's `idle`
        await eventually(lambda: not proxy.listener.connections and not proxy.upstream.connections)
        assert proxy.in_flight == 0


async def test_idle_tunnel() -> None:
    """A tunnel on which nothing moves for the route's `idle` ends on both sides; one that moves does not."""
    async with Origin(echo) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await joined(proxy)
        for _ in range(3):
            await proxy.manual.advance(15)
            proxy.sweep()
            await client.send(b"hello")
            assert await client.reader.readexactly(5) == b"hello"
        await proxy.manual.advance(21)
        proxy.sweep()
        assert await client.ended()
        await eventually(lambda: not origin.open and not proxy.listener.connections)
        assert proxy.in_flight == 0


@pytest.mark.parametrize("side", ["client", "app"])
async def test_back_pressure(side: str) -> None:
    """A side that does not read pauses the other."""
    go = asyncio.Event()
    size = 64 * 1024**2
    sent = received = 0

    async def send(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < size:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536
        writer.write_eof()

    async def receive(reader: asyncio.StreamReader) -> None:
        nonlocal received
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await go.wait()
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        while data := await reader.read(256 * 1024):
            received += len(data)

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(SWITCH)
        if side == "app":
            await receive(connection.reader)
        else:
            await send(connection.writer)
            await connection.gone()

    async with (
        Origin(script, record=False, buffer=16 * 1024) as origin,
        Harness(origin, ALL_POLICIES) as proxy,
    ):
        client = await joined(proxy)
        work = asyncio.create_task(receive(client.reader) if side == "client" else send(client.writer))
        await asyncio.sleep(0.3)
        assert 0 < sent < 20 * 1024**2, "kernel buffers, and a few of ours"
        go.set()
        await eventually(lambda: received == size)
        await work


async def test_draining() -> None:
    """Tunnels end when the time for draining is over; nothing is left of them."""
    async with Origin(echo) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await joined(proxy)
        draining = asyncio.create_task(proxy.listener.drain())
        await client.send(b"hello")
        assert await client.reader.readexactly(5) == b"hello"
        await proxy.manual.advance(31)
        assert await draining == 1
        assert await client.ended()
        await eventually(lambda: not origin.open and not proxy.upstream.connections)
        assert proxy.in_flight == 0
