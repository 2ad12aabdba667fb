"""An event loop that skips what it would wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sidecar.replay.virtual_time import START, Stuck, VirtualClock, VirtualLoop, run


def test_time_moves_from_timer_to_timer_in_their_order() -> None:
    """A day passes at once, and each callback sees the time it was due."""
    seen: list[tuple[str, float]] = []

    async def work(loop: VirtualLoop) -> float:
        clock = VirtualClock(loop, 1_700_000_000.0)

        def note(name: str) -> Callable[[], None]:
            return lambda: seen.append((name, clock.now() - START))

        clock.arm(clock.now() + 3600, note("second"))
        clock.arm(clock.now() + 60, note("first"))
        clock.arm(clock.now() + 90, note("never")).cancel()
        await clock.sleep(86400)
        return clock.wall()

    assert run(work) == 1_700_086_400.0
    assert seen == [("first", 60.0), ("second", 3600.0)]


def test_all_that_is_ready_runs_before_time_moves() -> None:
    """However long the chain of callbacks is."""

    async def work(loop: VirtualLoop) -> float:
        clock = VirtualClock(loop, 0.0)
        late = loop.create_task(clock.sleep(0.001))
        for _ in range(1000):
            await loop.create_task(_nothing())
        assert not late.done()
        return clock.now()

    assert run(work) == START


async def _nothing() -> None:
    pass


def test_what_no_timer_will_bring_is_told() -> None:
    """Instead of waiting for ever."""

    async def work(loop: VirtualLoop) -> None:
        await loop.create_future()

    with pytest.raises(Stuck):
        run(work)


def test_the_loops_own_timeouts_are_virtual_too() -> None:
    """What reads the loop's time reads this one."""

    async def work(loop: VirtualLoop) -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.create_future(), 500)
        return loop.time()

    assert run(work) == START + 500
