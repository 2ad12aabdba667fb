"""Waiting for a permit: a bounded queue with a deadline, in front of a concurrency limit.

Three classes, the higher first, and order of arrival within each. Who cannot make it does not wait: not one
whose turn will not come in time as the queue moves now, and not one that would have too little time left
for the work itself. (First come, last served, as some do under overload, would only choose other victims:
those that are let in to wait are served anyway.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from sidecar.decisions.priority import Priority
from sidecar.decisions.turns import Turns
from sidecar.errors import LimitExceeded

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.decisions.concurrency import Limit

SOON: Final = 1.0
"""Seconds to come back after where nothing is known of the queue."""
LATE: Final = 30.0
"""Seconds to come back after at most."""

_CLASSES: Final = tuple(Priority)


class _Waiter:
    """One that waits; `future` gets True when it has its permit, False when it is sent away."""

    __slots__ = ("future", "priority", "queued", "until", "why")

    def __init__(self, future: asyncio.Future[bool], priority: Priority, until: float | None) -> None:
        self.future = future
        self.priority = priority
        self.until = until
        self.queued = True
        self.why = "the wait in the queue was too long"


class Gate:
    """A limit, and those who wait for it, at most `patience` seconds each (None: nobody waits)."""

    __slots__ = ("_clock", "_most", "_patience", "_queues", "_turns", "limit", "waiting")

    def __init__(self, limit: Limit, patience: float | None, most: int, clock: Clock) -> None:
        """At most `most` wait at a time."""
        self.limit = limit
        self.waiting = 0
        """How many wait."""
        self._patience = patience
        self._most = most
        self._clock = clock
        self._turns = Turns()
        self._queues: tuple[deque[_Waiter], ...] = tuple(deque() for _ in _CLASSES)

    async def enter(self, priority: Priority, until: float | None) -> bool:
        """Takes a permit; `leave` gives it back. `until`: the `Clock.now()` past which nobody wants it.

        True after a wait, False where there was none. Raises `LimitExceeded`.
        """
        ahead = sum(len(self._queues[each]) for each in range(priority + 1)) if self.waiting else 0
        if not ahead and self.limit.try_acquire_as(priority):
            return False
        if self._patience is None:
            raise LimitExceeded(retry_after=SOON)
        now = self._clock.now()
        turns = self._turns
        latest = now + self._patience
        if until is not None and until - turns.service < latest:
            latest = until - turns.service
        if now + turns.wait(ahead) >= latest:
            raise LimitExceeded("its turn would come too late", retry_after=self._retry_after())
        if self.waiting >= self._most and not self._displace(priority):
            raise LimitExceeded("the queue is full", retry_after=self._retry_after())
        await self._wait(priority, latest, until)
        return True

    def leave(self) -> None:
        """Gives a permit back, and lets the next one in."""
        self.limit.release()
        if self.waiting:
            self.admit()

    def admit(self) -> None:
        """Lets in whom the limit has room for: after it may have grown, too."""
        now = self._clock.now()
        for queue in self._queues:
            while queue:
                waiter = queue[0]
                if waiter.future.done():  # its client left, and its task does not know yet
                    self._end(waiter, admitted=False)
                elif waiter.until is not None and waiter.until - now < self._turns.service:
                    waiter.why = "the deadline leaves too little time"
                    self._end(waiter, admitted=False)
                elif self.limit.try_acquire_as(waiter.priority):
                    self._turns.given(now)
                    self._end(waiter, admitted=True)
                else:
                    return  # a lower class may have no permit that a higher one may not

    def served(self, seconds: float) -> None:
        """An attempt was answered after `seconds`: to be told while somebody waits."""
        self._turns.served(seconds)

    async def _wait(self, priority: Priority, latest: float, until: float | None) -> None:
        waiter = _Waiter(asyncio.get_running_loop().create_future(), priority, until)
        self._queues[priority].append(waiter)
        self.waiting += 1
        timer = self._clock.arm(latest, lambda: self._end(waiter, admitted=False))
        try:
            if not await waiter.future:
                raise LimitExceeded(waiter.why, retry_after=self._retry_after())
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.result():
                self.leave()  # the permit came in the same moment
            raise
        finally:
            timer.cancel()
            self._end(waiter, admitted=False)

    def _end(self, waiter: _Waiter, *, admitted: bool) -> None:
        """Every way out of the queue; the second time it does nothing."""
        if not waiter.queued:
            return
        waiter.queued = False
        self._queues[waiter.priority].remove(waiter)  # mostly the first
        self.waiting -= 1
        if not self.waiting:
            self._turns.rest()
        if not waiter.future.done():
            waiter.future.set_result(admitted)

    def _displace(self, priority: Priority) -> bool:
        """Sends away the last that came of the lowest class, if that is lower than `priority`."""
        for each in range(len(_CLASSES) - 1, priority, -1):
            if self._queues[each]:
                waiter = self._queues[each][-1]
                waiter.why = "its place in the queue went to a request of a higher class"
                self._end(waiter, admitted=False)
                return True
        return False

    def _retry_after(self) -> float:
        """Seconds until all who wait now have had their turn."""
        return min(LATE, max(SOON, self._turns.wait(self.waiting)))
