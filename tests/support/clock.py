"""Time and chance that only do what a test says."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from sidecar.clock import Timer

T = TypeVar("T")

SETTLING_TURNS = 32
"""Turns of the event loop after each step of time: how long a chain of callbacks may be."""


async def settle(turns: int = SETTLING_TURNS) -> None:
    """Lets all that is ready run, and what becomes ready by that."""
    for _ in range(turns):
        await asyncio.sleep(0)


class ManualClock:
    """A `sidecar.clock.Clock` in virtual time: it stands still until `advance` moves it.

    Sleepers wake and timers fire in the order of their times, and of their making where the times are
    equal; between two of them everything that is ready runs, at the time of the first.
    """

    def __init__(
        self, now: float = 1000.0, wall: float = 1_700_000_000.0, *, turns: int = SETTLING_TURNS
    ) -> None:
        """`turns` of the event loop after each step: a simulation of many steps gets along with few."""
        self._now = now
        self._turns = turns
        self._ahead = wall - now
        self._heap: list[tuple[float, int, Timer]] = []
        self._made = 0
        self.slept: list[float] = []
        """The seconds each `sleep` asked for, in order."""

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now + self._ahead

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        awake = asyncio.Event()
        timer = self.arm(self._now + seconds, awake.set)
        try:
            await awake.wait()
        finally:
            timer.cancel()

    def arm(self, at: float, callback: Callable[[], object]) -> Timer:
        armed: set[Timer] = set()
        timer = Timer(callback, armed)
        armed.add(timer)
        self._made += 1
        heapq.heappush(self._heap, (at, self._made, timer))
        return timer

    @property
    def armed(self) -> int:
        """Timers and sleepers that wait."""
        return sum(timer in timer.bucket for _, _, timer in self._heap)

    @property
    def next_at(self) -> float | None:
        """When the next of them is due."""
        while self._heap and self._heap[0][2] not in self._heap[0][2].bucket:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    async def advance(self, seconds: float) -> None:
        """Moves time on by `seconds`, through all that is due on the way."""
        until = self._now + seconds
        await settle(self._turns)
        while (at := self.next_at) is not None and at <= until:
            await self._step(at)
        self._now = until
        await settle(self._turns)

    async def complete(self, work: Coroutine[object, object, T] | Awaitable[T]) -> T:
        """Moves time from timer to timer until `work` is done, and gives its result.

        Raises AssertionError when it waits for something that is not on this clock.
        """
        task = asyncio.ensure_future(work)
        await settle(self._turns)
        while not task.done():
            at = self.next_at
            if at is None:
                task.cancel()
                raise AssertionError("waits for something that no timer will bring")
            await self._step(at)
        return await task

    async def _step(self, at: float) -> None:
        _, _, timer = heapq.heappop(self._heap)
        self._now = max(self._now, at)
        timer.bucket.clear()
        timer.fire()
        await settle(self._turns)


class ScriptedRandom:
    """A `sidecar.clock.Random` that gives the listed numbers, then the last one for ever."""

    def __init__(self, *numbers: float) -> None:
        if not numbers or not all(0 <= number < 1 for number in numbers):
            raise ValueError("a script of numbers in [0, 1) is needed")
        self._numbers = list(numbers)
        self.drawn = 0

    def random(self) -> float:
        number = self._numbers[min(self.drawn, len(self._numbers) - 1)]
        self.drawn += 1
        return number
