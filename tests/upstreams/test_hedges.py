"""Hedges over real connections: two requests go out, one answer comes back, and no connection is mixed up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.harness import ALL_POLICIES, GET, Harness, eventually
from tests.support.origin import OK, Origin, OriginConnection, answers

ROUTE: dict[str, Any] = {
    **ALL_POLICIES,
    "retry": {"attempts": 2, "hedge": {"after": "100ms"}, "budget": "off"},
}
LATE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate"


async def hangs(connection: OriginConnection) -> None:
    """Reads the request, and answers when nobody waits any more."""
    await connection.request()
    await connection.gone()


def in_turn(*scripts: Callable[[OriginConnection], Any]) -> Callable[[OriginConnection], Any]:
    """The first connection gets the first script, and so on; those after the last get that one too."""
    numbers = iter(range(10**6))

    async def script(connection: OriginConnection) -> None:
        await scripts[min(next(numbers), len(scripts) - 1)](connection)

    return script


async def test_the_slow_one_is_dropped() -> None:
    """Its connection is cut, as its answer may still come; the other one is kept for the next request."""
    async with Origin(in_turn(hangs, answers(OK))) as origin, Harness(origin, ROUTE) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: origin.requests)
        await proxy.manual.advance(0.1)
        assert (await client.answer()).body == b"ok"
        await eventually(lambda: len(origin.open) == 1)
        assert (proxy.upstream.connections, proxy.upstream.idle, proxy.in_flight) == (1, 1, 0)
        assert proxy.exchanges[0].attempts == 2
        assert [request.header("x-sidecar-retry") for request in origin.requests] == [None, "1"]
        assert (await client.ask(GET)).body == b"ok"
        assert origin.connections == 2


async def test_both_answer_at_once() -> None:
    """The client gets one of the answers whole, and the next request gets its own."""
    together = asyncio.Barrier(2)

    async def script(connection: OriginConnection) -> None:
        request = await connection.request()
        if len(origin.requests) <= 2:
            await together.wait()
        while request is not None:
            await connection.send(OK)
            request = await connection.request()

    async with Origin(script) as origin, Harness(origin, ROUTE) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: origin.requests)
        await proxy.manual.advance(0.1)
        for _ in range(3):
            assert (await client.answer()).body == b"ok"
            await client.send(GET)
        assert (await client.answer()).body == b"ok"
        await eventually(lambda: proxy.in_flight == 0)
        assert proxy.upstream.idle == proxy.upstream.connections


@pytest.mark.parametrize("large", [False, True], ids=["whole", "streaming"])
async def test_a_hedge_that_streams(large: bool) -> None:
    """The body of the answer that counts comes to its end, though the task that fetched it is long over."""
    body = bytes(300_000) if large else b"ok"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with Origin(in_turn(hangs, answers(answer))) as origin, Harness(origin, ROUTE) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: origin.requests)
        await proxy.manual.advance(0.1)
        assert (await client.answer()).body == body
        await eventually(lambda: proxy.in_flight == 0)
        assert proxy.ended == ["done"]


async def test_the_client_leaves() -> None:
    """While both are under way: both connections are cut, and all permits are back."""
    async with Origin(hangs) as origin, Harness(origin, ROUTE) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: origin.requests)
        await proxy.manual.advance(0.1)
        await eventually(lambda: len(origin.requests) == 2)
        assert proxy.in_flight == 2
        client.close()
        await eventually(lambda: not origin.open)
        assert (proxy.upstream.connections, proxy.in_flight, proxy.manual.armed) == (0, 0, 0)


async def test_the_first_one_answers_after_all() -> None:
    """The hedge is cut, wherever it was; nothing of it reaches the client."""
    gate = asyncio.Event()

    async def late(connection: OriginConnection) -> None:
        await connection.request()
        await gate.wait()
        await connection.send(LATE)
        await connection.gone()

    async with Origin(in_turn(late, hangs)) as origin, Harness(origin, ROUTE) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: origin.requests)
        await proxy.manual.advance(0.1)
        await eventually(lambda: len(origin.requests) == 2)
        gate.set()
        assert (await client.answer()).body == b"late"
        await eventually(lambda: len(origin.open) == 1)
        assert (proxy.upstream.idle, proxy.in_flight) == (1, 0)


async def test_an_idempotency_key_on_the_wire() -> None:
    """Both attempts of a POST carry the same key, as a string."""

    async def breaks(connection: OriginConnection) -> None:
        await connection.request()

    route = {"retry": {"attempts": 2, "backoff": {"base": "0ms"}, "idempotency_key": "true"}}
    post = b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello"
    async with Origin(in_turn(breaks, answers(OK))) as origin, Harness(origin, route) as proxy:
        assert (await proxy.ask(post)).status == 200
        keys = [request.every("idempotency-key") for request in origin.requests]
        assert keys[0] == keys[1]
        assert len(keys[0]) == 1
        assert keys[0][0].startswith('"')
        assert [request.body for request in origin.requests] == [b"hello", b"hello"]
