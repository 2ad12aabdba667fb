"""Two replicas on one server: what one purges, the other drops; what one fills, the other waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from sidecar.stores.entry import Entry, Record, Variants
from tests.stores.conftest import Open, OpenTiered
from tests.stores.records import entry, lifetime, until, variants
from tests.support.valkey import Valkey, running


@pytest.fixture
def victim() -> Iterator[Valkey]:
    with running() as server:
        yield server


def body(record: Record | None) -> bytes | None:
    return record.body if isinstance(record, Entry) else None


async def test_what_one_stores_the_other_has(server: Valkey, open_tiered: OpenTiered) -> None:
    """A miss in memory is answered by the shared store, and kept in memory then."""
    one, two = await open_tiered(server.url), await open_tiered(server.url)
    await one.set(b"n:v1:k", entry(b"from one"))
    await until(lambda: server.ask("EXISTS", "nextvision:n:v1:k"))
    assert two.look(b"n:v1:k") is None
    assert body(await two.get(b"n:v1:k")) == b"from one"
    assert body(two.look(b"n:v1:k")) == b"from one"


async def test_concurrent_misses_read_once(server: Valkey, open_tiered: OpenTiered) -> None:
    """A hundred who ask for a key that only the shared store has cost it one look-up."""
    one, two = await open_tiered(server.url), await open_tiered(server.url)
    await one.set(b"n:v1:k", entry())
    await until(lambda: server.ask("EXISTS", "nextvision:n:v1:k"))
    first = asyncio.create_task(two.get(b"n:v1:k"))
    others = [asyncio.create_task(two.get(b"n:v1:k")) for _ in range(99)]
    await asyncio.sleep(0)
    first.cancel()
    assert None not in await asyncio.gather(*others)
    assert two.shared is not None
    assert two.shared.stats.hits == 1


@pytest.mark.parametrize("purge", ["key", "prefix", "tag", "drop"])
async def test_a_purge_is_seen_by_the_other(server: Valkey, open_tiered: OpenTiered, purge: str) -> None:
    """Its copy in memory goes, though it is not due for a check."""
    one, two = await open_tiered(server.url), await open_tiered(server.url)
    await one.set(b"n:v1:k", entry(tags=("t",)))
    await until(lambda: server.ask("EXISTS", "nextvision:n:v1:k"))
    assert await two.get(b"n:v1:k") is not None
    mark = two.mark()
    match purge:
        case "key":
            await one.delete(b"n:v1:k")
        case "prefix":
            await one.purge_prefix(b"n:")
        case "tag":
            await one.purge_tag("t")
        case _:
            one.drop(b"n:v1:k")
    await until(lambda: two.look(b"n:v1:k") is None)
    assert await two.get(b"n:v1:k") is None
    await two.set(b"n:v1:k", entry(tags=("t",)), mark)
    assert await two.get(b"n:v1:k") is None, "it was asked for before the purge"


async def test_a_purge_whose_message_was_lost_is_seen(server: Valkey, open_tiered: OpenTiered) -> None:
    """After `recheck` seconds a copy is compared with the shared store."""
    tiered = await open_tiered(server.url, recheck=0.1)
    await tiered.set(b"n:v1:k", entry())
    await until(lambda: server.ask("EXISTS", "nextvision:n:v1:k"))
    assert await tiered.get(b"n:v1:k") is not None
    server.ask("DEL", "nextvision:n:v1:k")
    assert await tiered.get(b"n:v1:k") is not None
    await asyncio.sleep(0.12)
    assert await tiered.get(b"n:v1:k") is None


async def test_a_copy_that_still_holds_is_not_read_again(server: Valkey, open_tiered: OpenTiered) -> None:
    """The check compares some bytes: the body stays where it is."""
    tiered = await open_tiered(server.url, recheck=0.05)
    given = entry(bytes(100_000))
    await tiered.set(b"n:v1:k", given)
    assert tiered.shared is not None
    stats = tiered.shared.stats
    await until(lambda: stats.sets)
    await asyncio.sleep(0.06)
    assert await tiered.get(b"n:v1:k") is given
    assert stats.hits == 0


async def test_a_newer_response_of_the_other_is_seen(server: Valkey, open_tiered: OpenTiered) -> None:
    """A check that finds another write, or another lifetime, takes that."""
    one, two = await open_tiered(server.url, recheck=0.05), await open_tiered(server.url)
    await one.set(b"n:v1:k", entry(b"old"))
    await until(lambda: server.ask("EXISTS", "nextvision:n:v1:k"))
    await two.set(b"n:v1:k", entry(b"new"))
    assert two.shared is not None
    stats = two.shared.stats
    await until(lambda: stats.sets)
    await asyncio.sleep(0.06)
    assert body(await one.get(b"n:v1:k")) == b"new"
    longer = lifetime(500)
    assert await two.touch(b"n:v1:k", longer)
    await asyncio.sleep(0.06)
    found = await one.get(b"n:v1:k")
    assert isinstance(found, Entry)
    assert found.lifetime == longer


async def test_an_interrupted_subscription_distrusts_copies(
    victim: Valkey, open_tiered: OpenTiered, open_store: Open
) -> None:
    """What was purged while nobody listened is found out at the next use."""
    tiered = await open_tiered(victim.url, recheck=60)
    assert tiered.shared is not None
    shared = tiered.shared
    await tiered.set(b"n:v1:gone", entry())
    await tiered.set(b"n:v1:kept", entry())
    await until(lambda: shared.stats.sets == 2)
    victim.ask("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: not shared.subscribed)
    other = await open_store(victim.url)
    await other.delete(b"n:v1:gone")
    await until(lambda: shared.subscribed)
    assert await tiered.get(b"n:v1:gone") is None
    assert await tiered.get(b"n:v1:kept") is not None
    assert shared.stats.hits == 0, "a comparison is no read"


async def test_what_the_server_refused_stays_in_memory(open_tiered: OpenTiered) -> None:
    """With the server's memory full, copies that exist here alone are used for all their time."""
    with running("--maxmemory-policy", "noeviction") as server:
        tiered = await open_tiered(server.url, recheck=0.05)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        space = tiered.space("n")
        await space.set(b"n:v1:k", entry())
        await until(lambda: space.stats.errors)
        await asyncio.sleep(0.1)
        assert await space.get(b"n:v1:k") is not None


