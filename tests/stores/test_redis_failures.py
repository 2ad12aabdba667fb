"""Redis can only help: whatever happens to the server, nobody waits for it and nobody gets an error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from sidecar.stores.redis import RedisStore
from sidecar.stores.redis_link import BOUND
from tests.stores.conftest import Open, OpenTiered
from tests.stores.records import entry, same, until
from tests.support.valkey import Valkey, running, slow_wire

SLACK = 0.030
"""Seconds that a busy test machine may add to a bound."""
SLOW = 0.010
RATE = 300
"""Look-ups per second."""


@pytest.fixture
def victim() -> Iterator[Valkey]:
    """A server that this test may harm."""
    with running() as server:
        yield server


class Load:
    """Look-ups at a steady rate, as requests make them: each on its own, none waiting for another."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._tasks: list[asyncio.Task[None]] = []
        self.times: list[float] = []

    async def run(self, seconds: float) -> None:
        start = time.monotonic()
        for number in range(int(seconds * RATE)):
            await asyncio.sleep(max(0.0, start + number / RATE - time.monotonic()))
            self._tasks.append(asyncio.create_task(self._one()))
        await asyncio.gather(*self._tasks)

    async def _one(self) -> None:
        start = time.monotonic()
        await self._store.get(b"n:v1:k")
        self.times.append(time.monotonic() - start)

    @property
    def slow(self) -> int:
        return sum(each > SLOW for each in self.times)


async def every_operation(store: RedisStore) -> list[object]:
    """What each method gives, and that none takes longer than the bound."""
    given: list[object] = []
    for work in (
        store.get(b"n:v1:k"),
        store.set(b"n:v1:k", entry(tags=("t",))),
        store.touch(b"n:v1:k", entry().lifetime),
        store.current(b"n:v1:k", b"stamp"),
        store.locks.wait(b"n:v1:k", 10),
        store.delete(b"n:v1:k"),
        store.purge_tag("t"),
        store.purge_prefix(b"n:"),
    ):
        start = time.monotonic()
        given.append(await work)
        assert time.monotonic() - start < BOUND + SLACK
    claim = await store.locks.claim(b"n:v1:k", 10)
    assert claim is not None, "everybody may fill when nobody can be asked"
    claim.release()
    return given


NOTHING = [None, False, False, None, False, 0, 0, 0]


async def test_it_starts_without_a_server(tmp_path: object, open_store: Open) -> None:
    """No server, no error: misses and no-ops, at once."""
    store = await open_store(f"unix://{tmp_path}/none", ready=False)
    assert await every_operation(store) == NOTHING
    await until(lambda: store.stats.errors["connect"])
    assert not store.ready
    assert "none" in store.stats.reason


async def test_a_server_that_comes_later_is_used(victim: Valkey, open_store: Open) -> None:
    """The store connects by itself when the server is up."""
    victim.kill()
    store = await open_store(victim.url, ready=False)
    await until(lambda: store.stats.errors["connect"] >= 2)
    victim.start()
    await until(lambda: store.ready)
    assert await store.set(b"n:v1:k", entry())


async def test_frozen_under_load(victim: Valkey, open_store: Open) -> None:
    """At most three look-ups are slow, all are bounded, and it recovers within 5 s."""
    store = await open_store(victim.url)
    await store.set(b"n:v1:k", entry())
    load = Load(store)
    await load.run(0.3)
    assert load.slow == 0
    victim.freeze()
    await load.run(1.0)
    assert load.slow <= 3
    assert max(load.times) < BOUND + SLACK
    assert not store.ready
    assert store.stats.timeouts >= 3
    victim.thaw()
    await until(lambda: store.ready, 5.0)
    assert same(await store.get(b"n:v1:k"), await store.get(b"n:v1:k"))
    assert await store.get(b"n:v1:k") is not None


async def test_frozen_without_load(victim: Valkey, open_store: Open) -> None:
    """One slow look-up is enough to find out; no method raises or waits after that."""
    store = await open_store(victim.url)
    victim.freeze()
    start = time.monotonic()
    assert await store.get(b"n:v1:k") is None
    assert time.monotonic() - start < BOUND + SLACK
    await until(lambda: not store.ready, 0.5)
    assert await every_operation(store) == NOTHING


