"""Batches in a SQLite file.

The journal is a write-ahead log with `synchronous=FULL`: what is committed is on the disk
(sqlite.org/pragma.html#pragma_synchronous).
Several processes of one machine may share a file.

A request may hold keys. It is kept as long as it may have to be sent: a line that has ended is without it,
in a file that its owner alone may read.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil

from sidecar.batch.jobs import (
    LEASE,
    MOST_BYTES,
    Batch,
    Claimed,
    Counts,
    Duplicate,
    Item,
    Options,
    Outcome,
    Result,
    Status,
    StoreFull,
)
from sidecar.batch.sqlite_thread import BUSY, NO_ROOM, SqliteThread, emptied_log
from sidecar.batch.worker import host, lives

T = TypeVar("T")
PENDING, CLAIMED, BEGUN, DONE = range(4)
VERSION: Final = 1
DELETED: Final = "deleted"
"""Status of a batch that nobody sees any more, and whose rows go one after the other."""
PURGED: Final = 500
"""Rows that go in one transaction: others have their turn in between."""
PURGED_BYTES: Final = 1 << 20
"""Of their contents: what is freed is written, zeroed (`secure_delete`), and room may be scarce."""
CHECKPOINT: Final = 250
"""Pages of 4 KiB after which the write-ahead log goes into the file, which may have to grow by them."""
ROOM: Final = 16 << 20
"""Bytes of the disk that are not worked with: more than the log and one transaction take, so that deleting is
always possible, and with that there is a way out of a disk that batches have filled."""
ROOM_TO_ADD: Final = 2 * ROOM
"""Bytes of the disk that are not submitted into: what is accepted may still run then."""
SMALL: Final = 16
"""A disk of less than this many times `ROOM` leaves one such part of it instead."""
_SCHEMA: Final = f"""
CREATE TABLE batches (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, options BLOB NOT NULL, status TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '', created REAL NOT NULL, finished REAL, worker TEXT NOT NULL,
    total INTEGER NOT NULL DEFAULT 0, ok INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
    unknown INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE lines (
    batch INTEGER NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, repeatable INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT {PENDING}, doubt INTEGER NOT NULL DEFAULT 0, worker TEXT,
    request BLOB NOT NULL, PRIMARY KEY (batch, number)
) WITHOUT ROWID;
CREATE UNIQUE INDEX line_ids ON lines (batch, custom_id);
CREATE INDEX lines_pending ON lines (batch, doubt DESC, number) WHERE state = {PENDING};
CREATE INDEX lines_held ON lines (worker) WHERE state IN ({CLAIMED}, {BEGUN});
CREATE TABLE results (
    position INTEGER PRIMARY KEY AUTOINCREMENT, batch INTEGER NOT NULL, text BLOB NOT NULL
);
CREATE INDEX results_of ON results (batch);
CREATE TABLE workers (
    name TEXT PRIMARY KEY, process INTEGER NOT NULL, born REAL NOT NULL, until REAL NOT NULL
);
PRAGMA user_version = {VERSION};
"""
_BATCH: Final = "id, options, status, created, total, ok, failed, unknown, finished, reason"


class SqliteStore:
    """A `JobStore` in the file at `path`, which is made when it is opened."""

    def __init__(self, path: Path, wall: Callable[[], float], max_size: int | None = None) -> None:
        """`max_size`: bytes above which the file does not grow."""
        self._path = path
        self._wall = wall
        self._max_size = max_size
        self._thread = SqliteThread(path, self._connect, self._tidy, self._part)
        self._workers: set[str] = set()
        self._me = psutil.Process()
        self._leftovers = False
        """Whether the log may hold requests that the file itself has no more."""

    # -- life ----------------------------------------------------------------------------

    async def open(self) -> None:
        await self._thread.open()

    async def close(self) -> None:
        await self._thread.close()

    async def _do(self, function: Callable[[sqlite3.Connection], T], *, alone: bool = False) -> T:
        return await self._thread.do(function, alone=alone)

    def _tidy(self, db: sqlite3.Connection) -> None:
        if self._leftovers:
            self._leftovers = not emptied_log(db)

    def _part(self, db: sqlite3.Connection) -> None:
        for worker in self._workers:
            _forsake(db, worker)

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite gives its log the mode that the file has.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self._path, timeout=BUSY, isolation_level=None, cached_statements=64)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
            db.execute("PRAGMA secure_delete = ON")
            if self._max_size is not None:
                (page,) = db.execute("PRAGMA page_size").fetchone()
                db.execute(f"PRAGMA max_page_count = {max(1, self._max_size // page)}")
            db.execute("BEGIN IMMEDIATE")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            db.execute("COMMIT")
            if version == 0:
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            elif version != VERSION:
                raise sqlite3.DataError(  # noqa: TRY301 - told as SQLite's own errors are
                    f"it was made by another version of the sidecar ({version}, not {VERSION})"
                )
            self._bury(db, self._wall())
            db.execute(
                f"UPDATE batches SET status = '{DELETED}' WHERE status = 'validating'"
                " AND worker NOT IN (SELECT name FROM workers)"
            )
            more = True
            while more:
                db.execute("BEGIN IMMEDIATE")
                more = _purge(db)
                db.execute("COMMIT")
                self._leftovers = self._leftovers or more
        except BaseException:
            db.close()
            raise
        return db

    def _spare(self, db: sqlite3.Connection, room: int) -> None:
        """Raises StoreFull where less than that is left, on the disk and of what was deleted in the file."""
        disk = shutil.disk_usage(self._path.parent)
        least = min(room, room * disk.total // (SMALL * ROOM))
        if disk.free >= least:
            return
        (pages,) = db.execute("PRAGMA freelist_count").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
        if disk.free + pages * size < least:
            raise StoreFull(NO_ROOM.format(self._path.name))

    def _bury(self, db: sqlite3.Connection, now: float) -> None:
        """Takes the claims from workers whose lease ran out, or whose process is known to be dead."""
        for name, process, born, until in db.execute("SELECT * FROM workers").fetchall():
            if until < now or (name.startswith(f"{host()}:") and not lives(process, born)):
                _forsake(db, name)

    def _renew(self, db: sqlite3.Connection, worker: str, now: float) -> None:
        self._workers.add(worker)
        db.execute(
            "INSERT INTO workers VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET until = excluded.until",
            (worker, self._me.pid, self._me.create_time(), now + LEASE),
        )

    # -- batches -------------------------------------------------------------------------------

    async def create(self, batch: Batch, worker: str) -> None:
        def call(db: sqlite3.Connection) -> None:
            self._renew(db, worker, self._wall())
            db.execute(
                "INSERT INTO batches (id, options, status, created, worker) VALUES (?, ?, ?, ?, ?)",
                (batch.id, batch.options.dump(), batch.status.value, batch.created, worker),
            )

        await self._do(call)

    async def add(self, batch: str, items: Sequence[Item]) -> list[Duplicate]:
        def call(db: sqlite3.Connection) -> list[Duplicate]:
            key = _key(db, batch)
            self._spare(db, ROOM_TO_ADD)
            rows = [(key, it.number, it.custom_id, it.repeatable, it.request) for it in items]
            inserted = db.executemany(
                "INSERT INTO lines (batch, number, custom_id, repeatable, request) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (batch, custom_id) DO NOTHING",
                rows,
            ).rowcount
            if inserted == len(rows):
                return []
            query = "SELECT number FROM lines WHERE batch = ? AND custom_id = ?"
            firsts = [(it.number, db.execute(query, (key, it.custom_id)).fetchone()[0]) for it in items]
            return [Duplicate(number, first) for number, first in firsts if number != first]

        return await self._do(call)

    async def accept(self, batch: str, total: int) -> None:
        def call(db: sqlite3.Connection) -> None:
            query = "UPDATE batches SET status = 'running', total = ? WHERE key = ?"
            db.execute(query, (total, _key(db, batch)))

        await self._do(call)

    async def delete(self, batch: str) -> bool:
        def call(db: sqlite3.Connection) -> bool:
            query = f"UPDATE batches SET status = '{DELETED}' WHERE id = ? AND status <> '{DELETED}'"
            return db.execute(query, (batch,)).rowcount == 1

        def purge(db: sqlite3.Connection) -> bool:
            more = _purge(db)
            self._leftovers = self._leftovers or not more  # once, at the end
            return more

        if not await self._do(call):
            return False
        while await self._do(purge, alone=True):
            pass
        return True

    async def batch(self, batch: str) -> Batch | None:
        def call(db: sqlite3.Connection) -> Batch | None:
            row = db.execute(
                f"SELECT {_BATCH} FROM batches WHERE id = ? AND status <> '{DELETED}'", (batch,)
            ).fetchone()
            return None if row is None else _batch(row)

        return await self._do(call)

    async def batches(self) -> list[Batch]:
        def call(db: sqlite3.Connection) -> list[Batch]:
            rows = db.execute(
                f"SELECT {_BATCH} FROM batches WHERE status <> '{DELETED}' ORDER BY key DESC"
            ).fetchall()
            return [_batch(row) for row in rows]

        return await self._do(call)

    async def end(self, batch: str, status: Status, reason: str) -> bool:
        def call(db: sqlite3.Connection) -> bool:
            query = (
                "UPDATE batches SET status = ?, reason = ?"
                " WHERE id = ? AND status = 'running' AND reason = '' AND finished IS NULL"
            )
            return db.execute(query, (status.value, reason, batch)).rowcount == 1

        return await self._do(call)

    # -- lines ---------------------------------------------------------------------------------

    async def claim(self, batch: str, worker: str, most: int, now: float) -> list[Claimed]:
        def call(db: sqlite3.Connection) -> list[Claimed]:
            self._renew(db, worker, now)
            self._bury(db, now)
            key = _key(db, batch)
            self._spare(db, ROOM)
            found = db.execute(
                "SELECT number, custom_id, request, repeatable, doubt FROM lines"
                f" WHERE batch = ? AND state = {PENDING} ORDER BY doubt DESC, number LIMIT ?",
                (key, most),
            )
            rows = _some(found, 2)
            db.executemany(
                f"UPDATE lines SET state = {CLAIMED}, worker = ? WHERE batch = ? AND number = ?",
                [(worker, key, row[0]) for row in rows],
            )
            return [
                Claimed(Item(number, custom_id, request, bool(repeatable)), bool(doubt))
                for number, custom_id, request, repeatable, doubt in rows
            ]

        return await self._do(call)

    async def begin(self, batch: str, worker: str, numbers: Sequence[int]) -> list[int]:
        def call(db: sqlite3.Connection) -> list[int]:
            key = _key(db, batch)
            query = (
                f"UPDATE lines SET state = {BEGUN} WHERE batch = ? AND number = ? AND worker = ?"
                f" AND state IN ({CLAIMED}, {BEGUN})"
            )
            return [number for number in numbers if db.execute(query, (key, number, worker)).rowcount]

        return await self._do(call)

    async def release(self, batch: str, worker: str, numbers: Sequence[int]) -> None:
        def call(db: sqlite3.Connection) -> None:
            key = _key(db, batch)
            db.executemany(
                f"UPDATE lines SET state = {PENDING}, worker = NULL"
                f" WHERE batch = ? AND number = ? AND worker = ? AND state IN ({CLAIMED}, {BEGUN})",
                [(key, number, worker) for number in numbers],
            )

        await self._do(call)

    async def renew(self, worker: str, now: float) -> None:
        await self._do(lambda db: self._renew(db, worker, now))

    async def finish(self, batch: str, results: Sequence[Result], now: float) -> list[Result]:
        def call(db: sqlite3.Connection) -> list[Result]:
            key = _key(db, batch)
            self._spare(db, ROOM)
            query = (
                f"UPDATE lines SET state = {DONE}, request = x''"
                f" WHERE batch = ? AND number = ? AND state <> {DONE}"
            )
            fresh = [it for it in results if db.execute(query, (key, it.number)).rowcount]
            db.executemany(
                "INSERT INTO results (batch, text) VALUES (?, ?)", [(key, it.text) for it in fresh]
            )
            counts = [sum(it.outcome is each for it in fresh) for each in Outcome]
            db.execute(
                "UPDATE batches SET ok = ok + ?, failed = failed + ?, unknown = unknown + ? WHERE key = ?",
                (*counts, key),
            )
            over = db.execute(
                "UPDATE batches SET finished = ?, status = iif(reason = '', 'completed', status)"
                " WHERE key = ? AND finished IS NULL AND ok + failed + unknown = total",
                (now, key),
            )
            self._leftovers = self._leftovers or over.rowcount == 1
            return fresh

        return await self._do(call)

    async def results(self, batch: str, after: int, most: int) -> list[tuple[int, bytes]]:
        def call(db: sqlite3.Connection) -> list[tuple[int, bytes]]:
            query = (
                "SELECT position, text FROM results"
                " WHERE batch = ? AND position > ? ORDER BY position LIMIT ?"
            )
            return _some(db.execute(query, (_key(db, batch), after, most)), 1)

        return await self._do(call)


def _some(rows: Iterable[Any], column: int) -> list[Any]:
    """As many rows as `MOST_BYTES` of the column allow."""
    taken: list[Any] = []
    size = 0
    for row in rows:
        size += len(row[column])
        if taken and size > MOST_BYTES:
            break
        taken.append(row)
    return taken


def _key(db: sqlite3.Connection, batch: str) -> int:
    query = f"SELECT key FROM batches WHERE id = ? AND status <> '{DELETED}'"
    row = db.execute(query, (batch,)).fetchone()
    if row is None:
        raise sqlite3.DataError(f"there is no batch {batch} any more")
    key: int = row[0]
    return key


def _purge(db: sqlite3.Connection) -> bool:
    """Removes some rows of batches that were deleted; False once none is left."""
    row = db.execute(f"SELECT key FROM batches WHERE status = '{DELETED}'").fetchone()
    if row is None:
        return False
    for table, column, content in (("results", "position", "text"), ("lines", "number", "request")):
        query = f"SELECT {column}, length({content}) FROM {table} WHERE batch = ? LIMIT {PURGED}"
        size = 0
        chosen: list[tuple[int, int]] = []
        for number, length in db.execute(query, row):
            size += length
            if chosen and size > PURGED_BYTES:
                break
            chosen.append((row[0], number))
        if chosen:
            db.executemany(f"DELETE FROM {table} WHERE batch = ? AND {column} = ?", chosen)
            return True
    db.execute("DELETE FROM batches WHERE key = ?", row)
    return True


def _forsake(db: sqlite3.Connection, worker: str) -> None:
    """A worker is dead, or leaves: its lines are pending again, those it had begun in doubt."""
    db.execute(
        f"UPDATE lines SET doubt = doubt OR state = {BEGUN}, state = {PENDING}, worker = NULL"
        f" WHERE worker = ? AND state IN ({CLAIMED}, {BEGUN})",
        (worker,),
    )
    db.execute("DELETE FROM workers WHERE name = ?", (worker,))


def _batch(row: Sequence[Any]) -> Batch:
    name, options, status, created, total, ok, failed, unknown, finished, reason = row
    counts = Counts(total, ok, failed, unknown)
    return Batch(name, Options.parse(options), Status(status), created, counts, finished, reason)
