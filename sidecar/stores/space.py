"""The store as one namespace of the cache sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidecar.stores.entry import Entry
from sidecar.stores.stats import SpaceStats

if TYPE_CHECKING:
    from sidecar.decisions.freshness import Lifetime
    from sidecar.stores.entry import Record
    from sidecar.stores.tiered import Tiered


class Space:
    """A `Store` that counts. A response found is a hit; variants found are on the way to one or the other."""

    __slots__ = ("_tiered", "name", "stats")

    def __init__(self, tiered: Tiered, name: str) -> None:
        self._tiered = tiered
        self.name = name
        self.stats = SpaceStats()

    def look(self, key: bytes) -> Record | None:
        """See `Tiered.look`. None is no miss yet."""
        record = self._tiered.look(key)
        if type(record) is Entry:
            self.stats.hits += 1
        return record

    async def get(self, key: bytes) -> Record | None:
        record = await self._tiered.get(key)
        if record is None:
            self.stats.misses += 1
        elif type(record) is Entry:
            self.stats.hits += 1
        return record

    async def set(self, key: bytes, record: Record, since: int | None = None) -> bool:
        return self.put(key, record, since)

    def put(self, key: bytes, record: Record, since: int | None = None) -> bool:
        """See `Tiered.put`."""
        stored = self._tiered.put(key, record, since)
        if stored and type(record) is Entry:
            self.stats.sets += 1
        return stored

    async def touch(self, key: bytes, lifetime: Lifetime, tags: Sequence[str] = ()) -> bool:
        return await self._tiered.touch(key, lifetime, tags)

    async def delete(self, *keys: bytes) -> int:
        self.stats.deletes += len(keys)
        return await self._tiered.delete(*keys)

    def drop(self, *keys: bytes) -> None:
        """See `Tiered.drop`."""
        self.stats.deletes += len(keys)
        self._tiered.drop(*keys)

    async def purge_prefix(self, prefix: bytes) -> int:
        return await self._tiered.purge_prefix(prefix)

    async def purge_tag(self, tag: str) -> int:
        return await self._tiered.purge_tag(tag)

    def mark(self) -> int:
        return self._tiered.mark()

    async def close(self) -> None:
        """Nothing of its own is open."""
