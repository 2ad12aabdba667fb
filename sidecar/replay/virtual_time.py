"""Virtual time: an event loop that skips what it would wait for.

Nothing waits for a file or a socket here. So when no callback is ready, the only thing that can happen next
is the next timer, and the loop is there at once. All that is ready runs before time moves, however long a
chain of callbacks it is.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import TypeVar

from sidecar.clock import Timer

T = TypeVar("T")

START = 1000.0
"""`now()` at the beginning: 0 means never in some places."""


class Stuck(Exception):
    """What is waited for will never come: no timer is set."""


class _Skip(selectors.SelectSelector):
    """Passes the time that the loop would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck
        if timeout > 0:
            self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time` moves by itself."""

    def __init__(self) -> None:
        self._skip = _Skip()
        super().__init__(self._skip)

    def time(self) -> float:
        return self._skip.now


class _Armed(Timer):
    __slots__ = ("handle",)
    handle: asyncio.TimerHandle

    def cancel(self) -> None:
        super().cancel()
        self.handle.cancel()


class VirtualClock:
    """The `sidecar.clock.Clock` of a virtual loop."""

    def __init__(self, loop: VirtualLoop, wall: float) -> None:
        """`wall`: Unix seconds at the beginning."""
        self._loop = loop
        self._ahead = wall - START
        self.now = loop.time

    def wall(self) -> float:
        return self._loop.time() + self._ahead

    async def sleep(self, seconds: float) -> None:
        await self.until(self._loop.time() + seconds)

    async def until(self, at: float) -> None:
        """Sleeps until `now()` is `at`; lets others run in any case."""
        awake = self._loop.create_future()
        handle = self._loop.call_at(at, awake.set_result, None)
        try:
            await awake
        finally:
            handle.cancel()

    def arm(self, at: float, callback: Callable[[], object]) -> Timer:
        bucket: set[Timer] = set()
        timer = _Armed(callback, bucket)
        bucket.add(timer)
        timer.handle = self._loop.call_at(at, _fire, timer)
        return timer


def _fire(timer: Timer) -> None:
    timer.bucket.discard(timer)
    timer.fire()


def run(work: Callable[[VirtualLoop], Coroutine[object, object, T]]) -> T:
    """Runs `work` in virtual time. Raises Stuck where it waits for what no timer will bring."""
    made: list[VirtualLoop] = []

    def loop() -> VirtualLoop:
        made.append(VirtualLoop())
        return made[0]

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.get_loop()
        return runner.run(work(made[0]))
