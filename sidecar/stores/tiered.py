"""The cache's store: memory first, then what replicas share.

    look ──▶ memory ──▶ get ──▶ shared store        a miss in memory, or a copy that is due for a check
    set  ──▶ memory ┄┄▶ shared store                 in the background

A copy in memory of what is shared is used for `recheck` seconds, then compared with the shared store
at its next use: so a purge by another replica is seen even when its message was lost. While the shared
store is away, memory goes on alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sidecar.stores.entry import Entry
from sidecar.stores.found import Found, Lost
from sidecar.stores.memory import MOST_USES
from sidecar.stores.purge_log import Purged, PurgeLog
from sidecar.stores.space import Space
from sidecar.stores.stats import SpaceStats

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.decisions.freshness import Lifetime
    from sidecar.stores.entry import Record
    from sidecar.stores.memory import Memory, Node
    from sidecar.stores.redis import RedisStore

T = TypeVar("T")

RECHECK: Final = 10.0
"""Seconds that a copy is used without asking."""
CHECKING: Final = 1.0
"""Seconds for which others may use a copy while one checks it."""
CLOSING: Final = 0.5
"""Seconds for writes under way when it is closed."""
MOST_WRITING: Final = 256
"""Writes to the shared store under way; more are left out."""


class Tiered:
    """A `Store`, and `look` for what is in memory: synchronous, for the way that most hits go."""

    def __init__(
        self, memory: Memory, shared: RedisStore | None, clock: Clock, recheck: float = RECHECK
    ) -> None:
        """`recheck` in seconds. Without `shared` it is the memory store alone."""
        self.memory = memory
        self.shared = shared
        self._now: Callable[[], float] = clock.now
        self._recheck = recheck
        self._log = PurgeLog() if shared is None else shared.log
        self._distrusted = 0.0
        """What was checked before (monotonic seconds) may have been purged unheard."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reading: dict[bytes, asyncio.Task[Record | None]] = {}
        self._spaces: dict[str, Space] = {}
        self.on_purge: Callable[[Purged, Sequence[bytes]], None] | None = None
        """Hears of each purge that was asked for here: for the memories of other workers."""
        if shared is not None:
            shared.on_purge(self._heard, self._gap)

    def space(self, name: str) -> Space:
        """The store as one namespace sees it, with counts of its own."""
        space = self._spaces.get(name)
        if space is None:
            space = self._spaces[name] = Space(self, name)
        return space

    @property
    def spaces(self) -> dict[str, SpaceStats]:
        """The counts of each namespace."""
        return {name: space.stats for name, space in self._spaces.items()}

    def mark(self) -> int:
        return self._log.mark()

    def look(self, key: bytes) -> Record | None:
        """What memory has and may use without asking; None means: `get`."""
        node = self.memory.find(key)
        if node is None:
            return None
        if self.shared is not None and self._due(node) and self.shared.reaches(key):
            return None
        return node.record

    def again(self, node: Node, now: float) -> bool:
        """Whether `look` would give the record of `node`, at `now` (Unix seconds); counts as a use of it."""
        shared = self.shared
        if node.until <= now or (shared is not None and self._due(node) and shared.reaches(node.key)):
            return False
        if node.uses < MOST_USES:
            node.uses += 1
        return True

    async def get(self, key: bytes) -> Record | None:
        node = self.memory.find(key)
        shared = self.shared
        if shared is None:
            return None if node is None else node.record
        if node is not None and not (self._due(node) and shared.reaches(key)):
            return node.record
        if node is None and not shared.reaches(key):
            return None
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = self._spawn(self._read(shared, key, node))
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        # Whoever asked first may leave: the others still wait for it.
        return await asyncio.shield(reading)

    async def set(self, key: bytes, record: Record, since: int | None = None) -> bool:
        return self.put(key, record, since)

    def put(self, key: bytes, record: Record, since: int | None = None) -> bool:
        """As `set`, at once: the shared store gets it in the background."""
        if since is None:
            since = self._log.mark()
        elif self._log.purged(key, record.tags, since):
            return False
        node = self.memory.set(key, record)
        if node is not None:
            node.checked = self._now()
        if self.shared is None:
            return node is not None
        if len(self._tasks) < MOST_WRITING:
            self._spawn(self._write(self.shared, key, record, since))
        else:
            self.shared.stats.skipped += 1
        return True

    async def touch(self, key: bytes, lifetime: Lifetime, tags: Sequence[str] = ()) -> bool:
        node = self.memory.find(key)
        held = None if node is None else node.record
        touched = isinstance(held, Entry)
        if isinstance(held, Entry):
            node = self.memory.set(key, replace(held, lifetime=lifetime))
            if node is not None:
                node.checked = self._now()
            tags = held.tags
        if self.shared is None:
            return touched
        if not touched:
            return await self.shared.touch(key, lifetime, tags)
        self._spawn(self.shared.touch(key, lifetime, tags))
        return True

    async def delete(self, *keys: bytes) -> int:
        return await self._purge(Purged.KEY, keys)

    def drop(self, *keys: bytes) -> None:
        """As `delete`, without waiting for the shared store; what it does not confirm is tried again."""
        self._purge_memory(Purged.KEY, keys)
        self._log.note(Purged.KEY, keys)
        if self.on_purge is not None:
            self.on_purge(Purged.KEY, keys)
        if self.shared is not None:
            self._spawn(self.shared.delete(*keys))

    async def purge_prefix(self, prefix: bytes) -> int:
        return await self._purge(Purged.PREFIX, (prefix,))

    async def purge_tag(self, tag: str) -> int:
        return await self._purge(Purged.TAG, (tag.encode(),))

    async def close(self) -> None:
        """Lets the writes end that are under way, but not for long."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSING)
            for task in late:
                task.cancel()
        if self.shared is not None:
            await self.shared.close()

    def stats(self) -> dict[str, object]:
        """As `GET /admin/cache/stats` shows it."""
        total = SpaceStats()
        for space in self._spaces.values():
            total.add(space.stats)
        shared = None if self.shared is None else self.shared.stats
        connected = shared is not None and shared.connected
        usage = self.memory.usage()
        return {
            "redis_connected": connected,
            **total.as_dict(),
            "memory": self.memory.as_dict(),
            "redis": None if shared is None else shared.as_dict(),
            "namespaces": {
                name: {
                    **space.stats.as_dict(),
                    "redis_connected": connected,
                    "memory_bytes": usage[name].bytes if name in usage else 0,
                    "memory_entries": usage[name].records if name in usage else 0,
                }
                for name, space in self._spaces.items()
            },
        }

    def _due(self, node: Node) -> bool:
        """Whether the shared store must be asked before the copy is used."""
        if node.checked < self._distrusted:
            return True
        return node.stamp is not None and self._now() - node.checked >= self._recheck

    async def _read(self, shared: RedisStore, key: bytes, node: Node | None) -> Record | None:
        mark = self._log.mark()
        held = None if node is None else node.record
        changed = False
        if node is not None:
            stamp, checked = node.stamp, node.checked
            # Others need not wait for the answer, and none asks again meanwhile.
            node.checked = max(self._distrusted, self._now() - self._recheck + CHECKING)
            if stamp is not None:
                current = await shared.current(key, stamp)
                if current is None:  # nobody can tell: memory goes on alone
                    return held
                if current:
                    if node.record is held:
                        node.checked = self._now()
                    return held
                changed = True
        found = await shared.read(key)
        if isinstance(found, Lost) and node is not None and not changed:
            node.checked = checked
            return held
        if not isinstance(found, Found):
            if node is not None and node.record is held and held is not None:
                self.memory.delete(key)
            return None
        if self._log.purged(key, found.record.tags, mark):
            return None
        stored = self.memory.set(key, found.record)
        if stored is not None:
            stored.stamp = found.stamp
            stored.checked = self._now()
        return found.record

    async def _write(self, shared: RedisStore, key: bytes, record: Record, since: int) -> None:
        node = self.memory.peek(key)
        if node is not None and node.record is not record:
            return  # there is a newer one by now
        stamp = await shared.write(key, record, since)
        if stamp is None:
            if shared.reaches(key) and not self._log.purged(key, record.tags, since):
                self._failed(key)
            return
        node = self.memory.peek(key)
        if node is not None and node.record is record:
            node.stamp = stamp
            node.checked = self._now()

    def _failed(self, key: bytes) -> None:
        space = self._spaces.get(key.partition(b":")[0].decode("utf-8", "replace"))
        if space is not None:
            space.stats.errors += 1

    async def _purge(self, kind: Purged, values: Sequence[bytes]) -> int:
        gone = self._purge_memory(kind, values)
        shared = self.shared
        if shared is None:
            self._log.note(kind, values)
            if self.on_purge is not None:
                self.on_purge(kind, values)
            return gone
        if kind is Purged.KEY:
            there = await shared.delete(*values)
        elif kind is Purged.PREFIX:
            there = await shared.purge_prefix(values[0])
        else:
            there = await shared.purge_tag(values[0].decode())
        # What was read from the shared store before it was gone there.
        self._purge_memory(kind, values)
        self._log.note(kind, values)
        if self.on_purge is not None:
            # Not before: from the shared store they would have it again.
            self.on_purge(kind, values)
        return max(gone, there)

    def hear(self, kind: Purged, values: Sequence[bytes]) -> None:
        """Another worker has purged: memory follows, and what is being fetched now is not kept."""
        self._purge_memory(kind, values)
        self._log.note(kind, values)

    def _purge_memory(self, kind: Purged, values: Sequence[bytes]) -> int:
        memory = self.memory
        if kind is Purged.KEY:
            return sum([memory.delete(key) for key in values])
        if kind is Purged.PREFIX:
            return sum([memory.purge_prefix(prefix) for prefix in values])
        return sum([memory.purge_tag(tag.decode("utf-8", "replace")) for tag in values])

    def _heard(self, kind: Purged, values: Sequence[bytes]) -> None:
        self._purge_memory(kind, values)

    def _gap(self) -> None:
        self._distrusted = self._now()

    def _spawn(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
