"""Whatever breaks, at whatever byte, on whichever side: afterwards nothing is left of it.

Counted are connections on both sides, tasks, timers, file descriptors, and the permits of the limit and
of the breaker, which is made to open at once and to probe again with the next request.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock import settle
from tests.support.harness import ALL_POLICIES, GET, Client, Harness, eventually
from tests.support.origin import OK, Origin, OriginConnection, Script

ROUTE: dict[str, Any] = {
    **ALL_POLICIES,
    "circuit_breaker": {"consecutive": 1, "open_for": "1ms", "open_max": "1ms", "half_open_probes": 2},
    "concurrency_limit": {"max": 2, "queue": "1s"},
}
CHUNKED = (
    b"PUT / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX: y\r\n\r\n"
)
COUNTED = b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 11\r\n\r\nhello world"
EXPECTING = b"PUT / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"
UPGRADE = b"GET / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello"
LARGE = b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 500000\r\n\r\n" + bytes(500_000)

ANSWER = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nhello"
ANSWER_CHUNKED = (
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX: y\r\n\r\n"
)
ANSWER_LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + bytes(500_000)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello"


def cuts(message: bytes) -> list[int]:
    """Every byte of a short message; of a long one the head's and some more."""
    if len(message) < 1000:
        return list(range(len(message) + 1))
    return [*range(70), 65_536, 100_000, 131_072, 262_144, 400_000, len(message) - 1, len(message)]


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@asynccontextmanager
async def nothing_left(script: Script | bytes) -> AsyncIterator[tuple[Origin, Harness]]:
    async with Origin():  # uvloop opens one for itself with the first server
        before = descriptors() - 1
    async with Origin(script, record=False) as origin:
        async with Harness(origin, ROUTE, limits={"idle": 60.0}) as proxy:
            yield origin, proxy
            await eventually(lambda: not proxy.listener.connections, "a client's connection is left")
            await eventually(
                lambda: proxy.upstream.connections == proxy.upstream.idle, "one to the app is left"
            )
            await settle()
            assert proxy.in_flight == 0, "a permit of the limit is left"
            assert proxy.probing == 0, "a probe of the breaker is left"
            assert proxy.manual.armed == 0, "a timer is left"
        await origin.close()
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a task is left"
    await eventually(lambda: descriptors() <= before, "a descriptor is left")
    gc.collect()  # a task whose exception nobody took says so now, and `no_trouble` hears it


async def next_turn(proxy: Harness) -> None:
    """The breaker probes again; what lingered is gone."""
    await eventually(lambda: not proxy.in_flight)
    await proxy.manual.advance(1)


END: dict[str, Callable[[Client], None]] = {
    "close": Client.close,
    "reset": Client.reset,
    "half-close": Client.half_close,
    "hang": lambda _: None,
}


@pytest.mark.parametrize("end", END)
@pytest.mark.parametrize(
    "request_",
    [CHUNKED, COUNTED, EXPECTING, LARGE, GET + COUNTED],
    ids=["chunked", "counted", "expecting", "large", "pipelined"],
)
async def test_client_ends_within_its_request(request_: bytes, end: str) -> None:
    """The client sends a part of its request, and then nothing more."""
    async with nothing_left(ANSWER) as (_, proxy):
        for cut in cuts(request_):
            client = await proxy.connect()
            await client.send(request_[:cut])
            if cut % 2:
                await asyncio.sleep(0.001)  # else it may go before its bytes are looked at
            END[end](client)
            if end == "hang":
                await eventually(lambda: proxy.listener.connections)
                await asyncio.sleep(0.001)
                await proxy.manual.advance(61)
                proxy.sweep()
                proxy.sweep(3)
            await eventually(lambda: not proxy.listener.connections, f"a connection is left at {cut}")
            client.close()
            await next_turn(proxy)


@pytest.mark.parametrize("end", END)
@pytest.mark.parametrize(
    ("request_", "answer"),
    [(GET, ANSWER), (CHUNKED, ANSWER_CHUNKED), (GET, ANSWER_LARGE), (UPGRADE, SWITCH)],
    ids=["counted", "chunked", "large", "upgrade"],
)
async def test_client_ends_within_the_answer(request_: bytes, answer: bytes, end: str) -> None:
    """The client leaves, or stops to read, while the app has sent a part of its answer, and no more comes."""
    cut = 0

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(answer[:cut])
        await connection.gone()

    async with nothing_left(script) as (origin, proxy):
        for cut in cuts(answer):
            client = await proxy.connect()
            seen = len(origin.requests)
            await client.send(request_)
            await eventually(lambda seen=seen: len(origin.requests) > seen)  # type: ignore[misc]
            await asyncio.sleep(0.001)
            END[end](client)
            if end == "hang":
                await proxy.manual.advance(21)
                proxy.sweep()
                await settle()
                await proxy.manual.advance(61)
                proxy.sweep()
                proxy.sweep(3)
            if end == "half-close" and cut >= len(SWITCH) and answer is SWITCH:
                client.close()
            await eventually(lambda: not proxy.listener.connections, f"a connection is left at {cut}")
            client.close()
            await next_turn(proxy)


