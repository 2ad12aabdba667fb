"""The way to a drill's Redis: open, or late."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from sidecar.drills.redis_server import Relay
from tests.support.processes import free_port


@contextlib.asynccontextmanager
async def relayed(to: int) -> AsyncIterator[tuple[Relay, int]]:
    port = free_port()
    relay = Relay(port, to)
    await relay.start()
    try:
        yield relay, port
    finally:
        await relay.close()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_answers_come_whole_in_order_and_late() -> None:
    """What is sent comes back as it was; each answer is late, and none waits for the one before."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    async with server, relayed(server.sockets[0].getsockname()[1]) as (relay, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        text = bytes(range(256)) * 4000
        writer.write(text)
        assert await asyncio.wait_for(reader.readexactly(len(text)), 20) == text
        relay.delay = 0.3
        began = loop.time()
        for number in range(10):
            writer.write(b"%d" % number)
            await asyncio.sleep(0.02)
        assert await asyncio.wait_for(reader.readexactly(10), 20) == b"0123456789"
        # One after the other they would take 3 s.
        assert 0.3 <= loop.time() - began < 2.0
        writer.close()


async def test_where_nobody_listens_it_ends_the_connection() -> None:
    """A client learns at once that the server is gone."""
    async with relayed(free_port()) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(1), 20) == b""
        writer.close()


async def test_the_end_of_one_side_reaches_the_other() -> None:
    """A client that leaves is gone for the server, too."""
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        left.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, relayed(server.sockets[0].getsockname()[1]) as (_, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        await writer.drain()
        writer.close()
        await asyncio.wait_for(left.wait(), 20)


@pytest.mark.parametrize("delay", [0.0, 5.0])
async def test_it_closes_in_time(delay: float) -> None:
    """Also with an answer under way."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with server, relayed(server.sockets[0].getsockname()[1]) as (relay, port):
        relay.delay = delay
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        await asyncio.sleep(0.05)
        await asyncio.wait_for(relay.close(), 4)
        writer.close()
