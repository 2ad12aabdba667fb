"""Rate limits of real sidecars: of all routes together, shared by replicas, and with a Redis that is gone."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sidecar.stores.redis_link import BOUND
from tests.support.processes import Sidecar, TinyApp, total
from tests.support.valkey import Valkey, running

ENDLESS = {"rate": "1/h", "burst": 20}
SLACK = 0.150
"""Seconds that a request through three processes may take on a busy machine, beside a bound."""
PATH = "/hello"

Start = Callable[..., Awaitable[Sidecar]]


def policies(**limit: Any) -> dict[str, Any]:
    return {"name": "tiny", "routes": [{"name": "all", "rate_limit": {**ENDLESS, **limit}}]}


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts sidecars beside one app."""
    app = TinyApp(tmp_path)
    await app.start()
    sidecars: list[Sidecar] = []

    async def make(policies: dict[str, Any], **settings: Any) -> Sidecar:
        folder = tmp_path / f"sidecar-{len(sidecars)}"
        folder.mkdir()
        sidecar = Sidecar(folder, app.port, policies, **settings)
        sidecars.append(sidecar)
        await sidecar.start()
        return sidecar

    yield make
    for program in (*sidecars, app):
        if program.process is not None and program.process.returncode is None:
            await program.end(signal.SIGKILL)


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with running() as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def said(sidecar: Sidecar, event: str, times: int = 1) -> None:
    """Returns once the sidecar has logged this so often."""
    for _ in range(500):
        if sum(line["message"] == event for line in sidecar.log()) >= times:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"never said {event!r}: {sidecar.log()}")


async def ask(http: aiohttp.ClientSession, sidecar: Sidecar, path: str = PATH) -> tuple[int, float]:
    """The status, and how long it took."""
    start = time.monotonic()
    async with http.get(sidecar.url + path) as reply:
        await reply.read()
        return reply.status, time.monotonic() - start


async def sums(sidecars: list[Sidecar]) -> tuple[float, float]:
    """Requests refused, and those for which Redis gave no answer, of all together."""
    pages = [await sidecar.metrics() for sidecar in sidecars]
    rejected = sum(total(page, "nextvision_rate_limit_rejections_total") for page in pages)
    return rejected, sum(total(page, "nextvision_rate_limit_unshared_total") for page in pages)


async def test_replicas_share_a_budget_exactly(
    start: Start, valkey: Valkey, http: aiohttp.ClientSession
) -> None:
    """Of sixty requests over two sidecars as many pass as one burst is, though no route caches."""
    pair = [await start(policies(shared=True), cache={"redis": valkey.url}) for _ in range(2)]
    for sidecar in pair:
        await said(sidecar, "redis is there")
    for _ in range(3):
        before = await sums(pair)
        valkey.ask("FLUSHALL")
        answers = await asyncio.gather(*(ask(http, sidecar) for _ in range(30) for sidecar in pair))
        rejected, unshared = (now - then for now, then in zip(await sums(pair), before, strict=True))
        if not unshared:  # else one of the processes stood still for longer than it waits for Redis
            assert Counter(status for status, _ in answers) == {200: 20, 429: 40}
            assert rejected == 40
            return
    raise AssertionError("the machine is too busy to tell")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [("local", {200: 20, 429: 20}), ("open", {200: 40}), ("closed", {503: 40})],
)
async def test_a_killed_redis_leaves_it_to_the_policy(
    start: Start, valkey: Valkey, http: aiohttp.ClientSession, failure: str, expected: dict[int, int]
) -> None:
    """Count here, let all pass, or refuse; nobody waits. When it is back, replicas count together again."""
    sidecar = await start(policies(shared=True, failure=failure), cache={"redis": valkey.url})
    await said(sidecar, "redis is there")
    assert (await ask(http, sidecar))[0] == 200
    valkey.kill()
    await said(sidecar, "redis is away, each replica goes on by itself")
    answers = [await ask(http, sidecar) for _ in range(40)]
    assert Counter(status for status, _ in answers) == expected
    assert max(took for _, took in answers) < SLACK
    assert total(await sidecar.metrics(), "nextvision_rate_limit_unshared_total") == 40
    valkey.start()
    await said(sidecar, "redis is there", times=2)
    again = [(await ask(http, sidecar))[0] for _ in range(21)]
    assert again == [200] * 20 + [429]


async def test_a_frozen_redis_is_waited_for_not_longer_than_the_bound(
    start: Start, valkey: Valkey, http: aiohttp.ClientSession
) -> None:
    """200 requests a second: no error, few wait 50 ms, none longer; recovered within five seconds."""
    limit = {"rate": "100000/s", "burst": 100_000, "shared": True}
    sidecar = await start(policies(**limit), cache={"redis": valkey.url})
    await said(sidecar, "redis is there")
    for _ in range(20):
        await ask(http, sidecar)
    valkey.freeze()
    tasks = []
    for _ in range(200):
        tasks.append(asyncio.create_task(ask(http, sidecar)))
        await asyncio.sleep(0.005)
    answers = await asyncio.gather(*tasks)
    assert {status for status, _ in answers} == {200}
    assert max(took for _, took in answers) < BOUND + SLACK
    valkey.thaw()
    await asyncio.wait_for(said(sidecar, "redis is there", times=2), 5.0)
    before = total(await sidecar.metrics(), "nextvision_rate_limit_unshared_total")
    for _ in range(20):
        await ask(http, sidecar)
    assert total(await sidecar.metrics(), "nextvision_rate_limit_unshared_total") == before


async def test_one_limit_for_all_routes_together(start: Start, http: aiohttp.ClientSession) -> None:
    """`limits.rate_limit` counts routes and what none matches together; `off` leaves a route out."""
    routes = [
        {"name": "health", "match": {"path": "/health"}, "rate_limit": "off"},
        {"name": "own", "match": {"path": "/own"}, "rate_limit": {"rate": "1/h", "burst": 2}},
        {"name": "hello", "match": {"path": PATH}},
        {"name": "other", "match": {"path": "/shared/{item}"}},
    ]
    sidecar = await start({"name": "tiny", "routes": routes}, limits={"rate_limit": {**ENDLESS, "burst": 9}})
    limited = [(await ask(http, sidecar, path))[0] for path in (PATH, "/shared/a", "/nothing-matches") * 4]
    assert [status == 429 for status in limited] == [False] * 9 + [True] * 3
    assert 429 not in [(await ask(http, sidecar, "/health"))[0] for _ in range(15)]
    assert [(await ask(http, sidecar, "/own"))[0] == 429 for _ in range(3)] == [False, False, True]
    metrics = await sidecar.metrics()
    assert metrics['nextvision_rate_limit_buckets{route="all"}'] == 1