@pytest.mark.parametrize("end", ["close", "reset", "half-close", "hang"])
@pytest.mark.parametrize(
    ("request_", "answer"),
    [(GET, ANSWER), (CHUNKED, ANSWER_CHUNKED), (LARGE, ANSWER_LARGE), (UPGRADE, SWITCH)],
    ids=["counted", "chunked", "large", "upgrade"],
)
async def test_app_ends_within_its_answer(request_: bytes, answer: bytes, end: str) -> None:
    """The app sends a part of its answer, and then nothing more."""
    cut = 0

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(answer[:cut])
        if cut % 2:
            await asyncio.sleep(0.001)
        if end == "reset":
            connection.reset()
        elif end == "half-close":
            connection.half_close()
        if end in ("half-close", "hang"):
            await connection.gone()

    async with nothing_left(script) as (_, proxy):
        for cut in cuts(answer):
            client = await proxy.connect()
            reading = asyncio.create_task(all_of(client))
            seen = len(proxy.exchanges)
            await client.send(request_)
            await eventually(lambda seen=seen: len(proxy.exchanges) > seen)  # type: ignore[misc]
            await asyncio.sleep(0.002)
            if end == "hang":
                await proxy.manual.advance(11)
                await proxy.manual.advance(11)
                proxy.sweep()
            if not client.writer.is_closing():
                client.half_close()
            await reading
            client.close()
            await eventually(lambda: not proxy.listener.connections, f"a connection is left at {cut}")
            await next_turn(proxy)


async def all_of(client: Client) -> None:
    try:
        await client.rest()
    except ConnectionError:
        return


@pytest.mark.parametrize("end", ["close", "reset", "half-close", "hang"])
@pytest.mark.parametrize("request_", [CHUNKED, LARGE], ids=["chunked", "large"])
async def test_app_ends_within_the_request(request_: bytes, end: str) -> None:
    """The app reads a part of the request, and then nothing more."""
    cut = 0

    async def script(connection: OriginConnection) -> None:
        await connection.reader.readexactly(cut)
        if end == "reset":
            connection.reset()
        elif end == "half-close":
            connection.half_close()
        if end in ("half-close", "hang"):
            await connection.gone()

    async with nothing_left(script) as (_, proxy):
        for cut in (
            (0, 1, 100, 200, 230, 240, 250) if request_ is CHUNKED else (0, 1, 200, 70_000, 200_000, 400_000)
        ):
            client = await proxy.connect()
            reading = asyncio.create_task(all_of(client))
            seen = len(proxy.exchanges)
            sending = asyncio.create_task(client.send(request_))
            await eventually(lambda seen=seen: len(proxy.exchanges) > seen)  # type: ignore[misc]
            await asyncio.sleep(0.005)
            if end == "hang":
                await proxy.manual.advance(11)
                await proxy.manual.advance(11)
            await asyncio.gather(sending, return_exceptions=True)
            if not client.writer.is_closing():
                client.half_close()
            await reading
            client.close()
            await eventually(lambda: not proxy.listener.connections, f"a connection is left at {cut}")
            await next_turn(proxy)


async def test_an_answer_in_the_moment_of_giving_up() -> None:
    """A response that comes together with the client's end leaves its connection to whoever has it next."""
    async with nothing_left(OK) as (origin, proxy):
        client = await proxy.connect()
        assert (await client.ask(GET)).status == 200
        release = proxy.upstream.release
        (connection,) = proxy.listener._connections

        def release_and_cancel(released: object) -> None:
            assert connection._task is not None
            asyncio.get_running_loop().call_soon(connection._task.cancel)
            release(released)  # type: ignore[arg-type]

        proxy.upstream.release = release_and_cancel  # type: ignore[method-assign, assignment]
        await client.send(GET)
        await eventually(lambda: len(origin.requests) == 2 and proxy.upstream.idle)
        proxy.upstream.release = release  # type: ignore[method-assign]
        await settle()
        client.close()
        assert (await proxy.ask(GET)).status == 200
        assert origin.connections == 1


async def test_random_ends() -> None:
    """Many clients at once that leave at any time, while the app also ends anywhere."""
    turn = 0

    async def script(connection: OriginConnection) -> None:
        nonlocal turn
        while await connection.request() is not None:
            turn += 1
            if turn % 7 == 0:
                await connection.send(ANSWER_CHUNKED[: turn % len(ANSWER_CHUNKED)])
                connection.reset()
                return
            await connection.send(ANSWER_LARGE if turn % 5 == 0 else ANSWER_CHUNKED)

    async def visit(proxy: Harness, number: int) -> None:
        client = await proxy.connect()
        request = (GET, CHUNKED, COUNTED, LARGE)[number % 4]
        await client.send(request[: len(request) - (number % 3 == 0) * (number % 50)])
        await asyncio.sleep((number % 10) * 0.0003)
        (client.close, client.reset, client.half_close)[number % 3]()

    async with nothing_left(script) as (_, proxy):
        for start in range(0, 600, 50):
            await asyncio.gather(*(visit(proxy, number) for number in range(start, start + 50)))
            await proxy.manual.advance(2)
        await eventually(lambda: not proxy.in_flight)
