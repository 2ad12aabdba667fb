"""The second level of the cache: Redis or Valkey, shared by replicas. It can only help.

No method raises or waits longer than `redis_link.BOUND` for an answer (a purge by tag or prefix is many
operations, each bounded). A look-up without an answer is a miss; a record not written is not missed. Only
a purge must not be lost: what could not be purged is owed, is not read meanwhile, and is paid when the
server answers again.

Keys: `{prefix}{key}` for records, `{prefix}#tag:{tag}` for sorted sets of keys by expiry,
`{prefix}#lock:{key}` for fills, and the channel `{prefix}#purges`. Every key has a TTL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from sidecar.stores import codec
from sidecar.stores.entry import Entry, Record, Variants
from sidecar.stores.found import Found, Lost
from sidecar.stores.purge_log import Purged, PurgeLog
from sidecar.stores.redis_channel import Subscription
from sidecar.stores.redis_locks import LOCK_TIME, FillLocks
from sidecar.stores.redis_purges import Purger
from sidecar.stores.redis_wire import Answer
from sidecar.stores.resp import ReplyError

if TYPE_CHECKING:
    from sidecar.clock import Clock, Ids
    from sidecar.decisions.freshness import Lifetime
    from sidecar.headers import Lines
    from sidecar.stores.redis_server import RedisServer

PREFIX: Final = b"nextvision:"
OFF_LOOP: Final = 64 * 1024
"""Bytes of a value above which it is encoded and decoded in a thread: zlib takes 1 ms for 100 KiB."""
FULL_PAUSE: Final = 1.0
"""Seconds without writes after the server said that it is out of memory."""
MOST_MERGES: Final = 4
"""Attempts to write variants that another replica writes as well."""
MOST_PX: Final = 2**40

# Key: a tag's set. Arguments: the record's key, milliseconds to live, Unix milliseconds.
_JOIN: Final = b"""
redis.call('ZADD', KEYS[1], ARGV[3] + ARGV[2], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])"""
# Keys: the record, then its tags' sets. Arguments: value, milliseconds to live, Unix milliseconds.
# It begins with what a server out of memory refuses: after a first write, it would let the rest through.
_STORE_TAGGED: Final = b"""
local ends = ARGV[3] + ARGV[2]
for i = 2, #KEYS do
  redis.call('ZADD', KEYS[i], ends, KEYS[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', ARGV[3])
  if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
end
return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])"""
_STORE_IF: Final = b"""
local there = redis.call('GET', KEYS[1]) or ''
if there ~= ARGV[1] then return there end
return redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])"""
# Keys: the record, then its tags' sets. Arguments: the signature, where the lifetime is, the new one,
# milliseconds to live, Unix milliseconds.
_TOUCH: Final = b"""
local head = redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1)
if #head < #ARGV[1] or head:byte(4) >= 2 then return 0 end
for i = 1, #ARGV[1] do
  if i ~= 4 and head:byte(i) ~= ARGV[1]:byte(i) then return 0 end
end
redis.call('SETRANGE', KEYS[1], ARGV[2], ARGV[3])
for i = 2, #KEYS do
  redis.call('ZADD', KEYS[i], ARGV[5] + ARGV[4], KEYS[1])
  if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[4]) then redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