async def test_a_burst_into_a_frozen_server_is_let_go_together(victim: Valkey, open_store: Open) -> None:
    """A thousand look-ups at once all end within the bound, beside what a thousand tasks cost anyway.

    Of three bursts one has to: what else the machine does may stop this process for longer than the bound.
    """
    store = await open_store(victim.url)

    async def burst() -> float:
        start = time.monotonic()
        found = await asyncio.gather(*(store.get(b"n:v1:k") for _ in range(1000)))
        assert found == [None] * 1000
        return time.monotonic() - start

    waits = []
    for _ in range(3):
        await until(lambda: store.ready, 5.0)
        victim.freeze()
        waited = await burst()
        waits.append(waited - await burst())  # by the second it is known to be silent
        victim.thaw()
        if waits[-1] < BOUND + SLACK + 0.05:
            return
    pytest.fail(f"no burst ended in time: {waits}")


async def test_killed_and_restarted(victim: Valkey, open_store: Open) -> None:
    """A server that dies is missed at once, and used again when it is back."""
    store = await open_store(victim.url)
    load = Load(store)
    running_load = asyncio.create_task(load.run(0.6))
    await asyncio.sleep(0.2)
    victim.kill()
    await running_load
    assert load.slow == 0
    assert not store.ready
    assert await every_operation(store) == NOTHING
    victim.start()
    await until(lambda: store.ready and not store.owes(b"n:v1:k"), 5.0)
    assert await store.set(b"n:v1:k", entry())
    assert await store.get(b"n:v1:k") is not None


async def test_wrong_password(open_store: Open) -> None:
    """It is counted as what it is, and the password is in no message."""
    with running("--requirepass", "right") as server:
        store = await open_store(f"{server.url}?password=wrong-secret", ready=False)
        await until(lambda: store.stats.errors["wrongpass"])
        assert await every_operation(store) == NOTHING
        assert "WRONGPASS" in store.stats.reason
        assert "secret" not in store.stats.reason


async def test_no_password_where_one_is_needed(open_store: Open) -> None:
    """A probe finds it out, not a request."""
    with running("--requirepass", "right") as server:
        store = await open_store(server.url, ready=False)
        await until(lambda: store.stats.errors["noauth"])
        assert await every_operation(store) == NOTHING


async def test_right_password(open_store: Open) -> None:
    """With it, the store works; also with a user's name and another database."""
    with running("--requirepass", "right") as server:
        store = await open_store(f"{server.url}?username=default&password=right&db=3")
        assert await store.set(b"n:v1:k", entry())
        assert server.ask("GET", "nextvision:n:v1:k") is not None  # an error, for it wants a password
        assert await store.get(b"n:v1:k") is not None


async def test_full_memory(open_store: Open) -> None:
    """Writes fail and are counted, then rest for a moment; reads go on, and the server counts as there."""
    with running("--maxmemory-policy", "noeviction") as server:
        store = await open_store(server.url)
        await store.set(b"n:v1:k", entry())
        server.ask("CONFIG", "SET", "maxmemory", "1")
        assert not await store.set(b"n:v1:other", entry(tags=("t",)))
        assert not await store.set(b"n:v1:other", entry())
        assert store.stats.errors["oom"] == 1
        assert store.stats.skipped >= 1
        for _ in range(20):
            assert await store.get(b"n:v1:k") is not None
        assert await store.delete(b"n:v1:k") == 1
        assert store.ready


async def test_latency_of_200_ms(victim: Valkey, open_store: Open) -> None:
    """A server that is too slow to help is left alone, and used when it is fast again."""
    async with slow_wire(victim) as wire:
        store = await open_store(wire.url)
        assert await store.set(b"n:v1:k", entry())
        wire.delay = 0.1  # each way
        load = Load(store)
        await load.run(0.7)
        assert load.slow <= 3
        assert max(load.times) < BOUND + SLACK
        assert not store.ready
        wire.delay = 0.0
        await until(lambda: store.ready, 5.0)
        assert await store.get(b"n:v1:k") is not None


async def test_latency_of_200_ms_from_the_start(victim: Valkey, open_store: Open) -> None:
    """Connecting in the background may take that long; a server that slow is still not used."""
    async with slow_wire(victim) as wire:
        wire.delay = 0.1
        store = await open_store(wire.url, ready=False)
        await until(lambda: store.stats.errors["timeout"])
        assert await every_operation(store) == NOTHING


async def test_a_steady_latency_below_the_bound_is_borne(victim: Valkey, open_store: Open) -> None:
    """15 ms away is far, not frozen: all is answered."""
    async with slow_wire(victim) as wire:
        wire.delay = 0.0075
        store = await open_store(wire.url)
        await store.set(b"n:v1:k", entry())
        found = await asyncio.gather(*(store.get(b"n:v1:k") for _ in range(50)))
        assert None not in found
        assert store.stats.timeouts == 0


