"""Both levels together: what is answered at once, what is counted, what ends."""

from __future__ import annotations

import asyncio

from sidecar.clock import SystemClock
from sidecar.stores.memory import Memory
from sidecar.stores.purge_log import REMEMBERED, Purged, PurgeLog
from sidecar.stores.tiered import Tiered
from tests.stores.conftest import OpenTiered
from tests.stores.records import MIB, entry, until, variants
from tests.support.valkey import Valkey


async def test_stats_have_the_fields_that_operators_know(server: Valkey, open_tiered: OpenTiered) -> None:
    """Per namespace and in all, as in the original's `/cache/stats`."""
    tiered = await open_tiered(server.url)
    space = tiered.space("geocoding")
    assert tiered.space("geocoding") is space
    assert await space.get(b"geocoding:v1:k") is None
    await space.set(b"geocoding:v1:v", variants(b"geocoding:v1:k"))
    await space.set(b"geocoding:v1:k", entry(b"x" * 1000))
    assert space.look(b"geocoding:v1:v") is not None
    assert space.look(b"geocoding:v1:k") is not None
    assert await space.get(b"geocoding:v1:k") is not None
    assert await space.get(b"geocoding:v1:other") is None
    space.drop(b"geocoding:v1:k")
    tiered.space("idle")
    stats = tiered.stats()
    counted = {
        "redis_connected": True,
        "hits": 2,
        "misses": 2,
        "hit_rate_percent": 50.0,
        "sets": 1,
        "deletes": 1,
        "errors": 0,
    }
    assert counted.items() <= stats.items()
    spaces = stats["namespaces"]
    assert isinstance(spaces, dict)
    assert counted.items() <= spaces["geocoding"].items()
    assert spaces["geocoding"]["memory_entries"] == 1
    assert spaces["geocoding"]["memory_bytes"] > 0
    assert spaces["idle"]["hit_rate_percent"] == 0.0


async def test_without_a_shared_store_nothing_runs_in_the_background() -> None:
    """Memory alone: every method is done when it returns."""
    clock = SystemClock()
    tiered = Tiered(Memory(MIB, clock), None, clock)
    before = asyncio.all_tasks()
    assert tiered.put(b"n:v1:k", entry())
    assert tiered.look(b"n:v1:k") is not None
    tiered.drop(b"n:v1:k")
    assert tiered.look(b"n:v1:k") is None
    assert asyncio.all_tasks() == before
    assert tiered.stats()["redis_connected"] is False
    await tiered.close()


async def test_what_is_being_written_at_the_end_is_written(server: Valkey, open_tiered: OpenTiered) -> None:
    """Closing waits for it."""
    tiered = await open_tiered(server.url)
    tiered.put(b"n:v1:k", entry(b"x" * 200_000))
    await tiered.close()
    assert server.ask("EXISTS", "nextvision:n:v1:k") == 1


async def test_an_older_write_does_not_overtake(server: Valkey, open_tiered: OpenTiered) -> None:
    """A large response that is encoded in a thread does not come after the small one that replaced it."""
    tiered = await open_tiered(server.url)
    tiered.put(b"n:v1:k", entry(b"large" * 100_000))
    tiered.put(b"n:v1:k", entry(b"small"))
    assert tiered.shared is not None
    stats = tiered.shared.stats
    await until(lambda: stats.sets)
    await asyncio.sleep(0.05)
    size = server.ask("STRLEN", "nextvision:n:v1:k")
    assert isinstance(size, int)
    assert size < 1000


async def test_a_drop_is_not_undone_by_a_write_under_way(server: Valkey, open_tiered: OpenTiered) -> None:
    """The write was begun before, and must not end after."""
    tiered = await open_tiered(server.url)
    tiered.put(b"n:v1:k", entry(b"large" * 100_000))
    tiered.drop(b"n:v1:k")
    await asyncio.sleep(0.1)
    assert server.ask("EXISTS", "nextvision:n:v1:k") == 0
    assert await tiered.get(b"n:v1:k") is None


async def test_a_read_under_way_does_not_bring_back_what_is_dropped(
    server: Valkey, open_tiered: OpenTiered
) -> None:
    """The server was asked before the drop, and its answer comes after."""
    writer, reader = await open_tiered(server.url), await open_tiered(server.url)
    writer.put(b"n:v1:k", entry(b"x" * 500_000))
    await until(lambda: server.ask("EXISTS", "nextvision:n:v1:k"))
    reading = asyncio.create_task(reader.get(b"n:v1:k"))
    for _ in range(3):
        await asyncio.sleep(0)
    reader.drop(b"n:v1:k")
    await reading
    assert reader.look(b"n:v1:k") is None


class TestPurgeLog:
    def test_a_mark_that_is_too_old_counts_as_purged(self) -> None:
        """What is not remembered may have been anything."""
        log = PurgeLog()
        mark = log.mark()
        log.note(Purged.KEY, [b"other:%d" % number for number in range(REMEMBERED)])
        assert not log.purged(b"k", (), mark)
        log.note(Purged.KEY, [b"one more"])
        assert log.purged(b"k", (), mark)
        assert not log.purged(b"k", (), log.mark())

    def test_without_a_mark_nothing_is_purged(self) -> None:
        """Who gives none does not ask."""
        log = PurgeLog()
        log.note(Purged.PREFIX, [b""])
        assert not log.purged(b"k", (), None)
