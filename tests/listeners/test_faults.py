"""What a real client gets of injected faults."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.clock import SystemClock
from tests.support.harness import ALL_POLICIES, GET, Harness, eventually, no_trouble
from tests.support.origin import Origin

BODY = b"x" * 1000
COUNTED = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + BODY
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + BODY + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [COUNTED, CHUNKED])
async def test_truncated(answer: bytes) -> None:
    """The head promises all; so many bytes come, then the connection is cut, and everything is given back."""
    fault = {**ALL_POLICIES, "fault": {"truncate": "10B"}}
    with no_trouble():
        async with Origin(answer) as origin, Harness(origin, fault) as proxy:
            client = await proxy.connect()
            await client.send(GET)
            assert (await client.head()).status == 200
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.reader.readexactly(900)
            await eventually(lambda: proxy.ended == ["broken"])
            assert (proxy.in_flight, proxy.upstream.connections) == (0, proxy.upstream.idle)
            assert not proxy.state.faults._tasks


async def test_slow_drip() -> None:
    """The body comes whole, in time: 1000 bytes at 4000 a second take a quarter of one."""
    clock = SystemClock()
    route = {"fault": {"bandwidth": "4000B/s"}}
    async with Origin(COUNTED) as origin, Harness(origin, route, clock=clock) as proxy:
        before = clock.now()
        answer = await proxy.ask(GET)
        assert answer.body == BODY
        assert clock.now() - before > 0.24


async def test_reset() -> None:
    """502, and the upstream was not connected to; the connection of the client goes on."""
    route = {"fault": {"reset": True, "first": 1}}
    async with Origin(COUNTED) as origin, Harness(origin, route) as proxy:
        client = await proxy.connect()
        assert (await client.ask(GET)).status == 502
        assert origin.connections == 0
        assert (await client.ask(GET)).body == BODY


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_without_a_body_nothing_is_cut(method: str) -> None:
    """A HEAD and a 304 end at their head."""
    answer = b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n'
    if method == "HEAD":
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    route = {"fault": {"truncate": "10B", "bandwidth": "1B/s"}}
    async with Origin(answer) as origin, Harness(origin, route) as proxy:
        client = await proxy.connect()
        for _ in range(2):
            got = await client.ask(method.encode() + b" / HTTP/1.1\r\nHost: app\r\n\r\n")
            assert got.status in (200, 304)
