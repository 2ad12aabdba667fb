from __future__ import annotations

import asyncio

import pytest

from sidecar.clock import Clock, Random
from tests.support.clock import ManualClock, ScriptedRandom


async def test_stands_still() -> None:
    """Time moves when told, by as much as told, on both faces of the clock."""
    clock: Clock = (manual := ManualClock(now=100.0, wall=5000.0))
    assert (clock.now(), clock.wall()) == (100.0, 5000.0)
    await manual.advance(2.5)
    assert (clock.now(), clock.wall()) == (102.5, 5002.5)


async def test_sleepers_wake_in_order_at_their_time() -> None:
    """Each sees the time that it asked for, though time moved by more in one go."""
    clock = ManualClock(now=100.0)
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(clock.now())

    tasks = [asyncio.ensure_future(sleeper(seconds)) for seconds in (3.0, 1.0, 2.0, 9.0)]
    await clock.advance(5.0)
    assert woken == [101.0, 102.0, 103.0]
    await clock.advance(4.0)
    assert woken[-1] == 109.0
    assert clock.slept == [3.0, 1.0, 2.0, 9.0]
    await asyncio.gather(*tasks)


async def test_who_sleeps_again_wakes_again_in_the_same_advance() -> None:
    """What a sleeper does when it wakes happens before time moves on."""
    clock = ManualClock(now=100.0)

    async def twice() -> float:
        await clock.sleep(1.0)
        await clock.sleep(1.0)
        return clock.now()

    task = asyncio.ensure_future(twice())
    await clock.advance(10.0)
    assert await task == 102.0


async def test_timers_fire_in_order_and_not_when_cancelled() -> None:
    """Equal times: in the order of arming. A cancelled one never."""
    clock = ManualClock(now=100.0)
    fired: list[str] = []
    clock.arm(102.0, lambda: fired.append("b"))
    clock.arm(101.0, lambda: fired.append("a"))
    clock.arm(102.0, lambda: fired.append("c"))
    clock.arm(101.5, lambda: fired.append("never")).cancel()
    clock.arm(102.1, lambda: fired.append("later"))
    assert clock.armed == 4
    await clock.advance(2.0)
    assert fired == ["a", "b", "c"]
    assert (clock.armed, clock.next_at) == (1, 102.1)


async def test_a_timer_may_cancel_another_that_is_due() -> None:
    """Cancelling works up to the last moment."""
    clock = ManualClock(now=100.0)
    fired: list[str] = []
    second = clock.arm(101.0, lambda: fired.append("second"))
    clock.arm(100.5, second.cancel)
    await clock.advance(5.0)
    assert fired == []
    second.cancel()


async def test_a_timer_in_the_past_fires_at_the_next_step() -> None:
    """And does not turn time back."""
    clock = ManualClock(now=100.0)
    at: list[float] = []
    clock.arm(50.0, lambda: at.append(clock.now()))
    await clock.advance(0.0)
    assert at == [100.0]


async def test_a_cancelled_sleeper_leaves_no_timer() -> None:
    """A task that is cancelled in its sleep is forgotten by the clock."""
    clock = ManualClock()
    task = asyncio.ensure_future(clock.sleep(5.0))
    await clock.advance(1.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.armed == 0


async def test_complete_moves_time_as_far_as_needed() -> None:
    """Work that sleeps is done at the time when it would be."""
    clock = ManualClock(now=100.0)

    async def work() -> str:
        await clock.sleep(30.0)
        await clock.sleep(0.0)
        await clock.sleep(12.0)
        return "done"

    assert await clock.complete(work()) == "done"
    assert clock.now() == 142.0


async def test_complete_gives_up_on_what_no_timer_brings() -> None:
    """A test that would hang fails instead."""
    clock = ManualClock()
    with pytest.raises(AssertionError, match="no timer"):
        await clock.complete(asyncio.Event().wait())


def test_scripted_random() -> None:
    """The numbers come in order; the last one stays."""
    script: Random = (scripted := ScriptedRandom(0.1, 0.9))
    assert [script.random() for _ in range(4)] == [0.1, 0.9, 0.9, 0.9]
    assert scripted.drawn == 4


def test_scripted_random_is_in_range() -> None:
    """A number that chance cannot give would test nothing."""
    with pytest.raises(ValueError, match="0, 1"):
        ScriptedRandom(1.0)
