"""The first level of the cache: memory of this process, bounded by bytes.

Eviction is S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction",
SOSP 2023). New records enter a small queue. One that is asked for again there moves to the main queue,
which gives those in use another round; the others leave early, so a scan passes through the small queue
and evicts nothing that is in use. What left the small queue is remembered as a ghost: when it comes
back, it enters the main queue at once. All of it is O(1): no record moves on a hit.

`python -m bench.zipf` compares its hit ratio with LRU's and W-TinyLFU's.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, Final

from sidecar.stores.entry import OVERHEAD
from sidecar.stores.stats import MemoryStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.clock import Clock
    from sidecar.stores.entry import Record

SMALL: Final = 0.1
"""Share of the small queue (the paper's)."""
MOST_USES: Final = 3
"""Uses are counted up to here: so many rounds in the main queue does a record get at most."""
PROMOTED: Final = 1
"""Uses in the small queue that earn a place in the main queue."""
LARGEST: Final = 0.25
"""Share of the whole that one record may take."""
_MASK: Final = 0xFFFF_FFFF


class Usage:
    """What one namespace takes."""

    __slots__ = ("bytes", "records")

    def __init__(self) -> None:
        self.bytes = 0
        self.records = 0


class Node:
    """A record in its place. Dead when `record` is None: its queue has still to pass it."""

    __slots__ = ("checked", "key", "main", "record", "size", "stamp", "until", "usage", "uses")

    def __init__(self, key: bytes, usage: Usage) -> None:
        self.key = key
        self.usage = usage
        self.record: Record | None = None
        self.size = 0
        self.uses = 0
        self.until = 0.0
        self.main = False
        self.stamp: bytes | None = None
        """What the shared store has, when this is a copy of it."""
        self.checked = 0.0
        """Monotonic seconds: when it last was known to be what the shared store has, or was stored."""


class Ghosts:
    """Which keys left the small queue lately: fingerprints in a table that never grows, newest wins.

    A key is a ghost while fewer than `span` others left after it.
    """

    __slots__ = ("_count", "_marks", "_prints", "_slots")

    SLOT: Final = 8
    """Bytes of a slot."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._prints = array("I", bytes(4 * slots))
        self._marks = array("I", bytes(4 * slots))
        self._count = 0

    def add(self, key: bytes) -> None:
        digest = hash(key)
        at = digest % self._slots
        self._prints[at] = (digest >> 24) & _MASK
        self._count = self._marks[at] = (self._count % _MASK) + 1

    def take(self, key: bytes, span: int) -> bool:
        digest = hash(key)
        at = digest % self._slots
        mark = self._marks[at]
        if not mark or self._prints[at] != (digest >> 24) & _MASK:
            return False
        self._marks[at] = 0
        return (self._count - mark) % _MASK < span


class Memory:
    """Records by key, never more than `capacity` bytes of them, their objects and the ghosts included.

    Synchronous: a look-up is half a microsecond.
    """

    __slots__ = (
        "_ghosts",
        "_main",
        "_main_dead",
        "_nodes",
        "_small",
        "_small_bytes",
        "_small_dead",
        "_small_share",
        "_tags",
        "_usage",
        "_wall",
        "bytes",
        "capacity",
        "largest",
        "stats",
    )

    def __init__(self, capacity: int, clock: Clock) -> None:
        """`capacity` in bytes."""
        self.capacity = capacity
        self.largest = int(capacity * LARGEST)
        """Bytes of a record above which it is refused."""
        self._wall: Callable[[], float] = clock.wall
        self._nodes: dict[bytes, Node] = {}
        self._small: deque[Node] = deque()
        self._main: deque[Node] = deque()
        self._small_dead = 0
        self._main_dead = 0
        self._small_bytes = 0
        self._small_share = int(capacity * SMALL)
        # Twice as many as there may be records of 1 KiB, so that few of them want the same slot.
        slots = max(64, 2 * capacity // (OVERHEAD + 1024))
        self._ghosts = Ghosts(slots)
        self._tags: dict[str, set[Node]] = {}
        self._usage: dict[bytes, Usage] = {}
        self.bytes = Ghosts.SLOT * slots
        """That count towards the capacity."""
        self.stats = MemoryStats()

    def __len__(self) -> int:
        return len(self._nodes)

    def usage(self) -> dict[str, Usage]:
        """By namespace."""
        return {name.decode("utf-8", "replace"): usage for name, usage in self._usage.items()}

    def as_dict(self) -> dict[str, int]:
        """For the admin listener."""
        return {
            "bytes": self.bytes,
            "capacity": self.capacity,
            "entries": len(self._nodes),
            "evictions": self.stats.evictions,
            "expired": self.stats.expired,
            "refused": self.stats.refused,
        }

    def get(self, key: bytes) -> Record | None:
        node = self.find(key)
        return None if node is None else node.record

    def find(self, key: bytes) -> Node | None:
        """The node of `key`, alive and in time; counts as a use."""
        node = self._nodes.get(key)
        if node is None:
            return None
        if node.until <= self._wall():
            self.stats.expired += 1
            self._drop(node)
            return None
        if node.uses < MOST_USES:
            node.uses += 1
        return node

    def peek(self, key: bytes) -> Node | None:
        """The node of `key`, if it is alive; no use is counted."""
        return self._nodes.get(key)

    def set(self, key: bytes, record: Record) -> Node | None:
        """Stores it and makes room; None when it is too large or past its time (then `key` is gone)."""
        old = self._nodes.get(key)
        size = record.size + len(key)
        until = record.kept_until
        if size > self.largest or until <= self._wall():
            if size > self.largest:
                self.stats.refused += 1
            if old is not None:
                self._drop(old)
            return None
        self.stats.sets += 1
        if old is None:
            node = self._admit(key)
        else:
            node = old
            self._clear(node)
        node.record = record
        node.until = until
        node.stamp = None
        node.size = size
        self.bytes += size
        node.usage.bytes += size
        node.usage.records += 1
        if not node.main:
            self._small_bytes += size
        for tag in record.tags:
            holders = self._tags.get(tag)
            if holders is None:
                self._tags[tag] = {node}
            else:
                holders.add(node)
        if self.bytes > self.capacity:
            self._make_room()
        return node if node.record is record else None

    def delete(self, key: bytes) -> bool:
        node = self._nodes.get(key)
        if node is None:
            return False
        self._drop(node)
        return True

    def purge_tag(self, tag: str) -> int:
        nodes = list(self._tags.get(tag, ()))
        for node in nodes:
            self._drop(node)
        return len(nodes)

    def purge_prefix(self, prefix: bytes) -> int:
        """Looks at every key: 0.1 µs each."""
        keys = [key for key in self._nodes if key.startswith(prefix)]
        for key in keys:
            self._drop(self._nodes[key])
        return len(keys)

    def _admit(self, key: bytes) -> Node:
        """A node for a new key, at the end of the queue that it belongs in."""
        name = key.partition(b":")[0]
        usage = self._usage.get(name)
        if usage is None:
            usage = self._usage[name] = Usage()
        node = self._nodes[key] = Node(key, usage)
        if self._ghosts.take(key, len(self._nodes)):
            node.main = True
            self._main.append(node)
        else:
            self._small.append(node)
        return node

    def _clear(self, node: Node) -> None:
        """Takes the record out of the books."""
        record = node.record
        size = node.size
        self.bytes -= size
        node.usage.bytes -= size
        node.usage.records -= 1
        if not node.main:
            self._small_bytes -= size
        if record is not None and record.tags:
            for tag in record.tags:
                holders = self._tags.get(tag)
                if holders is not None:
                    holders.discard(node)
                    if not holders:
                        del self._tags[tag]
        node.record = None

    def _forget(self, node: Node) -> None:
        """Of a node that has left its queue."""
        self._clear(node)
        del self._nodes[node.key]
        if not node.usage.records:
            self._usage.pop(node.key.partition(b":")[0], None)

    def _drop(self, node: Node) -> None:
        """Of a node in its queue, which passes it later; a queue that is mostly dead is swept."""
        self._forget(node)
        if node.main:
            self._main_dead += 1
            if self._main_dead > len(self._main) // 2 + 32:
                self._main = deque(each for each in self._main if each.record is not None)
                self._main_dead = 0
        else:
            self._small_dead += 1
            if self._small_dead > len(self._small) // 2 + 32:
                self._small = deque(each for each in self._small if each.record is not None)
                self._small_dead = 0

    def _make_room(self) -> None:
        now = self._wall()
        while self.bytes > self.capacity and self._nodes:
            if self._small_bytes > self._small_share or len(self._main) == self._main_dead:
                self._pass_small(now)
            else:
                self._pass_main(now)

    def _pass_small(self, now: float) -> None:
        """The oldest of the small queue leaves it, for the main queue or for good."""
        node = self._small.popleft()
        if node.record is None:
            self._small_dead -= 1
        elif node.until <= now:
            self.stats.expired += 1
            self._forget(node)
        elif node.uses >= PROMOTED:
            node.main = True
            node.uses = 0
            self._small_bytes -= node.size
            self._main.append(node)
        else:
            self._ghosts.add(node.key)
            self.stats.evictions += 1
            self._forget(node)

    def _pass_main(self, now: float) -> None:
        """The oldest of the main queue gets another round, if it was used, or leaves."""
        node = self._main.popleft()
        if node.record is None:
            self._main_dead -= 1
        elif node.until <= now:
            self.stats.expired += 1
            self._forget(node)
        elif node.uses:
            node.uses -= 1
            self._main.append(node)
        else:
            self.stats.evictions += 1
            self._forget(node)