async def test_a_message_of_another_version_means_anything(server: Valkey, open_tiered: OpenTiered) -> None:
    """Copies are compared with the shared store then."""
    tiered = await open_tiered(server.url, recheck=60)
    await tiered.set(b"n:v1:k", entry())
    await until(lambda: server.ask("EXISTS", "nextvision:n:v1:k"))
    server.ask("DEL", "nextvision:n:v1:k")
    server.ask("PUBLISH", "nextvision:#purges", "something new")
    await until(lambda: tiered.look(b"n:v1:k") is None)
    assert await tiered.get(b"n:v1:k") is None


async def test_variants_of_two_replicas_are_merged(server: Valkey, open_store: Open) -> None:
    """Neither loses what the other adds at the same time."""
    one, two = await open_store(server.url), await open_store(server.url)
    names = [b"n:v1:%d" % number for number in range(20)]
    stores = [one, two] * 10
    written = await asyncio.gather(
        *(store.set(b"n:v1:k", variants(name)) for store, name in zip(stores[:2], names[:2], strict=True))
    )
    assert written == [True, True]
    for store, name in zip(stores[2:], names[2:], strict=True):
        await store.set(b"n:v1:k", variants(name))
    found = await one.get(b"n:v1:k")
    assert isinstance(found, Variants)
    assert set(found.keys) == set(names)
    assert found.keys[-1] == names[-1]


async def test_ttl_covers_the_record_and_no_more(server: Valkey, open_store: Open) -> None:
    """The server drops a record at its `kept_until`, and a tag's set with its last record."""
    store = await open_store(server.url)
    await store.set(b"n:v1:long", entry(kept=100, tags=("t",)))
    await store.set(b"n:v1:short", entry(kept=10, tags=("t",)))
    await store.set(b"n:v1:v", variants(b"n:v1:one", kept=50))
    for key, seconds in (("n:v1:long", 100), ("n:v1:short", 10), ("n:v1:v", 50), ("#tag:t", 100)):
        left = server.ask("PTTL", f"nextvision:{key}")
        assert isinstance(left, int)
        assert seconds * 1000 - 2000 < left <= seconds * 1000, key


async def test_touch_keeps_a_tag_as_long_as_its_record(server: Valkey, open_store: Open) -> None:
    """A purge by tag finds what was touched, also after its first time was over."""
    store = await open_store(server.url)
    await store.set(b"n:v1:k", entry(kept=0.2, tags=("t",)))
    assert await store.touch(b"n:v1:k", lifetime(60), ("t",))
    await asyncio.sleep(0.25)
    await store.set(b"n:v1:other", entry(tags=("t",)))
    assert await store.purge_tag("t") == 2


async def test_a_tag_forgets_what_is_over(server: Valkey, open_store: Open) -> None:
    """Its set does not grow with every response that ever had it."""
    store = await open_store(server.url)
    for number in range(10):
        await store.set(b"n:v1:%d" % number, entry(kept=0.1, tags=("t",)))
    await asyncio.sleep(0.15)
    await store.set(b"n:v1:last", entry(tags=("t",)))
    assert server.ask("ZCARD", "nextvision:#tag:t") == 1


