"""`Expect: 100-continue` is answered on the client's own hop, when its body is wanted (RFC 9110, 10.1.1)."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.harness import ALL_POLICIES, GET, Harness, eventually
from tests.support.origin import OK, Origin, OriginConnection

HEAD = b"POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "body"), [(HEAD, b"hello"), (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n")], ids=["counted", "chunked"]
)
async def test_wanted(head: bytes, body: bytes) -> None:
    """The client is told to go on, once; the app hears nothing of the expectation."""
    async with Origin() as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        for _ in range(3):
            await client.send(head)
            interim = await client.head()
            assert (interim.status, interim.headers) == (100, [])
            await client.send(body)
            answer = await client.answer()
            assert (answer.status, answer.closes) == (200, False)
        assert [request.body for request in origin.requests] == [b"hello"] * 3
        assert {request.header("expect") for request in origin.requests} == {None}


@pytest.mark.parametrize("cut", [len(HEAD) + 5, len(HEAD) + 2], ids=["whole", "in part"])
async def test_a_client_that_does_not_wait(cut: int) -> None:
    """A body that comes along needs no 100."""
    message = HEAD + b"hello"
    async with Origin() as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        await client.send(*((message[:cut], message[cut:]) if cut < len(message) else (message,)))
        assert (await client.head()).status == 200
        assert origin.requests[0].body == b"hello"


async def test_refused_before_the_body() -> None:
    """An answer that needs no body is final: no 100 before it, and the connection ends after it."""
    async with Origin() as origin, Harness(origin, ALL_POLICIES) as proxy:
        await origin.close()
        client = await proxy.connect()
        await client.send(HEAD)
        answer = await client.answer()
        assert (answer.status, answer.closes) == (502, True)
        assert await client.ended()
        proxy.sweep(3)
        await eventually(lambda: not proxy.listener.connections)
        assert proxy.in_flight == 0


async def test_refused_by_a_limit() -> None:
    """A body that is announced as too large is not asked for."""
    async with Origin() as origin, Harness(origin, limits={"body": 4}) as proxy:
        client = await proxy.connect()
        await client.send(HEAD)
        answer = await client.answer()
        assert (answer.status, answer.closes) == (413, True)
        assert origin.connections == 0


async def test_only_asked_for_once() -> None:
    """A second attempt does not ask for the body again: it was read once, and is kept."""
    route = {**ALL_POLICIES, "retry": {"attempts": 2, "methods": ["POST"], "backoff": {"base": "0ms"}}}
    answers = iter([b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", OK])

    async def script(connection: OriginConnection) -> None:
        while await connection.request() is not None:
            await connection.send(next(answers))

    async with Origin(script) as origin, Harness(origin, route) as proxy:
        client = await proxy.connect()
        await client.send(HEAD)
        assert (await client.head()).status == 100
        await client.send(b"hello")
        assert (await client.answer()).status == 200
        assert [request.body for request in origin.requests] == [b"hello", b"hello"]


async def test_http10_and_no_body() -> None:
    """The expectation of a client of HTTP/1.0, or of one without a body, is not heard."""
    async with Origin() as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        await client.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhel", b"lo")
        assert (await client.head()).status == 200
        client = await proxy.connect()
        await client.send(
            b"POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n"
        )
        assert (await client.head()).status == 200
        assert [request.body for request in origin.requests] == [b"hello", b""]


async def test_a_wait_that_is_not_the_clients_fault() -> None:
    """A client that waits for its 100 while the request waits for a permit is not taken for a slow one."""
    go = asyncio.Event()

    async def script(connection: OriginConnection) -> None:
        while await connection.request() is not None:
            await go.wait()
            await connection.send(OK)

    route = {"concurrency_limit": {"max": 1, "queue": "1h"}}
    async with Origin(script) as origin, Harness(origin, route) as proxy:
        first = await proxy.connect()
        await first.send(GET)
        await eventually(lambda: origin.requests)
        second = await proxy.connect()
        await second.send(HEAD)
        await eventually(lambda: len(proxy.exchanges) == 2)
        proxy.sweep(100)
        go.set()
        assert (await first.answer()).status == 200
        assert (await second.head()).status == 100
        await second.send(b"hello")
        assert (await second.answer()).status == 200
