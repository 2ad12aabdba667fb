"""Waiting for a permit: a queue in order of arrival, in front of a concurrency limit."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from sidecar.errors import LimitExceeded

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.decisions.concurrency import Limit


class Gate:
    """A limit, and those who wait for it, at most `patience` seconds each (None: nobody waits)."""

    def __init__(self, limit: Limit, patience: float | None, clock: Clock) -> None:
        self.limit = limit
        self._patience = patience
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def enter(self, until: float | None) -> None:
        """Takes a permit; `leave` gives it back. `until`: nobody waits past this `Clock.now()`.

        Raises `LimitExceeded`.
        """
        if not self._waiting and self.limit.try_acquire():
            return
        if self._patience is None:
            raise LimitExceeded(retry_after=1.0)
        now = self._clock.now()
        latest = now + self._patience
        if until is not None and until < latest:
            latest = until
        if latest <= now:
            raise LimitExceeded(retry_after=1.0)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def expire() -> None:
            if not waiter.done():
                waiter.set_exception(LimitExceeded("the wait in the queue was too long", retry_after=1.0))

        self._waiting.append(waiter)
        timer = self._clock.arm(latest, expire)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave()  # the permit came in the same moment
            raise
        finally:
            timer.cancel()
            if not waiter.done() or waiter.cancelled() or waiter.exception() is not None:
                self._drop(waiter)

    def leave(self) -> None:
        """Gives a permit back, and lets the next one in."""
        self.limit.release()
        waiting = self._waiting
        while waiting:
            if waiting[0].done():
                waiting.popleft()
            elif self.limit.try_acquire():
                waiting.popleft().set_result(None)
            else:
                return

    def _drop(self, waiter: asyncio.Future[None]) -> None:
        try:
            self._waiting.remove(waiter)
        except ValueError:
            return