end
return redis.call('PEXPIRE', KEYS[1], ARGV[4])"""


class RedisStore:
    """A `Store`, and what a level above it needs to keep copies: `read`, `current`, `on_purge`."""

    def __init__(
        self,
        server: RedisServer,
        clock: Clock,
        ids: Ids,
        lines: Lines,
        *,
        prefix: bytes = PREFIX,
        lock_time: float = LOCK_TIME,
    ) -> None:
        """`server` is started and closed by its owner. `lines` is the memo that header lines come from;
        `lock_time` is seconds.
        """
        self._clock = clock
        self._lines = lines
        self._prefix = prefix
        self._write = int(ids.request_id()[-16:], 16)
        self.server = server
        self.stats = server.stats
        self.log = PurgeLog()
        self._nodes = server.nodes
        self.locks = FillLocks(self._nodes, clock, ids, prefix, lock_time)
        self._channel = prefix + b"#purges"
        self._subscription = Subscription(
            server.target,
            self._nodes.locate,
            clock,
            self._channel,
            ids.request_id().encode(),
            self._heard,
            self._gap,
        )
        self._purger = Purger(
            self._nodes, clock, self.stats, prefix, self._channel, self._subscription.message
        )
        self._full_until = 0.0
        self._on_purge: Callable[[Purged, Sequence[bytes]], None] | None = None
        self._on_gap: Callable[[], None] | None = None

    def start(self) -> None:
        """Begins to listen for purges, in the background; all methods work before that, too."""
        self._subscription.start()

    async def close(self) -> None:
        await self._purger.close()
        await self._subscription.close()

    @property
    def ready(self) -> bool:
        """The server answers; of a cluster, every primary."""
        return self._nodes.ready

    def reaches(self, key: bytes) -> bool:
        """An operation on `key` has a chance now."""
        link = self._nodes.link(self._prefix + key)
        return link is not None and link.ready

    def owes(self, key: bytes) -> bool:
        """A purge of `key` waits for the server."""
        return self._purger.owes(key)

    @property
    def subscribed(self) -> bool:
        """Purges of other replicas are heard."""
        return self._subscription.active

    def on_purge(self, purged: Callable[[Purged, Sequence[bytes]], None], gap: Callable[[], None]) -> None:
        """`purged` hears what other replicas purged; `gap`, that some of it may not have been heard."""
        self._on_purge, self._on_gap = purged, gap

    def mark(self) -> int:
        return self.log.mark()

    async def get(self, key: bytes) -> Record | None:
        found = await self.read(key)
        return found.record if isinstance(found, Found) else None

    async def read(self, key: bytes) -> Found | Lost | None:
        """None when it is not there; `Lost` when nobody can tell."""
        raw = await self._ask(self._prefix + key, b"GET", self._prefix + key)
        if type(raw) is not bytes:
            if raw is not None:
                return Lost.RESET
            self.stats.misses += 1
            return None
        if len(raw) > OFF_LOOP:
            record = await asyncio.to_thread(codec.decode, raw, self._lines)
        else:
            record = codec.decode(raw, self._lines)
        if record is None:
            self.stats.damaged += 1
        elif record.kept_until > self._clock.wall() and not self._purger.owes(key, record.tags):
            self.stats.hits += 1
            return Found(record, raw[: codec.STAMP])
        self.stats.misses += 1
        return None

    async def current(self, key: bytes, stamp: bytes) -> bool | None:
        """Whether the server still has what `stamp` is of; None when nobody can tell."""
        full = self._prefix + key
        answer = await self._ask(full, b"GETRANGE", full, b"0", b"%d" % (codec.STAMP - 1))
        if not isinstance(answer, bytes):
            return None
        return answer == stamp and not self._purger.owes(key)

    async def set(self, key: bytes, record: Record, since: int | None = None) -> bool:
        return await self.write(key, record, since) is not None

    async def write(self, key: bytes, record: Record, since: int | None = None) -> bytes | None:
        """As `set`; gives the stamp of what was written."""
        if since is None:
            since = self.log.mark()
        if not self.reaches(key) or self._clock.now() < self._full_until:
            self.stats.skipped += 1
            return None
        if isinstance(record, Variants):
            return await self._merge(key, record, since)
        raw = await self._encode(record)
        px = self._milliseconds(record)
        if raw is None or not px or self.log.purged(key, record.tags, since):
            return None
        return raw[: codec.STAMP] if self._stored(await self._put(key, raw, px, record)) else None

    async def touch(self, key: bytes, lifetime: Lifetime, tags: Sequence[str] = ()) -> bool:
        full = self._prefix + key
        px = min(int((lifetime.kept_until - self._clock.wall()) * 1000), MOST_PX)
        if px <= 0:
            return False
        sets = [self._purger.tag(tag.encode()) for tag in tags]
        if self._nodes.clustered and sets:
            if not await self._join(full, sets, px):
                return False
            sets = []
        answer = await self._ask(
            full,
            b"EVAL",
            _TOUCH,
            b"%d" % (1 + len(sets)),
            full,
            *sets,
            codec.SIGNATURE,
            b"%d" % codec.LIFETIME_AT,
            codec.lifetime_block(lifetime),
            b"%d" % px,
            b"%d" % (self._clock.wall() * 1000),
        )
        return answer == 1

    async def delete(self, *keys: bytes) -> int:
        self.log.note(Purged.KEY, keys)
        return await self._purger.purge(Purged.KEY, keys)

    async def purge_prefix(self, prefix: bytes) -> int:
        self.log.note(Purged.PREFIX, (prefix,))
        return await self._purger.purge(Purged.PREFIX, (prefix,))

    async def purge_tag(self, tag: str) -> int:
        self.log.note(Purged.TAG, (tag.encode(),))
        return await self._purger.purge(Purged.TAG, (tag.encode(),))

    async def _ask(self, full: bytes, *parts: bytes) -> Answer:
        link = self._nodes.link(full)
        future = None if link is None else link.call(*parts)
        return Lost.RESET if future is None else await future

    async def _encode(self, record: Record) -> bytes | None:
        self._write = (self._write + 1) & 0xFFFF_FFFF
        try:
            if record.size > OFF_LOOP:
                return await asyncio.to_thread(codec.encode, record, self._clock.wall(), self._write)
            return codec.encode(record, self._clock.wall(), self._write)
        except ValueError:
            self.stats.errors["encoding"] += 1
            return None

    def _milliseconds(self, record: Record) -> int:
        """To live; 0 when its time is over."""
        return max(0, min(int((record.kept_until - self._clock.wall()) * 1000), MOST_PX))

    def _stored(self, answer: Answer) -> bool:
        if answer == b"OK":
            self.stats.sets += 1
            return True
        if isinstance(answer, ReplyError) and answer.kind == "OOM":
            self._full_until = self._clock.now() + FULL_PAUSE
        return False

    async def _put(self, key: bytes, raw: bytes, px: int, record: Entry) -> Answer:
        full = self._prefix + key
        if not record.tags:
            return await self._ask(full, b"SET", full, raw, b"PX", b"%d" % px)
        tags = [self._purger.tag(tag.encode()) for tag in record.tags]
        if not self._nodes.clustered:
            count, now = b"%d" % (1 + len(tags)), b"%d" % (self._clock.wall() * 1000)
            return await self._ask(full, b"EVAL", _STORE_TAGGED, count, full, *tags, raw, b"%d" % px, now)
        if not await self._join(full, tags, px):
            return Lost.RESET
        return await self._ask(full, b"SET", full, raw, b"PX", b"%d" % px)

    async def _join(self, full: bytes, tags: Sequence[bytes], px: int) -> bool:
        """In a cluster: puts a key into its tags' sets, before it is written.

        On several nodes nothing is atomic, and a key that is in a set for nothing does no harm.
        """
        now = b"%d" % (self._clock.wall() * 1000)
        for tag in tags:
            if not isinstance(await self._ask(tag, b"EVAL", _JOIN, b"1", tag, full, b"%d" % px, now), int):
                return False
        return True

    async def _merge(self, key: bytes, variants: Variants, since: int) -> bytes | None:
        """Adds `variants` to what the server has, unless another replica does so in between: then again."""
        full = self._prefix + key
        there = b""
        for _ in range(MOST_MERGES):
            raw = await self._encode(variants)
            px = self._milliseconds(variants)
            if raw is None or not px or self.log.purged(key, (), since):
                return None
            answer = await self._ask(full, b"EVAL", _STORE_IF, b"1", full, there, raw, b"%d" % px)
            if self._stored(answer):
                return raw[: codec.STAMP]
            if not isinstance(answer, bytes):
                return None
            there = answer
            other = codec.decode(there, self._lines)
            if isinstance(other, Variants):
                variants = variants.merged(other)
        return None

    def _heard(self, kind: Purged, values: Sequence[bytes]) -> None:
        self.log.note(kind, values)
        if self._on_purge is not None:
            self._on_purge(kind, values)

    def _gap(self) -> None:
        if self._on_gap is not None:
            self._on_gap()
