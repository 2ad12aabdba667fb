"""The store of batches in SQLite: what is claimed, begun, finished, and what outlives its process."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.batch.jobs import (
    Batch,
    Item,
    Options,
    Status,
    StoreFailed,
    StoreFull,
)
from sidecar.batch.sqlite import SqliteStore
from tests.support.batch_stores import NOW, Wall, accepted, done, items


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def store(tmp_path: Path, wall: Wall) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path / "batch.db", wall)
    await made.open()
    yield made
    await made.close()


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


async def test_what_was_asked_goes_when_it_was_answered(tmp_path: Path, store: SqliteStore) -> None:
    """A line that has ended keeps its name and loses its request, keys and all: from the file, and from the
    log with the end of the batch, or when that is deleted. Only its owner may read the two.
    """

    def kept() -> bytes:
        return b"".join(file.read_bytes() for file in tmp_path.glob("batch.db*"))

    def modes() -> set[int]:
        return {file.stat().st_mode & 0o777 for file in tmp_path.glob("batch.db*")}

    def asked(key: bytes) -> list[Item]:
        return [Item(n, f"c{n}", key + b"%d" % n + b"x" * size, True) for n, size in ((1, 9), (2, 20_000))]

    await store.create(Batch("b", Options(), Status.VALIDATING, NOW), "w")
    await store.add("b", asked(b"MARKED-"))
    await store.accept("b", 2)
    assert modes() == {0o600}
    assert kept().count(b"MARKED-") >= 2
    await store.finish("b", done(1, 2), NOW)
    await store.batches()  # on the same thread: what was left to do is done
    assert b"MARKED-" not in kept()
    await store.create(Batch("c", Options(), Status.VALIDATING, NOW), "w")
    await store.add("c", asked(b"MARKED-"))
    assert b"MARKED-1" in kept()
    assert await store.delete("c")
    await store.batches()
    assert b"MARKED-" not in kept()
    assert (await store.results("b", 0, 9)) != []


async def test_a_row_that_cannot_be_read_is_an_error_for_whoever_asks(
    store: SqliteStore, tmp_path: Path
) -> None:
    """What another program wrote into the file is told as the store's failure; the store works on."""
    batch = await accepted(store)
    with sqlite3.connect(tmp_path / "batch.db") as db:
        db.execute(
            "INSERT INTO batches (id, options, status, created, worker) VALUES ('x', 'no', 'odd', 0, '')"
        )
    db.close()
    with pytest.raises(StoreFailed, match=r"batch\.db"):
        await asyncio.wait_for(store.batch("x"), 10)
    assert (await store.batch(batch)) is not None
    assert len(await store.claim(batch, "w", 9, NOW)) == 3


async def test_a_store_is_opened_again(tmp_path: Path, wall: Wall) -> None:
    """One that could not be opened, and was closed after that, works as any once it can be."""
    folder = tmp_path / "batch.db"
    folder.mkdir()
    store = SqliteStore(folder, wall)
    for _ in range(2):
        with pytest.raises(StoreFailed):
            await store.open()
        await store.close()
    folder.rmdir()
    await store.open()
    batch = await asyncio.wait_for(accepted(store), 10)
    await store.close()
    await store.open()
    assert await asyncio.wait_for(store.batch(batch), 10) is not None
    await store.close()
