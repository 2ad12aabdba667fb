"""Those who wait for a turn: whoever comes, leaves, is answered or refused, no turn and nobody is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.decisions.pacer import Mark, Pacer
from sidecar.decisions.verdict import Verdict
from sidecar.errors import PaceExceeded, QuotaHeld
from sidecar.pacing import SPARE, Turns
from tests.support.clock import ManualClock, settle

PATIENCE = 20.0

Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["interactive", "batch"]), st.integers(1, 5)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.integers(1, 40)),
        st.tuples(st.sampled_from(["well", "well", "well", "refused", "asked", "quota"]), st.integers(0, 30)),
    ),
    max_size=40,
)


@dataclass
class Request:
    task: asyncio.Task[Mark]
    low: bool
    came: float
    ended: float = 0.0
    answered: bool = False


class World:
    def __init__(self, rate: float | None, burst: int) -> None:
        self.clock = ManualClock()
        self.pacer = Pacer(rate, burst, learn=True, hold=5.0)
        self.turns = Turns(self.pacer, self.clock)
        self.requests: list[Request] = []

    def come(self, *, low: bool) -> None:
        now = self.clock.now()
        turn = self.turns.turn(now, low=low, started=now, attempts=0, until=now + PATIENCE)
        request = Request(asyncio.ensure_future(turn), low, now)
        request.task.add_done_callback(lambda _: setattr(request, "ended", self.clock.now()))
        self.requests.append(request)

    def leave(self, at: int) -> None:
        waiting = [request for request in self.requests if not request.task.done()]
        if waiting:
            waiting[at % len(waiting)].task.cancel()

    def answer(self, how: str, at: int) -> None:
        sent = [it for it in self.requests if not it.answered and self.has_turn(it)]
        if not sent:
            return
        request = sent[at % len(sent)]
        request.answered = True
        verdict = {"well": Verdict.OK, "quota": Verdict.QUOTA}.get(how, Verdict.RATE_LIMITED)
        asked = 3.0 if how == "asked" else None
        self.pacer.answered(request.task.result(), self.clock.now(), verdict, asked=asked)
        self.turns.serve()

    @staticmethod
    def has_turn(request: Request) -> bool:
        task = request.task
        return task.done() and not task.cancelled() and task.exception() is None


async def live(rate: float | None, burst: int, steps: list[Step]) -> None:
    world = World(rate, burst)
    for what, number in steps:
        match what:
            case "interactive" | "batch":
                for _ in range(number):
                    world.come(low=what == "batch")
            case "leave":
                world.leave(number)
            case "wait":
                await world.clock.advance(number / 8)
            case _:
                await settle()
                world.answer(what, number)
        if number % 3:  # else the next step comes in the same moment
            await settle()
    for _ in range(int(PATIENCE) * 4 + 8):
        await world.clock.advance(0.25)
        for _ in range(len(world.requests)):
            world.answer("well", 0)
    for request in world.requests:
        assert request.task.done()
        assert request.ended <= request.came + PATIENCE + 1e-6
        if not request.task.cancelled() and (error := request.task.exception()) is not None:
            assert isinstance(error, PaceExceeded | QuotaHeld)
            assert error.retry_after is not None
            assert error.retry_after > 0
    assert (world.turns.waiting, world.turns.waiting_low) == (0, 0)
    assert world.pacer.sent == world.pacer.done
    assert world.pacer._low_open == 0


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([None, 0.5, 2.0, 20.0]), st.integers(1, 4), STEPS)
def test_everybody_is_served_or_told(rate: float | None, burst: int, steps: list[Step]) -> None:
    """Each has a turn or a refusal within the patience, and the books are balanced in the end."""
    asyncio.run(live(rate, burst, steps))


async def test_the_oldest_of_a_class_is_first() -> None:
    """Turns go by when the client's request began: one that comes back after a refusal is not last again."""
    clock = ManualClock()
    turns = Turns(Pacer(1.0, 1, learn=False, hold=None), clock)
    turns.pacer.take(clock.now(), low=False)
    order: list[str] = []

    async def wait(name: str, started: float) -> None:
        await turns.turn(clock.now(), low=False, started=started, attempts=0, until=clock.now() + 60)
        order.append(name)

    tasks = [asyncio.ensure_future(wait(name, started)) for name, started in (("new", 900), ("old", 800))]
    await clock.complete(asyncio.gather(*tasks))
    assert order == ["old", "new"]


async def test_those_who_left_do_not_pile_up() -> None:
    """The queue forgets clients that are gone, though its first one waits on."""
    clock = ManualClock()
    turns = Turns(Pacer(1 / 600, 1, learn=False, hold=None), clock)
    turns.pacer.take(clock.now(), low=False)
    now = clock.now()

    def waits() -> asyncio.Task[Mark]:
        return asyncio.ensure_future(turns.turn(now, low=True, started=now, attempts=0, until=now + 9e9))

    first = waits()
    for _ in range(3):
        tasks = [waits() for _ in range(SPARE)]
        await settle()
        for task in tasks:
            task.cancel()
        await settle()
    assert turns.waiting == 1
    assert len(turns._batch) <= SPARE + 3
    first.cancel()
    await settle()
    assert turns.waiting == 0


async def test_a_turn_leaves_no_timer_behind() -> None:
    """Who had a turn, and who left, is not waited for any more."""
    clock = ManualClock()
    turns = Turns(Pacer(1.0, 1, learn=False, hold=None), clock)
    turns.pacer.take(clock.now(), low=False)
    tasks = [
        asyncio.ensure_future(turns.turn(1000.0, low=False, started=1000.0, attempts=0, until=1060.0))
        for _ in range(2)
    ]
    await clock.advance(1)
    tasks[1].cancel()
    await settle()
    assert tasks[0].done()
    await clock.advance(1)  # the turn that nobody waits for
    assert clock.armed == 0
