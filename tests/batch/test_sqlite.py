"""The store of batches in SQLite: what is claimed, begun, finished, and what outlives its process."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.batch.jobs import (
    LEASE,
    Batch,
    Item,
    JobStore,
    Options,
    Outcome,
    Result,
    Status,
    StoreFailed,
    StoreFull,
)
from sidecar.batch.sqlite import SqliteStore

NOW = 1_700_000_000.0


class Wall:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def store(tmp_path: Path, wall: Wall) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path / "batch.db", wall)
    await made.open()
    yield made
    await made.close()


def items(count: int, *, repeatable: bool = True) -> list[Item]:
    return [Item(number, f"c{number}", b"{}", repeatable) for number in range(1, count + 1)]


def done(*numbers: int, outcome: Outcome = Outcome.OK) -> list[Result]:
    return [Result(number, outcome, b'{"n": %d}' % number) for number in numbers]


async def accepted(store: JobStore, count: int = 3, *, repeatable: bool = True) -> str:
    await store.create(Batch("b", Options(name="n", retries=2), Status.VALIDATING, NOW), "w")
    assert await store.add("b", items(count, repeatable=repeatable)) == []
    await store.accept("b", count)
    return "b"


async def test_a_duplicate_is_told_with_the_first_of_its_name(store: SqliteStore) -> None:
    """Of lines with the same custom_id the first counts, in one call and across calls."""
    await store.create(Batch("b", Options(), Status.VALIDATING, NOW), "w")
    await store.add("b", items(2))
    found = await store.add(
        "b", [Item(3, "c1", b"{}", True), Item(4, "d", b"{}", True), Item(5, "d", b"{}", True)]
    )
    assert [(it.number, it.first) for it in found] == [(3, 1), (5, 4)]


async def test_no_two_workers_get_the_same_line(store: SqliteStore) -> None:
    """Claims follow the order of the file and never overlap."""
    batch = await accepted(store, 5)
    first = await store.claim(batch, "w1", 3, NOW)
    second = await store.claim(batch, "w2", 9, NOW)
    assert [it.item.number for it in first] == [1, 2, 3]
    assert [it.item.number for it in second] == [4, 5]
    assert await store.claim(batch, "w2", 9, NOW) == []


async def test_the_first_result_of_a_line_counts(store: SqliteStore) -> None:
    """A second result changes neither the counts nor what is read; the last line ends the batch."""
    batch = await accepted(store)
    assert len(await store.finish(batch, done(1, 2), NOW)) == 2
    assert await store.finish(batch, done(1, outcome=Outcome.FAILED), NOW) == []
    known = await store.batch(batch)
    assert known is not None
    assert (known.counts.ok, known.counts.failed, known.over, known.status) == (2, 0, False, Status.RUNNING)
    await store.finish(batch, done(3, outcome=Outcome.UNKNOWN), NOW + 5)
    known = await store.batch(batch)
    assert known is not None
    assert (known.counts.unknown, known.finished, known.status) == (1, NOW + 5, Status.COMPLETED)
    page = await store.results(batch, 0, 2)
    rest = await store.results(batch, page[-1][0], 9)
    assert [text for _, text in page + rest] == [b'{"n": 1}', b'{"n": 2}', b'{"n": 3}']


async def test_lines_of_a_dead_worker_go_to_the_next(store: SqliteStore, wall: Wall) -> None:
    """Once its lease is over, what it had claimed is pending again, what it had begun is in doubt."""
    batch = await accepted(store)
    await store.claim(batch, "w1", 2, NOW)
    assert await store.begin(batch, "w1", [2]) == [2]
    assert [it.item.number for it in await store.claim(batch, "w2", 9, NOW + LEASE - 1)] == [3]
    await store.renew("w1", NOW + LEASE - 1)
    assert await store.claim(batch, "w2", 9, NOW + LEASE + 5) == []
    taken = await store.claim(batch, "w2", 9, NOW + 3 * LEASE)
    assert [(it.item.number, it.in_doubt) for it in taken] == [(2, True), (1, False)]
    assert await store.begin(batch, "w1", [1]) == []


async def test_what_is_given_back_is_in_no_doubt(store: SqliteStore) -> None:
    """A line that was refused before it was done is pending as if it had never begun."""
    batch = await accepted(store)
    await store.claim(batch, "w1", 1, NOW)
    await store.begin(batch, "w1", [1])
    await store.release(batch, "w1", [1])
    assert [(it.item.number, it.in_doubt) for it in await store.claim(batch, "w2", 1, NOW)] == [(1, False)]


async def test_a_batch_ends_for_one_reason(store: SqliteStore) -> None:
    """Of several that end it one is told yes; its status stays when the last line is done."""
    batch = await accepted(store, 1)
    assert await store.end(batch, Status.CANCELLED, "cancelled")
    assert not await store.end(batch, Status.FAILED, "deadline")
    await store.finish(batch, done(1), NOW)
    known = await store.batch(batch)
    assert known is not None
    assert (known.status, known.reason, known.over) == (Status.CANCELLED, "cancelled", True)


async def test_another_process_goes_on(tmp_path: Path, wall: Wall) -> None:
    """What was accepted is there after reopening, and claims of a worker that left are free."""
    first = SqliteStore(tmp_path / "batch.db", wall)
    await first.open()
    batch = await accepted(first)
    await first.claim(batch, "w", 2, NOW)
    await first.close()
    second = SqliteStore(tmp_path / "batch.db", wall)
    await second.open()
    known = await second.batch(batch)
    assert known is not None
    assert (known.options, known.counts.total) == (Options(name="n", retries=2), 3)
    assert len(await second.claim(batch, "x", 9, NOW)) == 3
    await second.close()


async def test_what_was_never_accepted_is_removed(tmp_path: Path, wall: Wall) -> None:
    """A submission that its process did not live to end leaves nothing behind."""
    path = tmp_path / "batch.db"
    first = SqliteStore(path, wall)
    await first.open()
    await first.create(Batch("b", Options(), Status.VALIDATING, NOW), "w")
    await first.add("b", items(3))
    await first.close()
    second = SqliteStore(path, wall)
    await second.open()
    assert await second.batches() == []
    await second.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM lines").fetchone() == (0,)
    db.close()


async def test_a_full_store_says_so_and_works_on(tmp_path: Path, wall: Wall) -> None:
    """What does not fit is refused whole with StoreFull; what is there stays, and room helps."""
    store = SqliteStore(tmp_path / "batch.db", wall, max_size=512 << 10)
    await store.open()
    batch = await accepted(store)
    await store.create(Batch("large", Options(), Status.VALIDATING, NOW), "w")
    large = [Item(number, f"c{number}", b"x" * 10_000, True) for number in range(1, 200)]
    with pytest.raises(StoreFull, match="no room"):
        await store.add("large", large)
    assert len(await store.claim(batch, "w", 9, NOW)) == 3
    assert len(await store.finish(batch, done(1), NOW)) == 1
    with suppress(StoreFailed):
        await store.add("large", large[:20])
    assert await store.delete("large")
    assert not await store.delete("large")
    await store.close()


async def test_deleting_leaves_nothing(store: SqliteStore, tmp_path: Path) -> None:
    """Lines and results go with their batch; asking for it then is an error, not silence."""
    batch = await accepted(store)
    await store.finish(batch, done(1), NOW)
    assert await store.delete(batch)
    assert await store.batch(batch) is None
    with pytest.raises(StoreFailed, match="no batch b"):
        await store.results(batch, 0, 1)
    with sqlite3.connect(tmp_path / "batch.db") as db:
        assert db.execute(
            "SELECT (SELECT count(*) FROM lines) + (SELECT count(*) FROM results)"
        ).fetchone() == (0,)
    db.close()


async def test_a_place_that_cannot_be_opened(tmp_path: Path, wall: Wall) -> None:
    """A folder, or a file that is no database, is an error with the file's name."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_bytes(b"no database, but long enough to have been taken for one" * 50)
    for name in ("folder", "text"):
        with pytest.raises(StoreFailed, match=name):
            await SqliteStore(tmp_path / name, wall).open()


async def test_large_lines_come_a_few_at_a_time(store: SqliteStore) -> None:
    """Of large requests and results a claim and a page give as many as their bytes allow, but one."""
    await store.create(Batch("b", Options(), Status.VALIDATING, NOW), "w")
    large = b"x" * (3 << 20)
    await store.add("b", [Item(number, f"c{number}", large, True) for number in range(1, 6)])
    await store.accept("b", 5)
    assert [it.item.number for it in await store.claim("b", "w", 9, NOW)] == [1, 2]
    assert [it.item.number for it in await store.claim("b", "w", 9, NOW)] == [3, 4]
    await store.finish("b", [Result(number, Outcome.OK, large * 3) for number in (1, 2)], NOW)
    assert len(await store.results("b", 0, 9)) == 1
