"""Time and chance. Nothing else in the product reads a clock, sleeps or draws a number."""

from __future__ import annotations

import asyncio
import random as _random
import secrets
import time
from collections.abc import Callable
from typing import Protocol

TICK = 0.010
"""Seconds between two sweeps of the timer wheel: a timer fires at most this much late."""


class Timer:
    """A callback that is due at a time. `cancel` is safe at any moment, also after it fired."""

    __slots__ = ("bucket", "callback", "fired")

    def __init__(self, callback: Callable[[], object], bucket: set[Timer]) -> None:
        self.callback = callback
        self.bucket = bucket
        self.fired = False

    def fire(self) -> None:
        self.fired = True
        self.callback()

    def cancel(self) -> None:
        self.bucket.discard(self)


class Clock(Protocol):
    """What layers know of time; tests use `ManualClock`, which only moves when told."""

    def now(self) -> float:
        """Monotonic seconds: for durations and deadlines."""
        ...

    def wall(self) -> float:
        """Unix seconds: for dates that people and HTTP see."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def arm(self, at: float, callback: Callable[[], object]) -> Timer:
        """Calls `callback` once `now()` has reached `at`, unless the timer is cancelled."""
        ...


class SystemClock:
    """The real clock, with one timer wheel for all the deadlines of a process.

    `loop.call_at` and `asyncio.timeout` cost 2 to 5 microseconds a request; a slot in a wheel
    that one periodic callback sweeps costs a tenth of that, for an accuracy of `TICK`.
    """

    __slots__ = ("_buckets", "_next", "_ticking")

    def __init__(self) -> None:
        self._buckets: dict[int, set[Timer]] = {}
        self._next = 0
        self._ticking = False

    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def arm(self, at: float, callback: Callable[[], object]) -> Timer:
        # One slot later than `at`, so that a timer never fires early.
        slot = int(at / TICK) + 1
        if not self._ticking:
            self._ticking = True
            self._next = int(time.monotonic() / TICK)
            asyncio.get_running_loop().call_later(TICK, self._sweep)
        slot = max(slot, self._next)
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._buckets[slot] = set()
        timer = Timer(callback, bucket)
        bucket.add(timer)
        return timer

    def _sweep(self) -> None:
        last = int(time.monotonic() / TICK)
        buckets = self._buckets
        if last - self._next > len(buckets):  # after a stall: look at what is there, not at each slot
            due = sorted(slot for slot in buckets if slot <= last)
        else:
            due = [slot for slot in range(self._next, last + 1) if slot in buckets]
        self._next = last + 1
        loop = asyncio.get_running_loop()
        for slot in due:
            bucket = buckets.pop(slot)
            while bucket:
                try:
                    bucket.pop().fire()
                except Exception as error:  # noqa: BLE001 - one bad callback must not stop all deadlines
                    loop.call_exception_handler({"message": "a timer's callback failed", "exception": error})
        if buckets:
            loop.call_later(TICK, self._sweep)
        else:
            self._ticking = False


class Random(Protocol):
    def random(self) -> float:
        """A number in [0, 1)."""
        ...


class SystemRandom:
    """Chance for jitter and sampling: fast, not for secrets."""

    __slots__ = ()
    random = staticmethod(_random.random)


def seeded_random(seed: int) -> Random:
    """Chance that is the same each time: for simulations."""
    return _random.Random(seed)


_PAIRS = tuple(f"{number:02x}" for number in range(256))
_PAIRS_BYTES = tuple(pair.encode() for pair in _PAIRS)
_PAIRS_ENDS = tuple(pair + b"\r\n" for pair in _PAIRS_BYTES)


class Ids:
    """Identifiers that are unique across processes: a random prefix and a counter.

    `uuid4` reads the kernel's entropy at each call (3 microseconds); one read for 2**32 ids will do,
    as these ids name things and protect nothing.
    """

    __slots__ = ("_count", "_line_page", "_page", "_prefix", "_span_page")

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._prefix = secrets.token_hex(12)
        self._count = 0
        self._turn()

    def _turn(self) -> None:
        """All but the last two digits, which are the same for 256 ids."""
        if self._count > 0xFFFFFFFF:
            self._renew()
            return
        page = f"{self._count >> 8:06x}"
        self._page = self._prefix + page
        self._line_page = b"X-Request-ID: %b" % self._page.encode()
        self._span_page = (self._prefix[:8] + page).encode()

    def request_id(self) -> str:
        """32 hexadecimal digits."""
        return self.request_line()[0]

    def request_line(self) -> tuple[str, bytes]:
        """The same, and as the line of a header."""
        self._count = count = self._count + 1
        if not count & 0xFF:
            self._turn()
        return self._page + _PAIRS[count & 0xFF], self._line_page + _PAIRS_ENDS[count & 0xFF]

    def span_id(self) -> bytes:
        """16 hexadecimal digits, never all zero (W3C Trace Context, 3.2.2.4)."""
        self._count = count = self._count + 1
        if not count & 0xFF:
            self._turn()
        return self._span_page + _PAIRS_BYTES[count & 0xFF]
