"""What is particular to batches in Redis: a full server, lost answers, a restart, a cluster, what is left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from sidecar.batch.jobs import LEASE, Batch, Item, Options, Outcome, Result, Status, StoreFailed, StoreFull
from sidecar.batch.redis_streams import RedisStreams
from sidecar.clock import SystemClock
from sidecar.config.batch_policy import Batch as Settings
from sidecar.stores.redis_url import parse
from tests.support.batch_stores import NOW, accepted, done, items
from tests.support.valkey import Valkey, cluster, free_port, running, slow_wire

KEEP = 3600.0


@pytest.fixture
def server() -> Iterator[Valkey]:
    with running("--appendonly", "yes") as made:
        yield made


@pytest.fixture
async def store(server: Valkey) -> AsyncIterator[RedisStreams]:
    made = opened(server.url)
    await made.open()
    yield made
    await made.close()


def opened(url: str) -> RedisStreams:
    return RedisStreams(parse(url), SystemClock(), KEEP)


def lives_for(server: Valkey) -> dict[bytes, object]:
    """Seconds that each key of a batch is kept, by its last part; -1: for ever."""
    return {key.rpartition(b":")[2]: server.ask("TTL", key) for key in server.stored()}


async def test_a_full_server_says_so_and_works_on(store: RedisStreams, server: Valkey) -> None:
    """What does not fit is refused whole with StoreFull; leases are renewed meanwhile, and room helps."""
    batch = await accepted(store)
    assert len(await store.claim(batch, "w", 9, NOW)) == 3
    server.ask("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(StoreFull, match="no room"):
        await store.create(Batch("large", Options(), Status.VALIDATING, NOW), "w")
    for _ in range(2):
        with pytest.raises(StoreFull):
            await store.finish(batch, done(1), NOW)
    before = server.ask("HGET", "sidecar:batch:{b}:workers", "w")
    await store.renew("w", NOW)
    assert server.ask("HGET", "sidecar:batch:{b}:workers", "w") != before
    known = await store.batch(batch)
    assert known is not None
    assert known.counts.done == 0
    server.ask("CONFIG", "SET", "maxmemory", "0")
    assert [it.number for it in await store.finish(batch, done(1), NOW)] == [1]
    server.ask("CONFIG", "SET", "maxmemory", "1mb")
    assert await store.delete(batch)
    assert server.stored() == set()


@pytest.mark.parametrize(("policy", "refused"), [("allkeys-lru", True), ("volatile-lru", False)])
async def test_a_server_that_evicts(policy: str, refused: bool) -> None:
    """One that throws anything away when it is full is refused, with the mend; one that spares what has no
    time to live is not.
    """
    with running("--maxmemory", "64mb", "--maxmemory-policy", policy) as server:
        store = opened(server.url)
        if refused:
            with pytest.raises(StoreFailed, match="set noeviction"):
                await store.open()
        else:
            await store.open()
        await store.close()


async def test_lines_of_a_lost_answer_come_again(server: Valkey) -> None:
    """Where the answer to a claim is lost, its lines are not: the worker gets them, and none twice."""
    async with slow_wire(server) as wire:
        store = opened(wire.url)
        await store.open()
        batch = await accepted(store, 5)
        assert len(await store.claim(batch, "w", 2, NOW)) == 2
        wire.cut_after = 0
        with pytest.raises(StoreFailed, match="no answer"):
            await store.claim(batch, "w", 2, NOW)
        wire.cut_after = None
        assert [it.item.number for it in await store.claim(batch, "w", 9, NOW)] == [3, 4, 5]
        assert len(await store.finish(batch, done(1, 2, 3, 4, 5), NOW)) == 5
        await store.close()


async def test_the_server_dies_and_comes_back(store: RedisStreams, server: Valkey) -> None:
    """What was accepted, claimed, begun and finished is there; until then it is an error, at once."""
    batch = await accepted(store, 4)
    await store.claim(batch, "w", 3, NOW)
    await store.begin(batch, "w", [2])
    await store.finish(batch, done(1), NOW)
    server.kill()
    with pytest.raises(StoreFailed):
        await store.batch(batch)
    server.start()
    known = await store.batch(batch)
    assert known is not None
    assert (known.counts.total, known.counts.ok, known.status) == (4, 1, Status.RUNNING)
    assert await store.begin(batch, "w", [1, 2, 3, 4]) == [2, 3]
    assert [it.item.number for it in await store.claim(batch, "v", 9, NOW)] == [4]


async def test_a_server_that_is_not_there(server: Valkey) -> None:
    """Opening says so, with the place, and may be tried again."""
    store = opened(server.url)
    server.kill()
    with pytest.raises(StoreFailed, match="the batch store single"):
        await store.open()
    server.start()
    await store.open()
    assert await store.batches() == []
    await store.close()


async def test_a_server_that_asks_for_a_password() -> None:
    """`batch.password` goes with the user of the URL; a wrong one is an error that does not tell it."""
    user = ["--user", "batches on >right ~sidecar:batch:* +@all"]
    with running(user[0], *user[1].split(), "--user", "default", "off", port=free_port()) as server:
        url = f"redis://batches@127.0.0.1:{server.port}"
        for password in ("right", "wrong"):
            target = Settings.model_validate({"store": url, "password": password}).redis()
            assert target is not None
            store = RedisStreams(target, SystemClock(), KEEP)
            if password == "right":
                await store.open()
                assert await accepted(store) == "b"
            else:
                with pytest.raises(StoreFailed, match="WRONGPASS") as caught:
                    await store.open()
                assert password not in str(caught.value)
            await store.close()


async def test_how_long_a_batch_is_kept(store: RedisStreams, server: Valkey) -> None:
    """Twice a lease until it is accepted, then for ever; once it is over its time, without lines."""
    await store.create(Batch("b", Options(), Status.VALIDATING, NOW), "w")
    await store.add("b", items(2))
    times = lives_for(server)
    assert times.pop(b"all") == -1
    assert set(times) == {b"meta", b"lines", b"ids", b"workers"}
    assert all(isinstance(each, int) and 0 < each <= 2 * LEASE for each in times.values())
    await store.accept("b", 2)
    assert set(lives_for(server).values()) == {-1}
    await store.finish("b", [Result(number, Outcome.OK, b"{}") for number in (1, 2)], NOW)
    times = lives_for(server)
    assert set(times) == {b"all", b"meta", b"results"}
    for each in (times[b"meta"], times[b"results"]):
        assert isinstance(each, int)
        assert KEEP < each <= KEEP + 3600
    assert await store.claim("b", "w", 9, NOW) == []
    assert await store.begin("b", "w", [1]) == []
    server.ask("DEL", "sidecar:batch:{b}:meta", "sidecar:batch:{b}:results")
    assert await store.batches() == []
    assert server.stored() == set()


async def test_batches_spread_over_a_cluster() -> None:
    """Each batch lives on one node, whichever; the first node that is asked may be gone."""
    async with AsyncExitStack() as stack:
        nodes = stack.enter_context(cluster(2))
        store = opened(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{nodes[1].port}")
        await store.open()
        stack.push_async_callback(store.close)
        names = [f"batch{number}" for number in range(8)]
        for at, name in enumerate(names):
            await store.create(Batch(name, Options(), Status.VALIDATING, NOW + at), "w")
            await store.add(name, [Item(1, "a", b"{}", True), Item(2, "b", b"{}", False)])
            await store.accept(name, 2)
            assert len(await store.claim(name, "w", 9, NOW)) == 2
            assert await store.begin(name, "w", [2]) == [2]
            await store.finish(name, done(1, 2), NOW)
        await store.renew("w", NOW)
        assert [(it.id, it.counts.ok) for it in await store.batches()] == [(it, 2) for it in names[::-1]]
        metas = [sum(key.endswith(b":meta") for key in node.stored()) for node in nodes]
        assert sum(metas) == 8
        assert min(metas) > 0
