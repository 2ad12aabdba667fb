"""A sidecar under load whose Redis freezes, dies, refuses, fills up or gets slow: clients do not notice."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest

from tests.support.processes import Sidecar, TinyApp, until_connects
from tests.support.valkey import SlowWire, Valkey, running, slow_wire

RATE = 300
"""Requests a second, on schedule, whatever comes of those before."""
WARM = 50
COLD_EVERY = 10
HEALTHY = 2.0
"""Seconds of load before the fault: what it is compared with."""
BROKEN = 2.5
RECOVERY = 5.0
RISE = 0.010
SLOW_OPERATIONS = 3
SLOW = 0.025
"""A request that takes longer has waited for the server: it gives up after 30 to 50 ms."""
TRIES = 3
POLICIES = {
    "name": "tiny",
    "routes": [{"name": "items", "match": {"path": "/shared/{item}"}, "cache": {"tags": ["item:{item}"]}}],
}


@dataclass(frozen=True, slots=True)
class Sample:
    at: float
    """When it was due, in seconds of the loop's clock."""
    took: float
    """From then, so that a late client does not hide a slow answer."""
    warm: bool
    hit: bool
    error: str


class Load:
    """RATE requests a second until it is stopped, each COLD_EVERY-th for a key that nobody asked for."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._url = sidecar.url
        self.samples: list[Sample] = []
        self._stopping = False
        self._cold = 0

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        async with asyncio.TaskGroup() as group:
            for number in range(WARM):
                group.create_task(self._send(asyncio.get_running_loop().time(), f"warm-{number}"))
        self.samples.clear()
        gc.collect()
        gc.freeze()
        gc.disable()  # what pytest holds takes longer to look through than a request
        self._driver = asyncio.create_task(self._drive())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await self._driver
        await self._http.close()
        gc.enable()
        gc.unfreeze()

    def between(self, start: float, end: float) -> list[Sample]:
        return [sample for sample in self.samples if start <= sample.at < end]

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        number = 0
        async with asyncio.TaskGroup() as group:
            while not self._stopping:
                due = start + number / RATE
                await asyncio.sleep(max(0.0, due - loop.time()))
                if number % COLD_EVERY:
                    name = f"warm-{number % WARM}"
                else:
                    name = f"cold-{self._cold}"
                    self._cold += 1
                group.create_task(self._send(due, name))
                number += 1

    async def _send(self, due: float, name: str) -> None:
        error, hit = "", False
        try:
            async with self._http.get(f"{self._url}/shared/{name}") as reply:
                await reply.read()
                hit = reply.headers.get("Cache-Status", "").startswith("sidecar; hit")
                if reply.status != 200 or "Sidecar-Degraded" in reply.headers:
                    error = str(reply.status)
        except aiohttp.ClientError as failed:
            error = type(failed).__name__
        took = asyncio.get_running_loop().time() - due
        self.samples.append(Sample(due, took, name.startswith("warm"), hit, error))


def p99(samples: list[Sample]) -> float:
    times = sorted(sample.took for sample in samples)
    return times[-(-len(times) * 99 // 100) - 1]


def without_slow(samples: list[Sample]) -> list[Sample]:
    """All but the first requests that waited for the server: one for each slow operation allowed."""
    slow = [sample for sample in sorted(samples, key=lambda each: each.at) if sample.took > SLOW]
    return [sample for sample in samples if sample not in slow[:SLOW_OPERATIONS]]


@dataclass(frozen=True)
class Fault:
    """`away`: the server cannot be used at all meanwhile, and the statistics say so."""

    name: str
    strike: Callable[[Valkey, SlowWire], object]
    mend: Callable[[Valkey, SlowWire], object]
    away: bool = True
    url: Callable[[Valkey, SlowWire], str] = lambda server, _: server.url


def _password(server: Valkey, word: str) -> None:
    """Those already logged in with another one have to come again."""
    server.ask("ACL", "SETUSER", "sidecar", "on", "resetpass", f">{word}", "~*", "&*", "+@all")
    server.ask("CLIENT", "KILL", "USER", "sidecar")


def _delay(wire: SlowWire, seconds: float) -> None:
    wire.delay = seconds


FAULTS = (
    Fault("frozen", lambda server, _: server.freeze(), lambda server, _: server.thaw()),
    Fault("killed", lambda server, _: server.kill(), lambda server, _: server.start()),
    Fault(
        "wrong-password",
        lambda server, _: _password(server, "another"),
        lambda server, _: _password(server, "right"),
        url=lambda server, _: f"unix://sidecar:right@{server.path}",
    ),
    Fault(
        "full-memory",
        lambda server, _: server.ask("CONFIG", "SET", "maxmemory", "1"),
        lambda server, _: server.ask("CONFIG", "SET", "maxmemory", "0"),
        away=False,
    ),
    Fault(
        "200-ms-away",
        lambda _, wire: _delay(wire, 0.1),
        lambda _, wire: _delay(wire, 0.0),
        url=lambda _, wire: wire.url,
    ),
)


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with running("--maxmemory-policy", "noeviction") as server:
        server.ask("ACL", "SETUSER", "sidecar", "on", ">right", "~*", "&*", "+@all")
        yield server


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[TinyApp]:
    app = TinyApp(tmp_path)
    await app.start()
    yield app
    await app.end(signal.SIGKILL)


async def started(stack: AsyncExitStack, folder: Path, app: TinyApp, redis: str) -> Sidecar:
    sidecar = Sidecar(folder, app.port, POLICIES, cache={"redis": redis}, logging={"access": False})
    await sidecar.start()
    stack.push_async_callback(sidecar.end, signal.SIGKILL)
    await until_connects(sidecar.admin_port)
    return sidecar


async def stats(sidecar: Sidecar) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.get(sidecar.admin + "/admin/cache/stats") as reply:
        found: dict[str, Any] = await reply.json()
        return found


async def recovered(sidecar: Sidecar, written: int) -> float:
    """Seconds until the server is used again: connected, and more than `written` responses set there."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while loop.time() - start < RECOVERY:
        seen = await stats(sidecar)
        if seen["redis_connected"] and seen["redis"]["sets"] > written:
            return loop.time() - start
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {RECOVERY} s: {await stats(sidecar)}")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_failing_redis_is_not_noticed(
    valkey: Valkey, app: TinyApp, tmp_path: Path, fault: Fault
) -> None:
    """At 300 requests a second: no error, what is in memory stays a hit, after three slow operations p99
    is at most 10 ms higher than before, and the server is in use again 5 s after it came back.

    Another process on the machine can only make p99 worse: where the bound is missed, it is measured again.
    """
    async with slow_wire(valkey) as wire, AsyncExitStack() as stack:
        sidecar = await started(stack, tmp_path, app, fault.url(valkey, wire))
        await recovered(sidecar, -1)
        load = await stack.enter_async_context(Load(sidecar))
        for _ in range(TRIES):
            rises = await _measure(load, sidecar, valkey, wire, fault)
            assert [sample for sample in load.samples if sample.error] == []
            if max(rises) <= RISE:
                break
        assert max(rises) <= RISE