async def test_reset_in_the_middle_of_a_reply(victim: Valkey, open_store: Open) -> None:
    """Half a value is a miss."""
    async with slow_wire(victim) as wire:
        store = await open_store(wire.url)
        await store.set(b"n:v1:k", entry(b"".join(b"%08d" % each for each in range(4096))))
        wire.cut_after = 2000
        connections = wire.connections
        await until(lambda: store.ready)
        assert await store.get(b"n:v1:k") is None
        wire.cut_after = None
        await until(lambda: wire.connections > connections and store.ready)
        assert await store.get(b"n:v1:k") is not None
        assert store.stats.errors["reset"] >= 1


async def test_a_server_that_speaks_something_else(open_store: Open, tmp_path: object) -> None:
    """An HTTP server at that address is no store, and no crash."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listening = await asyncio.start_unix_server(answer, f"{tmp_path}/http")
    async with listening:
        store = await open_store(f"unix://{tmp_path}/http", ready=False)
        await until(lambda: store.stats.errors.total() >= 2)
        assert await every_operation(store) == NOTHING


@pytest.mark.parametrize(
    "value",
    [b"", b"NV", b"not ours", b"NV\x63" + bytes(200), bytes(500), b"*3\r\n$-1\r\n"],
    ids=["empty", "short", "foreign", "future", "zeros", "protocol"],
)
async def test_a_value_of_somebody_else_is_a_miss(server: Valkey, open_store: Open, value: bytes) -> None:
    """And writing over it works."""
    store = await open_store(server.url)
    server.ask("SET", "nextvision:n:v1:k", value)
    assert await store.get(b"n:v1:k") is None
    assert store.stats.damaged == 1
    assert not await store.touch(b"n:v1:k", entry().lifetime)
    assert await store.set(b"n:v1:k", entry())
    assert await store.get(b"n:v1:k") is not None


async def test_a_key_of_another_type_is_a_miss(server: Valkey, open_store: Open) -> None:
    """An error of the server is no error of the cache."""
    store = await open_store(server.url)
    server.ask("LPUSH", "nextvision:n:v1:k", "a")
    assert await store.get(b"n:v1:k") is None
    assert store.stats.errors["wrongtype"] == 1


@pytest.mark.parametrize("purge", ["key", "tag", "prefix"])
async def test_a_purge_during_an_outage_is_not_lost(victim: Valkey, open_store: Open, purge: str) -> None:
    """What could not be dropped is not read when the server is back, and is dropped then."""
    store = await open_store(victim.url)
    await store.set(b"n:v1:k", entry(tags=("t",)))
    victim.freeze()
    await store.get(b"n:v1:k")
    await until(lambda: not store.ready)
    match purge:
        case "key":
            assert await store.delete(b"n:v1:k") == 0
        case "tag":
            assert await store.purge_tag("t") == 0
        case _:
            assert await store.purge_prefix(b"n:") == 0
    victim.thaw()
    await until(lambda: store.ready)
    assert await store.get(b"n:v1:k") is None
    await until(lambda: victim.ask("EXISTS", "nextvision:n:v1:k") == 0)
    await until(lambda: not store.owes(b"n:v1:k"))
    await store.set(b"n:v1:k", entry())
    assert await store.get(b"n:v1:k") is not None


async def test_more_purges_than_can_be_owed_purge_all(victim: Valkey, open_store: Open) -> None:
    """Too much is dropped rather than too little."""
    store = await open_store(victim.url)
    await store.set(b"n:v1:untouched", entry())
    victim.freeze()
    await store.get(b"n:v1:k")
    await until(lambda: not store.ready)
    await store.delete(*(b"n:v1:%d" % number for number in range(1001)))
    victim.thaw()
    await until(lambda: store.ready)
    assert await store.get(b"n:v1:untouched") is None
    await until(lambda: victim.ask("EXISTS", "nextvision:n:v1:untouched") == 0)


async def test_memory_goes_on_while_the_server_is_gone(victim: Valkey, open_tiered: OpenTiered) -> None:
    """Copies that are due for a check are used as long as nobody can be asked."""
    tiered = await open_tiered(victim.url, recheck=0.05)
    await tiered.set(b"n:v1:k", entry(b"held"))
    await until(lambda: victim.ask("EXISTS", "nextvision:n:v1:k"))
    victim.freeze()
    await asyncio.sleep(0.1)
    for _ in range(5):
        assert await tiered.get(b"n:v1:k") is not None
    assert tiered.shared is not None
    shared = tiered.shared
    await until(lambda: not shared.ready)
    assert tiered.look(b"n:v1:k") is not None
    await tiered.set(b"n:v1:new", entry())
    assert tiered.look(b"n:v1:new") is not None
    victim.thaw()
    await until(lambda: shared.ready)
    assert await tiered.get(b"n:v1:k") is not None
