"""Bodies that are looked at, over real sockets: framing, reuse of connections, what breaks, who leaves."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar.decisions.opening import MOST
from sidecar.exchange import Exchange
from tests.support.harness import ALL_POLICIES, GET, Client, Harness, eventually
from tests.support.origin import Origin, OriginConnection

RULES = [
    {"json": {"error.code": "insufficient_quota"}, "verdict": "quota"},
    {"json": {"error": "*"}, "verdict": "transient"},
]
SPENT = b'{"error": {"code": "insufficient_quota"}}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def between(
    *pieces: bytes, then: Callable[[OriginConnection], Any] | None = None, **more: Any
) -> AsyncIterator[tuple[Origin, Harness]]:
    """A sidecar with rules before an origin that answers every request with these pieces."""

    async def script(connection: OriginConnection) -> None:
        while await connection.request() is not None:
            await connection.send(*pieces)
            if then is not None:
                await then(connection)
                return

    async with Origin(script) as origin, Harness(origin, {**ALL_POLICIES, "classify": RULES, **more}) as it:
        yield origin, it


def last(harness: Harness) -> Exchange:
    return harness.exchanges[-1]


def verdict(harness: Harness) -> str:
    found = last(harness).verdict
    assert found is not None
    return found.value


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + b"Content-Length: %d\r\n\r\n" % len(SPENT) + SPENT],
        [HEAD + b"Content-Length: %d\r\n\r\n" % len(SPENT), SPENT[:5], SPENT[5:]],
        [CHUNKED + chunk(SPENT[:7]), chunk(SPENT[7:]), b"0\r\n\r\n"],
    ],
    ids=["at once", "counted", "chunked"],
)
async def test_a_small_body_goes_out_whole(pieces: list[bytes]) -> None:
    """However it came; and the connection to the origin serves the next request."""
    async with between(*pieces) as (origin, harness):
        client = await harness.connect()
        for _ in range(2):
            answer = await client.ask(GET)
            assert (answer.body, answer.framing, verdict(harness)) == (SPENT, "length", "quota")
        assert origin.connections == 1
        assert harness.in_flight == harness.probing == 0


async def test_a_body_until_close_is_looked_at() -> None:
    """Its end is that of the connection."""

    async def close(connection: OriginConnection) -> None:
        connection.close()

    async with between(HEAD + b"Connection: close\r\n\r\n" + SPENT[:9], SPENT[9:], then=close) as (
        _,
        harness,
    ):
        answer = await harness.ask(GET)
        assert (answer.body, answer.framing, verdict(harness)) == (SPENT, "length", "quota")


async def test_a_coded_body_is_passed_on_as_it_came() -> None:
    """Field and bytes."""
    packed = gzip.compress(SPENT)
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with between(head + packed[:11], packed[11:]) as (_, harness):
        answer = await harness.ask(GET)
        assert (answer.body, answer.header("content-encoding"), verdict(harness)) == (packed, "gzip", "quota")


@pytest.mark.parametrize("counted", [True, False])
async def test_a_large_body_is_passed_on_unharmed(counted: bool) -> None:
    """Every byte, at the framing it came with, though its beginning was looked at."""
    body = b'{"a": "' + bytes(range(97, 123)) * 20_000 + b'"}'
    pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
    if counted:
        sent = [HEAD + b"Content-Length: %d\r\n\r\n" % len(body), *pieces]
    else:
        sent = [CHUNKED, *map(chunk, pieces), b"0\r\n\r\n"]
    assert len(body) > MOST
    async with between(*sent) as (origin, harness):
        client = await harness.connect()
        for _ in range(2):
            answer = await client.ask(GET)
            assert answer.body == body
            assert answer.framing == ("length" if counted else "chunked")
            assert ("classify", "ok;too-large") in (last(harness).note_list or ())
        assert origin.connections == 1
        await eventually(lambda: harness.in_flight == 0)


async def test_the_first_event_goes_out_while_the_stream_is_open() -> None:
    """The client has it before the origin sends another."""
    more = asyncio.Event()

    async def rest(connection: OriginConnection) -> None:
        await more.wait()
        await connection.send(chunk(b"data: 2\n\n"), b"0\r\n\r\n")

    async with between(EVENTS + chunk(b"data: "), chunk(b"1\n\n"), then=rest) as (_, harness):
        client = await harness.connect()
        await client.send(GET)
        await client.head()
        assert await client.reader.readexactly(len(chunk(b"data: "))) == chunk(b"data: ")
        assert await client.reader.readexactly(len(chunk(b"1\n\n"))) == chunk(b"1\n\n")
        assert harness.in_flight == 1
        more.set()
        assert await client.reader.readexactly(len(chunk(b"data: 2\n\n"))) == chunk(b"data: 2\n\n")
        await eventually(lambda: harness.in_flight == 0)


@pytest.mark.parametrize(
    "begun",
    [HEAD + b"Content-Length: 99\r\n\r\n" + SPENT[:9], CHUNKED + chunk(SPENT[:9]), EVENTS + chunk(b"da")],
)
async def test_a_body_that_breaks_off_is_repeated(begun: bytes) -> None:
    """The client sees nothing of the first attempt."""
    whole = HEAD + b"Content-Length: 2\r\n\r\n{}"

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(whole if origin.connections > 1 else begun)

    async with Origin(script) as origin, Harness(origin, {**ALL_POLICIES, "classify": RULES}) as harness:
        answer = await harness.ask(GET)
        assert (answer.status, answer.body, last(harness).attempts) == (200, b"{}", 2)
        assert ("retry", "reset") in (last(harness).note_list or ())
        assert harness.in_flight == harness.probing == 0


async def test_a_body_that_stands_still_ends_with_the_attempt() -> None:
    """504, and the origin's connection is dropped."""
    async with between(CHUNKED + chunk(b"{"), attempt_timeout="3s", retry="off") as (_, harness):
        client = await harness.connect()
        await client.send(GET)
        await eventually(lambda: harness.in_flight == 1 and harness.upstream.connections == 1)
        await asyncio.sleep(0.05)  # the head is in
        await harness.manual.advance(3.1)
        answer = await client.answer()
        assert (answer.status, answer.header("sidecar-error")) == (504, "attempt_timeout")
        await eventually(lambda: not harness.upstream.connections)
        assert harness.in_flight == harness.probing == 0


