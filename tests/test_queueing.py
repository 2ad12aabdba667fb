"""The queue in front of a concurrency limit, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.decisions.concurrency import FixedLimit
from sidecar.decisions.priority import Priority
from sidecar.errors import LimitExceeded
from sidecar.queueing import Gate
from tests.support.clock import ManualClock, settle

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


class Door:
    """A gate, and those who came to it."""

    def __init__(self, limit: int = 1, patience: float | None = 1.0, most: int = 1000) -> None:
        self.clock = ManualClock()
        self.gate = Gate(FixedLimit(limit), patience, most, self.clock)
        self.let_in: list[str] = []
        """Names, in the order in which they got a permit."""
        self.refused: dict[str, LimitExceeded] = {}

    def come(
        self, name: str, priority: Priority = NORMAL, until: float | None = None
    ) -> asyncio.Task[bool | None]:
        async def enter() -> bool | None:
            try:
                waited = await self.gate.enter(priority, until)
            except LimitExceeded as error:
                self.refused[name] = error
                return None
            self.let_in.append(name)
            return waited

        return asyncio.ensure_future(enter())

    async def leave(self, seconds: float = 0.0) -> None:
        """One permit comes back, after some time."""
        await self.clock.advance(seconds)
        self.gate.leave()
        await settle()


async def full(**settings: object) -> Door:
    door = Door(**settings)  # type: ignore[arg-type]
    while door.gate.limit.try_acquire():
        pass
    return door


async def test_nobody_waits_where_there_is_room() -> None:
    """A free permit is taken without a wait."""
    door = Door(limit=2)
    assert await door.come("a") is False
    assert await door.come("b") is False
    assert door.gate.limit.in_flight == 2


async def test_first_come_first_served() -> None:
    """Within a class the order of arrival is the order of entry."""
    door = await full()
    tasks = [door.come(name) for name in "abc"]
    await settle()
    assert door.gate.waiting == 3
    for _ in range(3):
        await door.leave()
    assert door.let_in == ["a", "b", "c"]
    assert [await task for task in tasks] == [True, True, True]
    assert door.gate.waiting == 0


async def test_the_higher_class_goes_first() -> None:
    """Whoever came first."""
    door = await full()
    for name, priority in (("low", LOW), ("normal", NORMAL), ("high", HIGH), ("high too", HIGH)):
        door.come(name, priority)
    await settle()
    for _ in range(4):
        await door.leave()
    assert door.let_in == ["high", "high too", "normal", "low"]


async def test_who_comes_does_not_pass_its_equals() -> None:
    """A permit that comes back goes to one that waits, not to one that comes at that moment."""
    door = await full()
    door.come("first")
    await settle()
    door.gate.leave()
    door.come("second")
    await settle()
    assert door.let_in == ["first"]
    await door.leave()
    assert door.let_in == ["first", "second"]


async def test_what_is_kept_for_high_is_there_while_others_wait() -> None:
    """A `high` request takes the reserve past a queue of lower ones, without a wait."""
    door = Door(limit=10)
    for used in (HIGH, NORMAL):
        door.gate.limit.keep_for(used)
    for _ in range(9):
        assert await door.come("normal") is False
    waiting = door.come("waits")
    await settle()
    assert door.gate.waiting == 1
    assert await door.come("high", HIGH) is False
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_without_patience_nobody_waits() -> None:
    """`queue: off` refuses at once."""
    door = await full(patience=None)
    assert await door.come("a") is None
    assert door.gate.waiting == 0
    assert door.refused["a"].retry_after == 1.0


async def test_patience_ends() -> None:
    """A second in the queue, then the refusal; it holds nothing."""
    door = await full()
    task = door.come("a")
    await door.clock.advance(0.99)
    assert not task.done()
    await door.clock.advance(0.02)
    assert await task is None
    assert "too long" in door.refused["a"].detail
    assert (door.gate.waiting, door.gate.limit.in_flight) == (0, 1)
    assert door.clock.armed == 0


async def test_the_deadline_ends_the_wait_sooner() -> None:
    """Nobody waits for what nobody wants any more."""
    door = await full()
    task = door.come("a", until=door.clock.now() + 0.3)
    await door.clock.advance(0.31)
    assert await task is None


async def test_a_deadline_that_is_past_is_not_waited_for() -> None:
    """At once, with no time going by."""
    door = await full()
    assert await door.come("a", until=door.clock.now()) is None


async def test_the_queue_is_bounded() -> None:
    """One more than may wait is refused at once."""
    door = await full(most=2)
    tasks = [door.come(name) for name in "abc"]
    await settle()
    assert list(door.refused) == ["c"]
    assert "full" in door.refused["c"].detail
    assert door.gate.waiting == 2
    await door.clock.advance(2)
    assert [await task for task in tasks] == [None, None, None]


async def test_in_a_full_queue_a_higher_class_takes_the_place_of_a_lower() -> None:
    """Of the lowest class that waits, the last that came has to go; an equal takes nobody's place."""
    door = await full(most=3)
    for name, priority in (("low 1", LOW), ("low 2", LOW), ("normal 1", NORMAL)):
        door.come(name, priority)
    await settle()
    door.come("high", HIGH)
    await settle()
    assert list(door.refused) == ["low 2"]
    door.come("normal 2", NORMAL)
    await settle()
    assert list(door.refused) == ["low 2", "low 1"]
    door.come("normal 3", NORMAL)
    door.come("low 3", LOW)
    await settle()
    assert list(door.refused) == ["low 2", "low 1", "normal 3", "low 3"]
    for _ in range(3):
        await door.leave()
    assert door.let_in == ["high", "normal 1", "normal 2"]


