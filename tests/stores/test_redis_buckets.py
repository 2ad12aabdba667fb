"""Rate limits in a real server: replicas share them exactly, and never wait for a server that is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from sidecar.clock import SystemClock
from sidecar.decisions.gcra import Buckets
from sidecar.stores.redis_buckets import PREFIX, SharedBuckets
from sidecar.stores.redis_link import BOUND
from sidecar.stores.redis_server import RedisServer
from sidecar.stores.redis_url import parse
from tests.stores.records import until
from tests.support.valkey import Valkey, running, slow_wire

SLACK = 0.030
"""Seconds that a busy test machine may add to a bound."""

Replica = Callable[..., Awaitable[tuple[RedisServer, SharedBuckets]]]


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    """Connections of its own to a server, and one limit kept there."""
    servers: list[RedisServer] = []

    async def make(
        url: str, rate: float, burst: int, name: str = "all:0", *, ready: bool = True
    ) -> tuple[RedisServer, SharedBuckets]:
        server = RedisServer(parse(url), SystemClock())
        servers.append(server)
        server.start()
        if ready:
            await until(lambda: server.nodes.ready)
        return server, SharedBuckets(server.nodes, name, 1 / rate, burst / rate)

    yield make
    for server in servers:
        await server.close()


@pytest.fixture
def victim() -> Iterator[Valkey]:
    """A server that this test may harm."""
    with running() as server:
        yield server


async def take(buckets: SharedBuckets, client: str | bytes = "a") -> float:
    """What the server says; a busy machine may need another try, which asks for the same once more."""
    for _ in range(20):
        answer = await buckets.take(client)
        if answer is not None:
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError("no answer")


async def test_two_replicas_share_a_budget_exactly(server: Valkey, replica: Replica) -> None:
    """Of a hundred requests at once, half on each, as many pass as the burst is: not one more or less."""
    _, one = await replica(server.url, 1 / 3600, 20)
    _, two = await replica(server.url, 1 / 3600, 20)
    for client in "abcde":
        answers = await asyncio.gather(*(each.take(client) for _ in range(50) for each in (one, two)))
        if None not in answers:  # else this process stood still for so long that some were given up
            assert sum(answer is not None and answer > 0 for answer in answers) == 20
            return
    raise AssertionError("the machine is too busy to tell")


async def test_says_the_same_as_the_buckets_of_one_process(server: Valkey, replica: Replica) -> None:
    """A passage tells when the burst is whole, a refusal how long to wait."""
    rate, burst = 1 / 100, 3
    _, shared = await replica(server.url, rate, burst)
    local = Buckets(rate, burst)
    for number in range(6):
        assert await take(shared) == pytest.approx(local.take("a", 0.0), abs=1.0), number


async def test_the_rate_is_kept(server: Valkey, replica: Replica) -> None:
    """In half a second at 100/s, whoever asks, there pass the burst and 50; the clock is the server's."""
    _, one = await replica(server.url, 100, 5)
    _, two = await replica(server.url, 100, 5)
    passed = 0
    start = time.monotonic()
    while time.monotonic() - start < 0.5:
        answers = await asyncio.gather(one.take("a"), two.take("a"))
        passed += sum(answer is not None and answer > 0 for answer in answers)
        await asyncio.sleep(0.001)
    assert 20 <= passed <= 5 + 100 * (time.monotonic() - start) + 1


async def test_who_waits_as_told_passes(server: Valkey, replica: Replica) -> None:
    """A refusal is the time after which one passes."""
    _, buckets = await replica(server.url, 20, 1)
    await take(buckets)
    wait = -await take(buckets)
    assert 0 < wait <= 0.05
    await asyncio.sleep(wait + 0.002)
    assert await take(buckets) > 0


async def test_clients_and_limits_do_not_share(server: Valkey, replica: Replica) -> None:
    """Neither two clients, nor two limits of one client."""
    _, one = await replica(server.url, 1 / 3600, 1, "search:0")
    _, other = await replica(server.url, 1 / 3600, 1, "orders:0")
    assert await take(one, "a") > 0
    assert await take(one, "b") > 0
    assert await take(one, b"a") > 0
    assert await take(other, "a") > 0
    assert await take(one, "a") < 0


async def test_keys_end_by_themselves_and_show_no_client(server: Valkey, replica: Replica) -> None:
    """What is stored lives as long as the burst is not whole."""
    _, buckets = await replica(server.url, 20, 2)
    await take(buckets, "192.0.2.77")
    await take(buckets, b"secret-key")
    keys = server.stored()
    assert len(keys) == 2
    assert all(key.startswith(PREFIX) for key in keys)
    assert not any(b"192" in key or b"secret" in key for key in keys)
    await until(lambda: not server.stored())


async def test_a_clock_that_was_ahead_does_no_lasting_harm(server: Valkey, replica: Replica) -> None:
    """A new primary whose clock is an hour behind: the burst counts as used, not an hour of requests."""
    _, buckets = await replica(server.url, 20, 4)
    await take(buckets)
    (key,) = server.stored()
    server.ask("SET", key, str(int((time.time() + 3600) * 1e6)), "PX", "3600000")
    wait = -await take(buckets)
    assert 0 < wait <= 0.051
    await asyncio.sleep(wait + 0.002)
    assert await take(buckets) > 0


async def test_a_frozen_server_is_waited_for_not_longer_than_the_bound(
    victim: Valkey, replica: Replica
) -> None:
    """A few wait 50 ms, the others not at all; when it goes on, it is asked again."""
    server, buckets = await replica(victim.url, 1 / 3600, 1000)
    assert await take(buckets) > 0
    victim.freeze()
    times = []
    for _ in range(60):
        start = time.monotonic()
        assert await buckets.take("a") is None
        times.append(time.monotonic() - start)
        await asyncio.sleep(0.005)
    assert max(times) < BOUND + SLACK
    assert sum(each > 0.010 for each in times) <= 3
    assert not server.stats.connected
    victim.thaw()
    await until(lambda: server.nodes.ready, 5.0)
    assert await take(buckets) > 0


async def test_a_killed_server_costs_nothing(victim: Valkey, replica: Replica) -> None:
    """Gone is gone, at once; a new one is used as soon as it is there."""
    server, buckets = await replica(victim.url, 1 / 3600, 1000)
    await take(buckets)
    victim.kill()
    await until(lambda: not server.nodes.ready)
    start = time.monotonic()
    for _ in range(1000):
        assert await buckets.take("a") is None
    assert time.monotonic() - start < 0.5
    victim.start()
    await until(lambda: server.nodes.ready, 5.0)
    assert await take(buckets) > 0


async def test_a_slow_server_is_waited_for_within_the_bound(server: Valkey, replica: Replica) -> None:
    """Twenty milliseconds there and back are waited for."""
    async with slow_wire(server) as wire:
        wire.delay = 0.010
        _, buckets = await replica(wire.url, 1 / 3600, 10)
        assert await take(buckets) > 0


async def test_a_server_without_memory_says_nothing(replica: Replica) -> None:
    """It refuses to store: the policy for a missing answer decides, and nothing breaks."""
    with running("--maxmemory", "1mb", "--maxmemory-policy", "noeviction") as small:
        server, buckets = await replica(small.url, 1 / 3600, 10)
        assert await buckets.take("a") is None
        assert server.stats.errors["oom"] == 1
