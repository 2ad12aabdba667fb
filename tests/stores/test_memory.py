"""The memory store: never more than its bound, and the right ones go."""

from __future__ import annotations

import random

import pytest

from sidecar.stores.entry import Entry, Record
from sidecar.stores.memory import Ghosts, Memory
from tests.stores.records import MIB, entry
from tests.support.clock import ManualClock

NOW = ManualClock().wall()


def make(capacity: int = MIB) -> tuple[Memory, ManualClock]:
    clock = ManualClock()
    return Memory(capacity, clock), clock


def record(size: int = 0, *, tags: tuple[str, ...] = (), kept: float = 60.0) -> Entry:
    return entry(bytes(size), kept=kept, tags=tags, now=NOW)


def books_balance(memory: Memory) -> bool:
    """What is counted is what is there."""
    nodes = memory._nodes.values()
    ghosts = len(memory._ghosts._marks) * Ghosts.SLOT
    tagged = {tag for node in nodes if node.record is not None for tag in node.record.tags}
    return (
        memory.bytes == ghosts + sum(node.size for node in nodes)
        and memory._small_bytes == sum(node.size for node in nodes if not node.main)
        and set(memory._tags) == tagged
        and sum(usage.records for usage in memory.usage().values()) == len(memory)
        and sum(usage.bytes for usage in memory.usage().values()) == sum(node.size for node in nodes)
        and len(memory._small) + len(memory._main) - memory._small_dead - memory._main_dead == len(memory)
    )


def test_300_000_distinct_keys_stay_within_the_bound() -> None:
    """Whatever goes through, neither bytes nor queues nor indexes grow."""
    memory, _ = make(2 * MIB)
    one = record(100, tags=("t",))
    for number in range(300_000):
        memory.set(b"n:v1:%d" % number, one)
        if not number % 10_000:
            assert memory.bytes <= memory.capacity
    assert memory.bytes <= memory.capacity
    assert memory.bytes > 0.9 * memory.capacity
    assert books_balance(memory)
    assert len(memory._small) + len(memory._main) < 2 * len(memory) + 100
    assert memory.stats.evictions == 300_000 - len(memory)


def test_any_work_leaves_the_books_in_order() -> None:
    """Sets, replacements, look-ups, deletes, purges and time, in any order and size."""
    rng = random.Random(5)
    memory, clock = make(200_000)
    for step in range(20_000):
        key = b"%d:v1:%d" % (rng.randrange(3), rng.randrange(400))
        match rng.randrange(12):
            case 0:
                memory.delete(key)
            case 1 if not step % 7:
                memory.purge_tag(f"t{rng.randrange(5)}")
            case 2 if not step % 50:
                memory.purge_prefix(key[:-1])
            case 3 if not step % 20:
                clock._now += 1.0
            case 4 | 5 | 6:
                memory.get(key)
            case _:
                tags = tuple(f"t{rng.randrange(5)}" for _ in range(rng.randrange(3)))
                kept = clock.wall() - NOW + rng.choice((0, 1, 5, 60))
                memory.set(key, record(rng.randrange(60_000), tags=tags, kept=kept))
        assert memory.bytes <= memory.capacity
        if not step % 1000:
            assert books_balance(memory)
    assert books_balance(memory)


def test_a_scan_evicts_nothing_that_is_in_use() -> None:
    """Ten times the store's room of keys that come once do not drive out what comes again."""
    memory, _ = make()
    one = record(1000)
    used = [b"n:v1:used:%d" % number for number in range(200)]
    for _ in range(3):
        for key in used:
            if memory.get(key) is None:
                memory.set(key, one)
    for number in range(5000):
        memory.set(b"n:v1:scan:%d" % number, one)
    assert sum(memory.get(key) is not None for key in used) == len(used)


def test_what_comes_back_soon_after_it_left_is_kept() -> None:
    """A ghost enters the main queue at once: the next scan passes by it."""
    memory, _ = make()
    one = record(1000)
    memory.set(b"n:v1:again", one)
    scanned = 0
    while memory.get(b"n:v1:again") and scanned < 5000:
        memory._nodes[b"n:v1:again"].uses = 0
        memory.set(b"n:v1:scan:%d" % scanned, one)
        scanned += 1
    memory.set(b"n:v1:again", one)
    assert memory._nodes[b"n:v1:again"].main
    for number in range(scanned, scanned + 200):
        memory.set(b"n:v1:scan:%d" % number, one)
    assert memory.get(b"n:v1:again") is not None


@pytest.mark.parametrize("tagged", [False, True])
def test_set_and_delete_for_ever_takes_no_room(tagged: bool) -> None:
    """Queues are swept of what was deleted."""
    memory, _ = make()
    one = record(10, tags=("t",) if tagged else ())
    for number in range(20_000):
        memory.set(b"n:v1:%d" % (number % 3), one)
        memory.delete(b"n:v1:%d" % (number % 3))
    assert len(memory._small) + len(memory._main) < 200
    assert books_balance(memory)
    assert memory.usage() == {}


def test_too_large_is_refused_and_the_old_one_goes() -> None:
    """A record above a quarter of the room is not stored; what it would replace is outdated."""
    memory, _ = make()
    memory.set(b"n:v1:k", record(10))
    assert memory.set(b"n:v1:k", record(MIB // 3)) is None
    assert memory.get(b"n:v1:k") is None
    assert memory.stats.refused == 1


def test_a_store_without_room_holds_nothing() -> None:
    """And raises nothing."""
    memory, _ = make(100)
    assert memory.set(b"n:v1:k", record()) is None
    assert memory.get(b"n:v1:k") is None


def test_time_ends_a_record() -> None:
    """At its `kept_until`, not a moment before."""
    memory, clock = make()
    memory.set(b"n:v1:k", record(kept=10))
    clock._now += 9.99
    assert memory.get(b"n:v1:k") is not None
    clock._now += 0.01
    assert memory.get(b"n:v1:k") is None
    assert memory.stats.expired == 1
    assert books_balance(memory)


def test_what_is_over_makes_room_before_what_is_in_use() -> None:
    """However often it was used."""
    memory, clock = make()
    for number in range(100):
        memory.set(b"n:v1:old:%d" % number, record(2000, kept=10))
    for _ in range(3):
        for number in range(100):
            memory.get(b"n:v1:old:%d" % number)
    clock._now += 11
    for number in range(2000):
        memory.set(b"n:v1:new:%d" % number, record(2000))
    assert not any(key.startswith(b"n:v1:old") for key in memory._nodes)
    assert memory.stats.expired >= 90


def test_usage_is_counted_by_namespace() -> None:
    """What stands before the first colon."""
    memory, _ = make()
    memory.set(b"geocoding:v1:a", record(100))
    memory.set(b"geocoding:v1:b", record(100))
    memory.set(b"transport:v1:a", record(100))
    usage = memory.usage()
    assert {name: each.records for name, each in usage.items()} == {"geocoding": 2, "transport": 1}
    assert usage["geocoding"].bytes == 2 * usage["transport"].bytes + 2 * (
        len(b"geocoding:v1:a") - len(b"transport:v1:a")
    )


def test_a_use_is_counted_by_get_alone() -> None:
    """`peek` is for the store's own work."""
    memory, _ = make()
    memory.set(b"n:v1:k", record())
    node = memory.peek(b"n:v1:k")
    assert node is not None
    assert node.uses == 0
    held: Record | None = memory.get(b"n:v1:k")
    assert held is node.record
    assert node.uses == 1
