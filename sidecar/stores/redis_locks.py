"""One fill for all replicas: a short lock on a key, in the shared store.

`SET NX PX` with a token of its own; prolonged while the fill goes on; released by whoever still has the
token. A holder that dies keeps others waiting for `LOCK_TIME` at most. Where the shared store does not
answer, everybody may fill.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.stores.found import Lost

if TYPE_CHECKING:
    from sidecar.clock import Clock, Ids, Timer
    from sidecar.stores.redis_nodes import Nodes

LOCK_TIME: Final = 2.0
"""Seconds that a lock outlives its holder at most."""
POLL: Final = (0.005, 0.050)
"""Seconds between two looks at a lock: at first, and at most."""
POLL_GROWTH: Final = 1.5

_GONE: Final = -2
"""What PTTL says of a key that is not there."""
_RELEASE: Final = b"if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call('DEL',KEYS[1]) end return 0"
_PROLONG: Final = (
    b"if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call('PEXPIRE',KEYS[1],ARGV[2]) end return 0"
)


class Claim:
    """Leave to fill a key. `release` it when the fill has ended, however it ended, after storing."""

    __slots__ = ("_lock", "_locks", "_timer", "_token", "_until", "shared")

    def __init__(self, locks: FillLocks, lock: bytes, token: bytes, until: float, *, shared: bool) -> None:
        self._locks = locks
        self._lock = lock
        self._token = token
        self._until = until
        self._timer: Timer | None = None
        self.shared = shared
        """Other replicas know of it. If not, they may fill the same key."""
        if shared:
            self._prolong_later()

    def release(self) -> None:
        """Does not wait; a second time does nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.shared:
            self.shared = False
            self._locks.send(self._lock, _RELEASE, b"1", self._lock, self._token)

    def _prolong_later(self) -> None:
        clock = self._locks.clock
        at = clock.now() + self._locks.lock_time / 3
        if at < self._until:
            self._timer = clock.arm(at, self._prolong)

    def _prolong(self) -> None:
        time = b"%d" % int(self._locks.lock_time * 1000)
        self._locks.send(self._lock, _PROLONG, b"1", self._lock, self._token, time)
        self._prolong_later()


class FillLocks:
    """Locks by key. Never raises, never waits on a store that is gone."""

    def __init__(
        self, nodes: Nodes, clock: Clock, ids: Ids, prefix: bytes, lock_time: float = LOCK_TIME
    ) -> None:
        self._nodes = nodes
        self._ids = ids
        self._prefix = prefix + b"#lock:"
        self.clock = clock
        self.lock_time = lock_time

    async def claim(self, key: bytes, most: float) -> Claim | None:
        """Leave to fill `key` within `most` seconds; None while another replica does."""
        lock = self._prefix + key
        token = self._ids.request_id().encode()
        until = self.clock.now() + most
        link = self._nodes.link(lock)
        time = b"%d" % int(min(self.lock_time, most) * 1000 + 1)
        future = None if link is None else link.call(b"SET", lock, token, b"NX", b"PX", time)
        answer = Lost.RESET if future is None else await future
        if answer is None:
            return None
        if answer is Lost.TIMEOUT:
            # It may get there yet, and nobody would hold it.
            self.send(lock, _RELEASE, b"1", lock, token)
        return Claim(self, lock, token, until, shared=answer == b"OK")

    async def wait(self, key: bytes, most: float) -> bool:
        """Until no replica fills `key`: then look again. False after `most` seconds, or when nobody can
        tell: then go on alone.
        """
        lock = self._prefix + key
        end = self.clock.now() + most
        longest = self.lock_time * 1000 + 1
        pause = POLL[0]
        while (left := end - self.clock.now()) > 0:
            await self.clock.sleep(min(pause, left))
            pause = min(pause * POLL_GROWTH, POLL[1])
            link = self._nodes.link(lock)
            future = None if link is None else link.call(b"PTTL", lock)
            answer = None if future is None else await future
            if answer == _GONE:
                return True
            # A key without an end, or with a far one, is no lock of ours: nobody would release it.
            if not isinstance(answer, int) or not 0 <= answer <= longest:
                return False
        return False

    def send(self, lock: bytes, *script: bytes) -> None:
        """Runs a script on a lock, and does not care what comes of it: locks end by themselves."""
        link = self._nodes.link(lock)
        if link is not None:
            link.tell(b"EVAL", *script)
