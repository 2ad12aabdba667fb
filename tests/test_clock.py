"""The real clock: the one place where tests wait on real time, some hundredths of a second."""

from __future__ import annotations

import asyncio
import random

from sidecar.clock import TICK, Clock, Ids, Random, SystemClock, SystemRandom, Timer


async def fired(clock: SystemClock, *delays: float) -> list[tuple[float, float]]:
    """Arms a timer for each delay; gives (when due, when fired) in the order of firing."""
    done: list[tuple[float, float]] = []
    all_done = asyncio.Event()

    def arm(at: float) -> Timer:
        def fire() -> None:
            done.append((at, clock.now()))
            if len(done) == len(delays):
                all_done.set()

        return clock.arm(at, fire)

    start = clock.now()
    for delay in delays:
        arm(start + delay)
    await asyncio.wait_for(all_done.wait(), 5)
    return done


async def test_timers_do_not_fire_early() -> None:
    """A deadline is a promise: whatever part of a tick it falls on, nobody is cut off before it."""
    delays = [random.uniform(0, 0.08) for _ in range(200)]
    assert all(at <= when for at, when in await fired(SystemClock(), *delays))


async def test_timers_fire_in_the_order_of_their_ticks() -> None:
    """Timers that are more than a tick apart keep their order, however they were armed."""
    done = await fired(SystemClock(), *(0.07, 0.01, 0.05, 0.03))
    assert [at for at, _ in done] == sorted(at for at, _ in done)


async def test_a_timer_in_the_past_fires_soon() -> None:
    """A deadline that is already over still fires, and not from within `arm`."""
    clock = SystemClock()
    called = asyncio.Event()
    clock.arm(clock.now() - 100, called.set)
    assert not called.is_set()
    await asyncio.wait_for(called.wait(), 5)


async def test_a_cancelled_timer_does_not_fire() -> None:
    """Nor does cancelling twice, or after all is over, do harm."""
    clock = SystemClock()
    calls: list[str] = []
    timer = clock.arm(clock.now() + 0.02, lambda: calls.append("cancelled"))
    timer.cancel()
    timer.cancel()
    await fired(clock, 0.05)
    assert calls == []
    timer.cancel()


async def test_a_timer_may_cancel_its_neighbour() -> None:
    """Of two timers of one tick, the first to fire may still stop the other."""
    clock = SystemClock()
    at = clock.now() + 0.02
    calls: list[str] = []
    pair: dict[str, Timer] = {}

    def fire(name: str, other: str) -> None:
        calls.append(name)
        pair[other].cancel()

    pair["a"] = clock.arm(at, lambda: fire("a", "b"))
    pair["b"] = clock.arm(at, lambda: fire("b", "a"))
    await fired(clock, 0.05)
    assert len(calls) == 1


async def test_a_timer_may_arm_another() -> None:
    """A chain of timers goes on, also with one that is due at once."""
    clock = SystemClock()
    links: list[int] = []
    over = asyncio.Event()

    def link(n: int) -> None:
        links.append(n)
        if n == 3:
            over.set()
        else:
            clock.arm(clock.now(), lambda: link(n + 1))

    clock.arm(clock.now(), lambda: link(1))
    await asyncio.wait_for(over.wait(), 5)
    assert links == [1, 2, 3]


async def test_a_stalled_loop_catches_up() -> None:
    """After the loop stood still, all that is overdue fires, in order."""
    clock = SystemClock()
    start = clock.now()
    task = asyncio.ensure_future(fired(clock, 0.05, 0.01, 0.03))
    await asyncio.sleep(0)
    while clock.now() < start + 10 * TICK:
        pass
    done = await task
    assert [at for at, _ in done] == sorted(at for at, _ in done)


async def test_an_idle_wheel_stops_and_starts_again() -> None:
    """A process without deadlines does not wake up for them, and the next deadline finds it awake."""
    clock = SystemClock()
    await fired(clock, 0.0)
    await asyncio.sleep(2 * TICK)
    assert not clock._ticking
    await fired(clock, 0.01)


async def test_sleep_lasts() -> None:
    """No sleep is shorter than it was asked to be."""
    clock: Clock = SystemClock()
    start = clock.now()
    await clock.sleep(0.02)
    assert clock.now() - start >= 0.0199


def test_wall_is_unix_time() -> None:
    """Seconds since 1970, for people."""
    assert SystemClock().wall() > 1_700_000_000


def test_random_is_in_range() -> None:
    """Numbers in [0, 1), and not always the same."""
    chance: Random = SystemRandom()
    numbers = [chance.random() for _ in range(100)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) > 90


def test_request_ids_are_unique() -> None:
    """Also across two makers, as in two processes."""
    makers = [Ids(), Ids()]
    made = [maker.request_id() for maker in makers for _ in range(1000)]
    assert len(set(made)) == 2000
    assert all(len(each) == 32 and int(each, 16) for each in made)


def test_span_ids_are_unique_and_never_zero() -> None:
    """W3C Trace Context, 3.2.2.4: 16 hexadecimal digits, not all zero."""
    ids = Ids()
    made = [ids.span_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(len(each) == 16 and int(each, 16) for each in made)


def test_ids_survive_the_end_of_their_counter() -> None:
    """After 2**32 ids there is a new prefix, and no id grows longer."""
    ids = Ids()
    before = ids.request_id()
    ids._count = 0xFFFFFFFF
    after = ids.request_id()
    assert len(after) == 32
    assert after[:24] != before[:24]
    ids._count = 0xFFFFFFFF
    assert len(ids.span_id()) == 16


async def test_a_failing_callback_stops_no_other_deadline() -> None:
    """A callback that raises is reported; timers after it still fire."""
    clock = SystemClock()
    reported: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    error = RuntimeError("bad callback")

    def fail() -> None:
        raise error

    clock.arm(clock.now(), fail)
    later = asyncio.Event()
    clock.arm(clock.now() + 0.03, later.set)
    await later.wait()
    assert reported == [error]