async def test_a_silent_body_ends_with_its_idle_limit() -> None:
    """Where no time is set for the attempt, `idle` ends the wait."""
    off: Mapping[str, Any] = {"attempt_timeout": "off", "deadline": "off", "retry": "off"}
    async with between(CHUNKED + chunk(b"{"), **off) as (_, harness):
        client = await harness.connect()
        await client.send(GET)
        await eventually(lambda: harness.upstream.connections == 1)
        await asyncio.sleep(0.05)  # the head is in
        harness.sweep(21)
        answer = await client.answer()
        assert (answer.status, answer.header("sidecar-error")) == (502, "upstream_body_broken")


@pytest.mark.parametrize("how", [Client.close, Client.reset])
async def test_a_client_that_leaves_meanwhile(how: Callable[[Client], None]) -> None:
    """Nothing is held for it, and the origin is told."""
    async with between(CHUNKED + chunk(b"{")) as (origin, harness):
        client = await harness.connect()
        await client.send(GET)
        await eventually(lambda: harness.in_flight == 1 and origin.requests)
        await asyncio.sleep(0.05)  # the head is in
        how(client)
        await eventually(lambda: not harness.upstream.connections)
        await eventually(lambda: harness.in_flight == 0 and not harness.listener.connections)
        assert harness.probing == 0


async def test_a_tunnel_is_not_looked_at() -> None:
    """A 101 has no body: bytes pass both ways as ever."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: e\r\n\r\n"
        )
        connection.writer.write(await connection.reader.readexactly(4))
        await connection.writer.drain()

    async with Origin(script) as origin, Harness(origin, {**ALL_POLICIES, "classify": RULES}) as harness:
        client = await harness.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: e\r\n\r\n")
        assert (await client.head()).status == 101
        await client.send(b"ping")
        assert await client.reader.readexactly(4) == b"ping"


async def test_a_head_has_nothing_to_wait_for() -> None:
    """Whatever length it tells of."""
    async with between(HEAD + b"Content-Length: 41\r\n\r\n") as (_, harness):
        answer = await harness.ask(b"HEAD / HTTP/1.1\r\nHost: app\r\n\r\n")
        assert (answer.status, answer.header("content-length"), verdict(harness)) == (200, "41", "ok")
