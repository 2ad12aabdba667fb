"""Whatever breaks in a call of the app, at whatever byte, on whichever side: nothing is left of it.

As `test_leaks.py` does for clients of the app: connections, tasks, timers and descriptors are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock import ManualClock, settle
from tests.support.egress import HOST, Egress, get
from tests.support.harness import ALL_POLICIES, Client, eventually
from tests.support.origin import Origin, OriginConnection, Script, self_signed
from tests.support.tls import Tls

ROUTE = {**ALL_POLICIES, "circuit_breaker": {"minimum_calls": 1_000_000, "consecutive": "off"}}
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
END: dict[str, Callable[[Client], None]] = {
    "close": Client.close,
    "reset": Client.reset,
    "half-close": Client.half_close,
    "hang": lambda _: None,
}


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@asynccontextmanager
async def nothing_left(
    tmp_path: Path, script: Script | bytes, **settings: Any
) -> AsyncIterator[tuple[Origin, Egress]]:
    async with Origin():  # uvloop opens one for itself with the first server
        before = descriptors() - 1
    clock = ManualClock(wall=time.time())
    async with Origin(script, record=False) as origin:
        upstream = settings.pop("upstream", f"http://{origin.address}")
        async with Egress(
            tmp_path,
            upstream,
            route=ROUTE,
            clock=clock,
            names={"other.example": "127.0.0.1"},
            **settings,
        ) as egress:
            yield origin, egress
            await idle(egress)
            await settle()
            limits = egress.metrics.limits.values()
            assert sum(limit.in_flight for limit in limits) == 0, "a permit of the limit is left"
            egress.access_log.close()
            assert clock.armed == 0, "a timer is left"
        await origin.close()
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a task is left"
    await eventually(lambda: descriptors() <= before, "a descriptor is left")
    gc.collect()  # a task whose exception nobody took says so now, and `no_trouble` hears it


async def idle(egress: Egress) -> None:
    plane = egress.plane
    await eventually(lambda: not plane.connections, "a client's connection is left")
    await eventually(lambda: not plane.tunnels.connections, "a tunnel is left")
    await eventually(
        lambda: all(pool.connections == pool.idle for pool in plane.upstreams), "one to the provider is left"
    )
    for listener in plane.listeners:
        assert listener._cells.active == 0, "a connection is counted that is gone"


async def ended(egress: Egress, client: Client, end: str) -> None:
    """The client ends so, or hangs until the sidecar loses its patience."""
    END[end](client)
    if end == "hang":
        clock = egress.clock
        assert isinstance(clock, ManualClock)
        await asyncio.sleep(0.002)
        for seconds in (11, 76, 3601):
            await clock.advance(seconds)
            egress.plane.sweep(clock.now())
            egress.plane.sweep(clock.now() + 3)
    await idle(egress)
    client.close()


CONNECT_OURS = f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


@pytest.mark.parametrize("end", END)
async def test_client_ends_within_connect_and_hello(tmp_path: Path, end: str) -> None:
    """At every few bytes of a CONNECT with a ClientHello right behind it."""
    async with nothing_left(tmp_path, ANSWER) as (_, egress):
        stream = CONNECT_OURS + Tls(await egress.connect(), egress.trusting()).hello()
        egress.clients.pop().close()
        for cut in range(0, len(stream) + 1, 7):
            client = await egress.connect()
            await client.send(stream[:cut])
            if cut % 2:
                await asyncio.sleep(0.001)
            await ended(egress, client, end)


@pytest.mark.parametrize("end", END)
async def test_client_ends_within_its_request(tmp_path: Path, end: str) -> None:
    """Inside of TLS that stands: within a record of the request, and within the answer."""
    async with nothing_left(tmp_path, ANSWER) as (_, egress):
        size = len(get()) + 22  # of the record
        for cut in (0, 1, 4, 5, 6, 30, size - 1, size):
            client = await egress.connect(egress.intercept)
            tls = Tls(client, egress.trusting())
            await client.send(tls.hello())
            await tls.shake_hands()
            await client.send(tls.encrypted(get())[:cut])
            if cut % 2:
                await asyncio.sleep(0.002)
            await ended(egress, client, end)


@pytest.mark.parametrize("end", ["close", "reset", "half-close"])
async def test_provider_ends_within_its_answer(tmp_path: Path, end: str) -> None:
    """The client inside of TLS sees that the answer is cut short; over TLS to the provider, too."""
    certificate = self_signed(tmp_path, HOST)
    cut = 0

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(ANSWER[:cut])
        if end == "reset":
            connection.reset()

    async with Origin(script, tls=certificate.server()) as secure:
        policy = {"tls": {"ca": str(certificate.path)}, "connect_to": str(secure.address)}
        async with nothing_left(tmp_path, script, upstream=None, policy=policy) as (_, egress):
            for size in range(0, len(ANSWER) + 1, 4):
                cut = size
                client = await egress.secure()
                await client.send(get())
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    answer = await client.answer()
                    assert answer.status in (200, 502)
                await ended(egress, client, "close")


async def tunnel(egress: Egress, origin: Origin) -> Client:
    return await egress.tunnel(f"localhost:{origin.address.port}")


async def passed(egress: Egress, origin: Origin) -> Client:
    client = await egress.connect(egress.intercept)
    await client.send(Tls(client, egress.trusting(), "other.example").hello())
    return client


@pytest.mark.parametrize("open_", [tunnel, passed])
@pytest.mark.parametrize("end", END)
async def test_client_ends_a_tunnel(
    tmp_path: Path, open_: Callable[[Egress, Origin], Awaitable[Client]], end: str
) -> None:
    """With bytes on their way in both directions, also where the other side does not care."""

    async def script(connection: OriginConnection) -> None:
        await connection.send(b"hello" * 1000)
        await connection.gone()

    async with nothing_left(tmp_path, script) as (origin, egress):
        if open_ is passed:
            egress.plane.tunnels._dial = lambda factory, _, tls, name: egress.plane._dial(
                factory, origin.address, tls, name
            )
        for sent in (b"", b"x", bytes(300_000)):
            client = await open_(egress, origin)
            await eventually(lambda: egress.plane.tunnels.connections)
            await client.send(sent)
            await asyncio.sleep(0.002)
            await ended(egress, client, end)


@pytest.mark.parametrize("end", ["close", "reset", "half-close"])
async def test_host_ends_a_tunnel(tmp_path: Path, end: str) -> None:
    """The client sees the end, and ends its own side."""

    async def script(connection: OriginConnection) -> None:
        await connection.send(b"hello")
        if end == "reset":
            connection.reset()
        elif end == "half-close":
            connection.half_close()
            await connection.gone()

    async with nothing_left(tmp_path, script) as (origin, egress):
        for _ in range(5):
            client = await tunnel(egress, origin)
            with contextlib.suppress(ConnectionError):
                assert (await client.rest()) in (b"hello", b"")
            await ended(egress, client, "close")


async def test_client_leaves_while_a_tunnel_is_made(tmp_path: Path) -> None:
    """A connection that is made for nobody is dropped."""
    go = asyncio.Event()

    async with nothing_left(tmp_path, ANSWER) as (origin, egress):
        resolve = egress.plane._dial._resolve

        async def slow(address: object) -> object:
            await go.wait()
            return await resolve(address)  # type: ignore[arg-type]

        egress.plane._dial._resolve = slow  # type: ignore[assignment]
        for how in ("close", "reset"):
            client = await egress.connect()
            await client.send(f"CONNECT localhost:{origin.address.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await asyncio.sleep(0.01)
            await ended(egress, client, how)
        go.set()


async def test_a_host_that_never_answers(tmp_path: Path) -> None:
    """A connection that is not made in ten seconds is given up."""
    async with nothing_left(tmp_path, ANSWER) as (_, egress):

        async def never(_: object) -> object:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        egress.plane._dial._resolve = never  # type: ignore[assignment]
        client = await egress.connect()
        await client.send(b"CONNECT localhost:1 HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.01)
        clock = egress.clock
        assert isinstance(clock, ManualClock)
        await clock.advance(10.1)
        answer = await client.answer()
        assert (answer.status, answer.problem["detail"]) == (502, "no connection within 10 s")
        await ended(egress, client, "close")


async def test_draining(tmp_path: Path) -> None:
    """Idle connections end at once, calls in flight are answered, silent tunnels are cut soon."""
    go = asyncio.Event()

    async def script(connection: OriginConnection) -> None:
        while await connection.request() is not None:
            await go.wait()
            await connection.send(ANSWER)

    async with nothing_left(tmp_path, script) as (origin, egress):
        quiet = await egress.secure()
        busy = await egress.secure()
        silent = await tunnel(egress, origin)
        opening = await egress.connect(egress.intercept)
        await busy.send(get())
        await eventually(lambda: origin.requests)
        await eventually(lambda: egress.plane.connections == 4)
        draining = asyncio.create_task(egress.plane.drain(30))
        assert await quiet.ended()
        assert await opening.ended()
        egress.plane.sweep(egress.clock.now() + 1.5)
        assert await silent.ended()
        go.set()
        answer = await busy.answer()
        assert (answer.status, answer.closes) == (200, True)
        assert await busy.ended()
        assert await draining == 0


async def test_draining_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    """What is not over in time is cut off."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.gone()

    async with nothing_left(tmp_path, script) as (origin, egress):
        busy = await egress.secure()
        await busy.send(get())
        await eventually(lambda: origin.requests)
        draining = asyncio.create_task(egress.plane.drain(5))
        await settle()
        clock = egress.clock
        assert isinstance(clock, ManualClock)
        await clock.advance(5.1)
        assert await draining == 1
        assert await busy.ended()
