"""Dropping records from the shared store: by key, by tag, by prefix, and by all means.

A purge that the server did not confirm is owed: what it names is not read until it is paid. Owed purges
live in this process; what it owes when it ends is gone by its TTL at the latest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from sidecar.stores.found import Lost
from sidecar.stores.purge_log import Purged
from sidecar.stores.redis_wire import Answer

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.stores.redis_link import Link
    from sidecar.stores.redis_nodes import Nodes
    from sidecar.stores.stats import SharedStats

STEP: Final = 256
"""Keys that one operation handles."""
MOST_OWED: Final = 1000
"""Purges that wait for the server; more, and everything is purged when it is back."""
SETTLE_PAUSE: Final = 0.1
"""Seconds between two attempts to pay."""

# Key: the tag's set. Argument: how many of its members. Gives how many there were, and were dropped.
_PURGE_TAG: Final = b"""
local popped = redis.call('ZPOPMIN', KEYS[1], ARGV[1])
local gone = 0
for i = 1, #popped, 2 do gone = gone + redis.call('UNLINK', popped[i]) end
return {#popped / 2, gone}"""


class Owed:
    """Purges that the server has not confirmed."""

    __slots__ = ("purges",)

    def __init__(self) -> None:
        self.purges: dict[tuple[Purged, bytes], None] = {}

    def add(self, kind: Purged, values: Iterable[bytes]) -> None:
        for value in values:
            self.purges[kind, value] = None
        if len(self.purges) > MOST_OWED:
            self.purges = {(Purged.PREFIX, b""): None}

    def holds(self, key: bytes, tags: Sequence[str] = ()) -> bool:
        purges = self.purges
        if (Purged.KEY, key) in purges or any((Purged.TAG, tag.encode()) in purges for tag in tags):
            return True
        return any(kind is Purged.PREFIX and key.startswith(value) for kind, value in purges)


class Purger:
    """Purges, tells the other replicas, and remembers what is owed."""

    def __init__(
        self,
        nodes: Nodes,
        clock: Clock,
        stats: SharedStats,
        prefix: bytes,
        channel: bytes,
        message: Callable[[Purged, Sequence[bytes]], bytes],
    ) -> None:
        """`message` makes what is published on `channel`."""
        self._nodes = nodes
        self._clock = clock
        self._stats = stats
        self._prefix = prefix
        self._channel = channel
        self._message = message
        self._owed = Owed()
        self._settling: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.wait([self._settling])

    def owes(self, key: bytes, tags: Sequence[str] = ()) -> bool:
        """Whether the server may still have what was purged."""
        return bool(self._owed.purges) and self._owed.holds(key, tags)

    def tag(self, tag: bytes) -> bytes:
        """Where the keys with `tag` are."""
        return self._prefix + b"#tag:" + tag

    async def purge(self, kind: Purged, values: Sequence[bytes]) -> int:
        """Purges, tells the others, and owes what the server did not confirm."""
        gone, owed = await self._drop(kind, values)
        self._stats.deletes += gone
        if owed:
            self._owed.add(kind, owed)
            if self._settling is None or self._settling.done():
                self._settling = asyncio.create_task(self._settle())
        message = self._message(kind, values)
        self._publish(message)
        return gone

    def _publish(self, message: bytes) -> None:
        """Any node passes it on to all."""
        for link in self._nodes.links():
            if link.ready:
                link.tell(b"PUBLISH", self._channel, message)
                return

    async def _drop(self, kind: Purged, values: Sequence[bytes]) -> tuple[int, list[bytes]]:
        """How many are gone, and what was not confirmed."""
        gone = 0
        owed = []
        if kind is Purged.KEY:
            return await self._unlink(values)
        for value in values:
            steps = self._drop_tag(value) if kind is Purged.TAG else self._drop_prefix(value)
            count, done = await steps
            gone += count
            if not done:
                owed.append(value)
        return gone, owed

    async def _unlink(self, keys: Sequence[bytes], *, prefixed: bool = False) -> tuple[int, list[bytes]]:
        gone = 0
        owed: list[bytes] = []
        groups: dict[Link | None, list[bytes]] = {}
        for key in keys:
            full = key if prefixed else self._prefix + key
            groups.setdefault(self._nodes.link(full), []).append(full)
        for link, group in groups.items():
            # Commands on several keys of different slots are refused by a cluster.
            for part in ([each] for each in group) if self._nodes.clustered else (group,):
                future = None if link is None else link.call(b"UNLINK", *part)
                answer = None if future is None else await future
                if isinstance(answer, int):
                    gone += answer
                else:
                    owed += [each if prefixed else each[len(self._prefix) :] for each in part]
        return gone, owed

    async def _drop_tag(self, tag: bytes) -> tuple[int, bool]:
        name = self.tag(tag)
        gone = 0
        while True:
            if self._nodes.clustered:
                popped = await self._ask(name, b"ZPOPMIN", name, b"%d" % STEP)
                if not isinstance(popped, list):
                    return gone, False
                members = [each for each in popped[::2] if isinstance(each, bytes)]
                count, owed = await self._unlink(members, prefixed=True)
                gone += count
                if owed:
                    self._owed.add(Purged.KEY, [each[len(self._prefix) :] for each in owed])
                seen = len(members)
            else:
                match await self._ask(name, b"EVAL", _PURGE_TAG, b"1", name, b"%d" % STEP):
                    case [int() as seen, int() as count]:
                        gone += count
                    case _:
                        return gone, False
            if seen < STEP:
                return gone, True

    async def _drop_prefix(self, prefix: bytes) -> tuple[int, bool]:
        pattern = _escaped(self._prefix + prefix) + b"*"
        gone = 0
        done = bool(self._nodes.links())
        for link in self._nodes.links():
            cursor = b"0"
            while True:
                future = link.call(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % STEP)
                match None if future is None else await future:
                    case [bytes() as cursor, list() as keys]:
                        pass
                    case _:
                        done = False
                        break
                found = [key for key in keys if isinstance(key, bytes) and not self._is_ours(key)]
                count, owed = await self._unlink(found, prefixed=True) if found else (0, [])
                gone += count
                done = done and not owed
                if cursor == b"0":
                    break
        return gone, done

    def _is_ours(self, full: bytes) -> bool:
        """A lock or a tag's set, not a record."""
        return full.startswith(self._prefix + b"#")

    async def _settle(self) -> None:
        """Pays what is owed, as soon as the server answers."""
        while self._owed.purges:
            await self._clock.sleep(SETTLE_PAUSE)
            if not any(link.ready for link in self._nodes.links()):
                continue
            for kind, value in list(self._owed.purges):
                gone, owed = await self._drop(kind, (value,))
                self._stats.deletes += gone
                if owed:
                    break
                self._owed.purges.pop((kind, value), None)
                message = self._message(kind, (value,))
                self._publish(message)

    async def _ask(self, full: bytes, *parts: bytes) -> Answer:
        link = self._nodes.link(full)
        future = None if link is None else link.call(*parts)
        return Lost.RESET if future is None else await future


def _escaped(text: bytes) -> bytes:
    """As a pattern of SCAN that means itself."""
    return b"".join(b"\\" + bytes((each,)) if each in b"\\*?[]^" else bytes((each,)) for each in text)
