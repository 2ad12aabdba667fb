"""A SQLite file and the one thread that works on it: no statement ever holds the event loop up.

Transactions take in whatever was asked while the one before was committed: many small changes share one write
to the disk.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from sidecar.batch.jobs import StoreFailed, StoreFull
from sidecar.telemetry.log import get_logger

T = TypeVar("T")
_Call = tuple[Callable[[sqlite3.Connection], Any], "asyncio.Future[Any]", bool]
"""What to do, who waits for it, and whether it has a transaction of its own."""
_Settled = tuple["asyncio.Future[Any]", Any, Exception | None]

NO_ROOM: Final = "there is no room for batches in {}: free some of the disk, or DELETE old ones"
BUSY: Final = 10.0
"""Seconds that a transaction waits for those of other processes."""
MOST_TOGETHER: Final = 256
"""Calls in one transaction."""


class SqliteThread:
    """Opened once or more often; between `open` and `close` it takes calls."""

    def __init__(
        self,
        path: Path,
        connect: Callable[[], sqlite3.Connection],
        tidy: Callable[[sqlite3.Connection], None],
        part: Callable[[sqlite3.Connection], None],
    ) -> None:
        """What happens on the thread: `connect` opens the file, `tidy` comes after each transaction, `part`
        before the end.
        """
        self._path = path
        self._connect = connect
        self._tidy = tidy
        self._part = part
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._held: deque[_Call | None] = deque()
        """One at most: it was taken from the queue, and does not go with what was before it."""
        self._thread: threading.Thread | None = None
        self._log = get_logger("sidecar.batch")

    async def open(self) -> None:
        """Raises StoreFailed."""
        self._calls = queue.SimpleQueue()  # the one before may hold the end of a thread that never began
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._thread = threading.Thread(
            target=self._run, args=(asyncio.get_running_loop(), opened), name="batch store", daemon=True
        )
        self._thread.start()
        await opened

    async def close(self) -> None:
        """Lets what was asked for end. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._calls.put(None)
        await asyncio.get_running_loop().run_in_executor(None, thread.join)

    async def do(self, function: Callable[[sqlite3.Connection], T], *, alone: bool = False) -> T:
        """What the function returns, once it is committed. Raises StoreFailed: nothing was done.

        `alone`: in a transaction of its own, which is small then.
        """
        if self._thread is None:
            raise StoreFailed("the batch store is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((function, future, alone))
        return await future

    def _run(self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[None]) -> None:
        try:
            db = self._connect()
        except Exception as error:  # noqa: BLE001 - whoever opens is told
            loop.call_soon_threadsafe(_settle, [(opened, None, self._failure(error))])
            return
        loop.call_soon_threadsafe(_settle, [(opened, None, None)])
        try:
            while calls := self._gathered():
                settled = self._alone(db, calls[0]) if calls[0][2] else self._together(db, calls)
                with suppress(RuntimeError):  # the loop has ended: nobody waits any more
                    loop.call_soon_threadsafe(_settle, settled)
                self._tidy(db)
            with suppress(sqlite3.Error):
                self._part(db)
        finally:
            db.close()

    def _gathered(self) -> list[_Call]:
        """What goes into the next transaction; nothing: the store closes."""
        calls: list[_Call] = []
        while not calls or (len(calls) < MOST_TOGETHER and not self._calls.empty()):
            call = self._held.popleft() if self._held else self._calls.get()
            if calls and (call is None or call[2]):
                self._held.append(call)
                break
            if call is None:
                break
            calls.append(call)
            if call[2]:
                break
        return calls

    def _alone(self, db: sqlite3.Connection, call: _Call) -> list[_Settled]:
        function, future, _ = call
        try:
            db.execute("BEGIN IMMEDIATE")
            value = function(db)
            db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            if db.in_transaction:
                db.execute("ROLLBACK")
            return [(future, None, self._failure(error))]
        return [(future, value, None)]

    def _together(self, db: sqlite3.Connection, calls: Sequence[_Call]) -> list[_Settled]:
        """All calls in one transaction; one that fails is undone alone.

        A full disk undoes all of it: then each has one more try, by itself. Who only reads needs no room.
        """
        settled: list[_Settled] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            for function, future, _ in calls:
                db.execute("SAVEPOINT one")
                try:
                    value, failure = function(db), None
                except Exception as error:
                    if not db.in_transaction:  # SQLite has undone it all by itself, as for a full disk
                        raise
                    db.execute("ROLLBACK TO one")
                    value, failure = None, self._failure(error)
                db.execute("RELEASE one")
                settled.append((future, value, failure))
            db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - likewise
            if db.in_transaction:
                db.execute("ROLLBACK")
            if len(calls) > 1:
                return [self._together(db, [call])[0] for call in calls]
            return [(calls[0][1], None, self._failure(error))]
        return settled

    def _failure(self, error: Exception) -> StoreFailed:
        if isinstance(error, StoreFailed):
            return error
        if not isinstance(error, sqlite3.Error | OSError):
            self._log.error("unexpected error", task="batch store", exc_info=error)
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            return StoreFull(NO_ROOM.format(self._path.name))
        return StoreFailed(f"the batch store {self._path.name}: {error}")


def emptied_log(db: sqlite3.Connection) -> bool:
    """Puts the log's pages into the file, and cuts it to nothing. False: another process is in the way."""
    db.execute("PRAGMA busy_timeout = 100")
    try:
        (busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error:
        return False
    finally:
        db.execute(f"PRAGMA busy_timeout = {BUSY * 1000:.0f}")
    return not busy


def _settle(settled: Sequence[_Settled]) -> None:
    for future, value, failure in settled:
        if future.done():  # its task was cancelled
            continue
        if failure is None:
            future.set_result(value)
        else:
            future.set_exception(failure)