class TestFillLocks:
    async def test_one_of_two_fills(self, server: Valkey, open_store: Open) -> None:
        """The other waits, and may fill after the release."""
        one, two = await open_store(server.url), await open_store(server.url)
        claim = await one.locks.claim(b"n:v1:k", 30)
        assert claim is not None
        assert claim.shared
        assert await two.locks.claim(b"n:v1:k", 30) is None
        waiting = asyncio.create_task(two.locks.wait(b"n:v1:k", 30))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await one.set(b"n:v1:k", entry(b"filled"))
        claim.release()
        assert await waiting
        assert body(await two.get(b"n:v1:k")) == b"filled"
        again = await two.locks.claim(b"n:v1:k", 30)
        assert again is not None
        again.release()

    async def test_other_keys_do_not_wait(self, server: Valkey, open_store: Open) -> None:
        """A lock is of one key."""
        store = await open_store(server.url)
        assert await store.locks.claim(b"n:v1:a", 30) is not None
        assert await store.locks.claim(b"n:v1:b", 30) is not None

    async def test_of_many_exactly_one_fills(self, server: Valkey, open_store: Open) -> None:
        """However many ask at once."""
        stores = [await open_store(server.url) for _ in range(4)]
        claims = await asyncio.gather(*(store.locks.claim(b"n:v1:k", 30) for store in stores * 25))
        assert sum(claim is not None for claim in claims) == 1

    async def test_a_lock_outlives_its_holder_by_its_time_at_most(
        self, server: Valkey, open_store: Open
    ) -> None:
        """A holder that dies keeps others waiting for `lock_time`, not for the length of its fill."""
        one = await open_store(server.url, lock_time=0.3)
        two = await open_store(server.url, lock_time=0.3)
        assert await one.locks.claim(b"n:v1:k", 30) is not None
        await one.close()
        await one.server.close()  # its timers prolong nothing any more
        start = time.monotonic()
        assert await two.locks.wait(b"n:v1:k", 30)
        assert time.monotonic() - start < 0.3 + 0.1
        assert await two.locks.claim(b"n:v1:k", 30) is not None

    async def test_a_long_fill_keeps_its_lock(self, server: Valkey, open_store: Open) -> None:
        """It is prolonged while its holder lives, up to the time that the fill may take."""
        one, two = await open_store(server.url, lock_time=0.15), await open_store(server.url)
        assert await one.locks.claim(b"n:v1:k", 0.5) is not None
        await asyncio.sleep(0.35)
        assert await two.locks.claim(b"n:v1:k", 30) is None
        assert await two.locks.wait(b"n:v1:k", 30), "it ends after 0.5 s and its last prolongation"

    async def test_only_the_holder_releases(self, server: Valkey, open_store: Open) -> None:
        """A release that comes too late does not take the lock of whoever has it now."""
        one, two = await open_store(server.url), await open_store(server.url)
        late = await one.locks.claim(b"n:v1:k", 30)
        assert late is not None
        server.ask("DEL", "nextvision:#lock:n:v1:k")
        assert await two.locks.claim(b"n:v1:k", 30) is not None
        late.release()
        late.release()
        await one.get(b"n:v1:k")
        assert await one.locks.claim(b"n:v1:k", 30) is None

    async def test_waiting_is_bounded(self, server: Valkey, open_store: Open) -> None:
        """After its time whoever waits goes on alone."""
        store = await open_store(server.url)
        assert await store.locks.claim(b"n:v1:k", 30) is not None
        start = time.monotonic()
        assert not await store.locks.wait(b"n:v1:k", 0.1)
        assert 0.1 <= time.monotonic() - start < 0.2

    async def test_a_frozen_server_stops_the_waiting(self, victim: Valkey, open_store: Open) -> None:
        """Nobody waits for a lock that cannot be seen."""
        store = await open_store(victim.url)
        assert await store.locks.claim(b"n:v1:k", 30) is not None
        victim.freeze()
        start = time.monotonic()
        assert not await store.locks.wait(b"n:v1:k", 30)
        assert time.monotonic() - start < 0.2

    async def test_a_claim_that_timed_out_leaves_no_lock(self, victim: Valkey, open_store: Open) -> None:
        """The server may get the command later: the release comes right behind it."""
        one = await open_store(victim.url)
        victim.freeze()
        claim = await one.locks.claim(b"n:v1:k", 30)
        assert claim is not None
        assert not claim.shared
        victim.thaw()
        await until(lambda: one.ready)
        await asyncio.sleep(0.1)
        assert victim.ask("EXISTS", "nextvision:#lock:n:v1:k") == 0