async def moving(door: Door, gap: float = 0.1, turns: int = 30) -> None:
    """Lets the queue move at this pace, with somebody always in it, and ends with it empty."""
    for number in range(turns + 1):
        door.come(f"warm {number}")
        await settle()
        if number:
            await door.leave(gap)
    await door.leave(gap)
    assert door.gate.waiting == 0
    door.let_in.clear()


async def test_who_cannot_make_it_does_not_wait() -> None:
    """Turns come every tenth of a second: the tenth would wait for a whole second, and is told at once."""
    door = await full()
    await moving(door)
    for number in range(12):
        door.come(f"{number}")
        await settle()
    assert set(door.refused) == {"9", "10", "11"}
    assert door.gate.waiting == 9
    assert "too late" in door.refused["10"].detail


async def test_a_higher_class_is_not_refused_for_those_it_passes() -> None:
    """Only those count that go before it."""
    door = await full()
    await moving(door)
    for number in range(9):
        door.come(f"{number}", LOW)
        await settle()
    assert not door.refused
    door.come("high", HIGH)
    await settle()
    assert not door.refused


async def test_who_would_have_too_little_time_left_is_refused_at_once() -> None:
    """Half of the answers take two seconds: with a second to the deadline waiting is of no use."""
    door = await full()
    door.come("a")
    await settle()
    for _ in range(20):
        door.gate.served(2.0)
    assert await door.come("b", until=door.clock.now() + 1.5) is None
    late = door.come("c", until=door.clock.now() + 2.5)
    await settle()
    assert not late.done()
    await door.clock.advance(0.51)
    assert await late is None


async def test_who_came_too_late_to_its_turn_gets_no_permit() -> None:
    """The work got slower while it waited: the permit goes to the next, who has the time."""
    door = await full(patience=5.0)
    door.come("late", until=door.clock.now() + 3)
    door.come("free")
    await settle()
    for _ in range(200):
        door.gate.served(2.5)
    await door.leave(1.0)
    assert door.let_in == ["free"]
    assert "too little time" in door.refused["late"].detail
    assert (door.gate.waiting, door.gate.limit.in_flight) == (0, 1)


@pytest.mark.parametrize(("ahead", "expected"), [(9, 1.0), (25, 2.6), (2000, 30.0)])
async def test_come_back_when_the_queue_is_through(ahead: int, expected: float) -> None:
    """Retry-After is the time that those who wait now will take: a second at least, half a minute at most."""
    door = await full(patience=10_000.0, most=ahead)
    await moving(door)
    for number in range(ahead):
        door.come(f"{number}")
    await settle()
    assert await door.come("one too many") is None
    assert door.refused["one too many"].retry_after == pytest.approx(expected)


async def test_who_leaves_the_queue_leaves_nothing() -> None:
    """A client that goes while it waits is not counted, and its turn goes to the next."""
    door = await full()
    gone = door.come("gone")
    door.come("next")
    await settle()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert door.gate.waiting == 1
    await door.leave()
    assert door.let_in == ["next"]
    assert door.gate.limit.in_flight == 1
    assert door.clock.armed == 0


async def test_a_permit_for_one_that_just_left_goes_on() -> None:
    """Let in and cancelled in the same turn of the loop: the permit is not lost."""
    door = await full()
    gone = door.come("gone")
    door.come("next")
    await settle()
    door.gate.leave()
    gone.cancel()
    await settle()
    assert door.let_in == ["next"]
    assert door.gate.limit.in_flight == 1


async def test_one_that_just_left_gets_no_permit() -> None:
    """Cancelled and then its turn, in the same turn of the loop."""
    door = await full()
    gone = door.come("gone")
    door.come("next")
    await settle()
    gone.cancel()
    door.gate.leave()
    await settle()
    assert door.let_in == ["next"]
    assert (door.gate.waiting, door.gate.limit.in_flight) == (0, 1)


async def test_a_limit_that_grows_lets_in_at_once() -> None:
    """Without anybody leaving."""
    door = await full(limit=1)
    for name in "abc":
        door.come(name)
    await settle()
    assert isinstance(door.gate.limit, FixedLimit)
    door.gate.limit.resize(3)
    door.gate.admit()
    await settle()
    assert door.let_in == ["a", "b"]


async def test_a_limit_that_shrank_lets_nobody_in() -> None:
    """Two permits come back to a limit that has become one: none is given on."""
    door = await full(limit=3)
    assert isinstance(door.gate.limit, FixedLimit)
    door.come("a")
    await settle()
    door.gate.limit.resize(1)
    await door.leave()
    await door.leave()
    assert door.let_in == []
    await door.leave()
    assert door.let_in == ["a"]
