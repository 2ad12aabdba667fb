"""Waiting for a turn at a provider: interactive requests before batch requests, each class by age."""

from __future__ import annotations

import asyncio
import heapq
from itertools import chain
from typing import TYPE_CHECKING, Final

from sidecar.decisions.quota_window import NEVER
from sidecar.errors import PaceExceeded, QuotaHeld

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.clock import Clock, Timer
    from sidecar.decisions.pacer import Mark, Pacer

SHARE: Final = 10
"""Of so many turns that are waited for one is a batch request's, however many others wait."""
SPARE: Final = 64
"""Entries of a queue that may be those of requests that are gone."""
LEAST_WAIT: Final = 0.001
"""Seconds: no refusal says "in no time"."""


class Waiter:
    """One who waits. `until`: nobody waits past this `Clock.now()`."""

    __slots__ = ("attempts", "future", "low", "started", "until")

    def __init__(self, *, low: bool, started: float, attempts: int, until: float) -> None:
        self.future: asyncio.Future[tuple[Mark, tuple[float, float]]] = (
            asyncio.get_running_loop().create_future()
        )
        self.low = low
        self.started = started
        self.attempts = attempts
        self.until = until


Queue = list[tuple[float, int, Waiter]]
"""A heap, by the time when the client's request began: who comes back after a refusal is not last again."""


class Turns:
    """A pacer, and those who wait for it. Whatever the pacer is told while somebody waits: then `serve`."""

    def __init__(self, pacer: Pacer, clock: Clock) -> None:
        self.pacer = pacer
        self.waiting = 0
        self.waiting_low = 0
        """Batch requests among them."""
        self._clock = clock
        self._queue: Queue = []
        self._batch: Queue = []
        self._made = 0
        self._since_low = 0
        """Turns that others had while batch requests were waiting."""
        self._wake: Timer | None = None
        self._wake_at = NEVER

    async def turn(self, now: float, *, low: bool, started: float, attempts: int, until: float) -> Mark:
        """Waits for a turn, at most until `until`.

        `started`: when the client's request began; `attempts`: how many it has had. Raises PaceExceeded,
        at once where the turn would come too late, and QuotaHeld.
        """
        pacer = self.pacer
        if pacer.hold.active:
            left = pacer.hold.left(now)
            if left:
                raise QuotaHeld(retry_after=left)
            return pacer.take(now, low=low)
        ahead = self.waiting if low else self.waiting - self.waiting_low
        expected = pacer.expected(now, low=low, ahead=ahead)
        if not ahead and expected <= now:
            return pacer.take(now, low=low)
        if until <= now or until < expected != NEVER:
            raise too_late(expected, now)
        return await self._wait(Waiter(low=low, started=started, attempts=attempts, until=until))

    async def _wait(self, waiter: Waiter) -> Mark:
        self._push(waiter)
        timer = self._clock.arm(waiter.until, lambda: self._expire(waiter))
        self.serve()
        try:
            mark, _ = await waiter.future
        except asyncio.CancelledError:
            self._leave(waiter)
            raise
        finally:
            timer.cancel()
        return mark

    def _push(self, waiter: Waiter) -> None:
        queue, live = (
            (self._batch, self.waiting_low) if waiter.low else (self._queue, self.waiting - self.waiting_low)
        )
        if len(queue) > 2 * live + SPARE:  # those who left are still in it
            queue[:] = [entry for entry in queue if not entry[2].future.done()]
            heapq.heapify(queue)
        self._made += 1
        heapq.heappush(queue, (waiter.started, self._made, waiter))
        self.waiting += 1
        self.waiting_low += waiter.low

    def _settled(self, waiter: Waiter) -> None:
        self.waiting -= 1
        self.waiting_low -= waiter.low

    def _refuse(self, waiter: Waiter, error: PaceExceeded | QuotaHeld) -> None:
        self._settled(waiter)
        waiter.future.set_exception(error)

    def _expire(self, waiter: Waiter) -> None:
        if not waiter.future.done():
            self.serve()  # the turn may be due in the same moment
        if not waiter.future.done():
            now = self._clock.now()
            self._refuse(waiter, too_late(self.pacer.expected(now, low=waiter.low, ahead=0), now))

    def _leave(self, waiter: Waiter) -> None:
        """The client left; a turn that came in the same moment is given back."""
        future = waiter.future
        if future.cancelled() or not future.done():
            self._settled(waiter)
        elif future.exception() is None:
            self.pacer.give_back(*future.result())
            self.serve()

    def serve(self) -> None:
        """Gives out the turns that are due. To be called after whatever changes when that is."""
        pacer = self.pacer
        now = self._clock.now()
        at = NEVER
        while self.waiting:
            waiter, owed = self._next()
            if pacer.hold.active:
                self._refuse(waiter, QuotaHeld(retry_after=max(pacer.hold.left(now), LEAST_WAIT)))
                continue
            at = pacer.next_turn(now, low=waiter.low and not owed)
            if at <= now:
                before = pacer.before()
                self._since_low = self._since_low + 1 if self.waiting_low and not waiter.low else 0
                self._settled(waiter)
                waiter.future.set_result((pacer.take(now, low=waiter.low), before))
            elif waiter.until < at != NEVER:
                self._refuse(waiter, too_late(at, now))
            else:
                break
        else:
            at = NEVER
        self._arm(at)

    def _next(self) -> tuple[Waiter, bool]:
        """Whose turn is next, and whether it is a batch request that has waited for long enough."""
        interactive, batch = head(self._queue), head(self._batch)
        if self.pacer.probing:
            # It may well be refused: not again one that was.
            return min(
                waiters(self._queue, self._batch), key=lambda it: (it.attempts, it.low, it.started)
            ), False
        if interactive is None:
            assert batch is not None
            return batch, False
        if batch is not None and self._since_low >= SHARE - 1:
            return batch, True
        return interactive, False

    def _arm(self, at: float) -> None:
        if at == self._wake_at:
            return
        if self._wake is not None:
            self._wake.cancel()
        self._wake_at = at
        self._wake = self._clock.arm(at, self._woken) if at != NEVER else None

    def _woken(self) -> None:
        self._wake = None
        self._wake_at = NEVER
        self.serve()


def head(queue: Queue) -> Waiter | None:
    """Who waits longest."""
    while queue and queue[0][2].future.done():
        heapq.heappop(queue)
    return queue[0][2] if queue else None


def waiters(*queues: Queue) -> Iterator[Waiter]:
    return (waiter for _, _, waiter in chain(*queues) if not waiter.future.done())


def too_late(expected: float, now: float) -> PaceExceeded:
    """`expected`: when the turn would have come."""
    return PaceExceeded(retry_after=max(expected - now, LEAST_WAIT) if expected != NEVER else 1.0)
