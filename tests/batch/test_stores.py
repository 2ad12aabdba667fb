"""What every store of batches promises: claims, leases, results, what outlives a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sidecar.batch.jobs import LEASE, Batch, Item, JobStore, Options, Outcome, Result, Status, StoreFailed
from tests.support.batch_stores import NOW, FilePlace, Place, ServerPlace, accepted, done, items
from tests.support.valkey import running


@pytest.fixture(params=["sqlite", "valkey"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        yield FilePlace(tmp_path / "batch.db")
    else:
        with running("--appendonly", "yes") as server:
            yield ServerPlace(server)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[JobStore]:
    made = place.make()
    await made.open()
    yield made
    await made.close()


async def test_a_duplicate_is_told_with_the_first_of_its_name(store: JobStore) -> None:
    """Of lines with the same custom_id the first counts, in one call and across calls."""
    await store.create(Batch("b", Options(), Status.VALIDATING, NOW), "w")
    await store.add("b", items(2))
    found = await store.add(
        "b", [Item(3, "c1", b"{}", True), Item(4, "d", b"{}", True), Item(5, "d", b"{}", True)]
    )
    assert [(it.number, it.first) for it in found] == [(3, 1), (5, 4)]


async def test_no_two_workers_get_the_same_line(store: JobStore) -> None:
    """Claims follow the order of the file and never overlap."""
    batch = await accepted(store, 5)
    first = await store.claim(batch, "w1", 3, NOW)
    second = await store.claim(batch, "w2", 9, NOW)
    assert [it.item.number for it in first] == [1, 2, 3]
    assert [it.item.number for it in second] == [4, 5]
    assert await store.claim(batch, "w2", 9, NOW) == []


async def test_the_first_result_of_a_line_counts(store: JobStore) -> None:
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


async def test_lines_of_a_dead_worker_go_to_the_next(store: JobStore, place: Place) -> None:
    """Once its lease is over, what it had claimed is pending again, what it had begun is in doubt; both come
    before all others.
    """
    batch = await accepted(store, 5)
    await store.claim(batch, "w1", 2, place.now)
    assert await store.begin(batch, "w1", [2]) == [2]
    place.age(LEASE - 1)
    assert [it.item.number for it in await store.claim(batch, "w2", 1, place.now)] == [3]
    await store.renew("w1", place.now)
    place.age(LEASE - 1)
    await store.renew("w2", place.now)
    assert [it.item.number for it in await store.claim(batch, "w2", 1, place.now)] == [4]
    place.age(2 * LEASE)
    taken = await store.claim(batch, "w3", 9, place.now)
    doubts = {it.item.number: it.in_doubt for it in taken}
    assert doubts == {1: False, 2: True, 3: False, 4: False, 5: False}
    assert taken[-1].item.number == 5
    assert await store.begin(batch, "w1", [1]) == []


async def test_what_is_given_back_is_in_no_doubt(store: JobStore) -> None:
    """A line that was refused before it was done is pending as if it had never begun."""
    batch = await accepted(store)
    await store.claim(batch, "w1", 1, NOW)
    await store.begin(batch, "w1", [1])
    await store.release(batch, "w1", [1])
    assert [(it.item.number, it.in_doubt) for it in await store.claim(batch, "w2", 1, NOW)] == [(1, False)]


async def test_a_batch_ends_for_one_reason(store: JobStore) -> None:
    """Of several that end it one is told yes; its status stays when the last line is done."""
    batch = await accepted(store, 1)
    assert await store.end(batch, Status.CANCELLED, "cancelled")
    assert not await store.end(batch, Status.FAILED, "deadline")
    await store.finish(batch, done(1), NOW)
    known = await store.batch(batch)
    assert known is not None
    assert (known.status, known.reason, known.over) == (Status.CANCELLED, "cancelled", True)


async def test_another_process_goes_on(place: Place) -> None:
    """What was accepted is there after reopening, and claims of a worker that left are free."""
    first = place.make()
    await first.open()
    batch = await accepted(first)
    await first.claim(batch, "w", 2, NOW)
    await first.close()
    second = place.make()
    await second.open()
    known = await second.batch(batch)
    assert known is not None
    assert (known.options, known.counts.total) == (Options(name="n", retries=2), 3)
    assert len(await second.claim(batch, "x", 9, NOW)) == 3
    await second.close()


async def test_what_was_never_accepted_is_removed(place: Place) -> None:
    """A submission that its process did not live to end leaves nothing behind, once that is known."""
    first = place.make()
    await first.open()
    await first.create(Batch("b", Options(), Status.VALIDATING, NOW), "w")
    await first.add("b", items(3))
    await first.close()
    second = place.make()
    await second.open()
    assert await second.batches() == []
    await second.close()


async def test_of_batches_the_newest_comes_first(store: JobStore) -> None:
    """All are listed, those that are taken in too; what was deleted is not, and asking for it is an error."""
    for number in range(3):
        batch = Batch(f"b{number}", Options(), Status.VALIDATING, NOW + number)
        await store.create(batch, "w")
        await store.add(batch.id, items(2))
    await store.accept("b1", 2)
    found = await store.batches()
    assert [(it.id, it.status.value) for it in found] == [
        ("b2", "validating"),
        ("b1", "running"),
        ("b0", "validating"),
    ]
    assert await store.delete("b1")
    assert not await store.delete("b1")
    assert [it.id for it in await store.batches()] == ["b2", "b0"]
    assert await store.batch("b1") is None
    with pytest.raises(StoreFailed, match="no batch b1"):
        await store.results("b1", 0, 1)


async def test_two_processes_never_share_a_line(place: Place) -> None:
    """Of two that claim and finish all they can at the same time, each line has one, and one first result."""
    stores = [place.make() for _ in range(2)]
    for each in stores:
        await each.open()
    batch = await accepted(stores[0], 300)
    claimed: list[int] = []
    fresh: list[int] = []

    async def work(store: JobStore, name: str) -> None:
        while lines := await store.claim(batch, name, 7, NOW):
            claimed.extend(it.item.number for it in lines)
            results = done(*(it.item.number for it in lines))
            for again in await asyncio.gather(*(each.finish(batch, results, NOW) for each in stores)):
                fresh.extend(it.number for it in again)

    await asyncio.gather(*(work(each, f"w{number}") for number, each in enumerate(stores)))
    assert sorted(claimed) == sorted(fresh) == list(range(1, 301))
    known = await stores[1].batch(batch)
    assert known is not None
    assert (known.counts.ok, known.status) == (300, Status.COMPLETED)
    page = await stores[0].results(batch, 0, 500)
    assert len(page) == len({text for _, text in page}) == 300
    for each in stores:
        await each.close()


async def test_large_lines_come_a_few_at_a_time(store: JobStore) -> None:
    """Of large requests and results a claim and a page give as many as their bytes allow, but one."""
    await store.create(Batch("b", Options(), Status.VALIDATING, NOW), "w")
    large = b"x" * (3 << 20)
    await store.add("b", [Item(number, f"c{number}", large, True) for number in range(1, 6)])
    await store.accept("b", 5)
    assert [it.item.number for it in await store.claim("b", "w", 9, NOW)] == [1, 2]
    assert [it.item.number for it in await store.claim("b", "w", 9, NOW)] == [3, 4]
    await store.finish("b", [Result(number, Outcome.OK, large * 3) for number in (1, 2)], NOW)
    assert len(await store.results("b", 0, 9)) == 1