async def _measure(
    load: Load, sidecar: Sidecar, valkey: Valkey, wire: SlowWire, fault: Fault
) -> tuple[float, float]:
    """One fault from its beginning to its end; by how many seconds p99 rose: of hits, and of all."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.sleep(HEALTHY)
    broke = loop.time()
    await asyncio.to_thread(fault.strike, valkey, wire)
    await asyncio.sleep(BROKEN)
    meanwhile = await stats(sidecar)
    ended = loop.time()
    await asyncio.to_thread(fault.mend, valkey, wire)
    took = await recovered(sidecar, meanwhile["redis"]["sets"])
    back = loop.time()
    await asyncio.sleep(0.2)

    before, during, after = load.between(began, broke), load.between(broke, ended), load.between(ended, back)
    assert len(during) >= RATE * BROKEN * 0.9
    counted = without_slow(during)
    hits = [[sample for sample in phase if sample.hit] for phase in (before, counted)]
    rises = (p99(hits[1]) - p99(hits[0]), p99(counted) - p99(before))
    redis = meanwhile["redis"]
    slow = [sum(sample.took > SLOW for sample in phase) for phase in (before, during)]
    print(  # noqa: T201 - the figures that the assertions are about
        f"\n{fault.name}: p99 of hits {p99(hits[0]) * 1000:.1f} -> {p99(hits[1]) * 1000:.1f} ms, "
        f"of all {p99(before) * 1000:.1f} -> {p99(counted) * 1000:.1f} ms, "
        f"slow {slow[0]} -> {slow[1]}; "
        f"in use again after {took:.2f} s, p99 meanwhile {p99(after) * 1000 if after else 0:.1f} ms; "
        f"timeouts {redis['timeouts']}, errors {redis['errors']}, {redis['reason'] or 'connected'}"
    )
    assert all(sample.hit for sample in during if sample.warm)
    assert meanwhile["redis_connected"] is not fault.away
    if not fault.away:
        assert redis["errors"]["oom"] > 0
    return rises


async def test_a_start_without_the_server(valkey: Valkey, app: TinyApp, tmp_path: Path) -> None:
    """Without a server the cache works in memory from the first request on, and uses it once it is there."""
    valkey.kill()
    async with AsyncExitStack() as stack:
        sidecar = await started(stack, tmp_path, app, valkey.url)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        for expected in ("sidecar; fwd=uri-miss", "sidecar; hit"):
            async with http.get(sidecar.url + "/shared/alone") as reply:
                assert reply.status == 200
                assert reply.headers["Cache-Status"].startswith(expected)
        assert (await stats(sidecar))["redis_connected"] is False
        start = asyncio.get_running_loop().time()
        await asyncio.to_thread(valkey.start)
        load = await stack.enter_async_context(Load(sidecar))
        await recovered(sidecar, 0)
        took = asyncio.get_running_loop().time() - start
        print(f"\nin use {took:.2f} s after its start")  # noqa: T201 - the figure that is asserted
        assert took <= RECOVERY
        assert [sample for sample in load.samples if sample.error] == []
        assert any(b"/shared/cold-" in key for key in valkey.stored())
