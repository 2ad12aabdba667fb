"""A limit and its queue, under any order of coming, leaving, being cancelled, and time going by."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.decisions.concurrency import FixedLimit, Permits, shares
from sidecar.decisions.gradient import AdaptiveLimit
from sidecar.decisions.priority import Priority
from sidecar.errors import LimitExceeded
from sidecar.queueing import Gate
from tests.support.clock import ManualClock, settle

PRIORITIES = st.sampled_from(Priority)


@dataclass
class Visitor:
    priority: Priority
    task: asyncio.Task[bool]
    entered: bool = False
    """It has its permit."""


class Doorway(RuleBasedStateMachine):
    @initialize(
        adaptive=st.booleans(),
        most=st.integers(1, 12),
        patience=st.sampled_from([None, 1.0, 5.0]),
        queue_size=st.integers(1, 6),
        high=st.booleans(),
        normal=st.booleans(),
    )
    def build(
        self, adaptive: bool, most: int, patience: float | None, queue_size: int, high: bool, normal: bool
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.limit: Permits = AdaptiveLimit(most, 1, most + 4) if adaptive else FixedLimit(most)
        self.used = (high, normal)
        for used, priority in ((high, Priority.HIGH), (normal, Priority.NORMAL)):
            if used:
                self.limit.keep_for(priority)
        self.gate = Gate(self.limit, patience, queue_size, self.clock)
        self.queue_size = queue_size
        self.waiting: list[Visitor] = []
        """In order of arrival."""
        self.inside: list[Visitor] = []

    def run(self, seconds: float = 0.0) -> None:
        """Lets what is ready happen; then everybody is inside, waits, or is gone."""
        self.loop.run_until_complete(self.clock.advance(seconds) if seconds else settle())
        for visitor in [visitor for visitor in self.waiting if visitor.task.done()]:
            self.waiting.remove(visitor)
            if visitor.task.cancelled() or isinstance(visitor.task.exception(), LimitExceeded):
                assert not visitor.entered
            else:
                visitor.entered = True
                self.inside.append(visitor)

    def expected_order(self) -> list[Visitor]:
        return sorted(self.waiting, key=lambda visitor: visitor.priority)

    def share(self, priority: Priority) -> int:
        return shares(self.limit.limit, *self.used)[priority]

    # -- what may happen -----------------------------------------------------------------------

    @rule(priority=PRIORITIES, until=st.one_of(st.none(), st.floats(-1, 6)))
    def come(self, priority: Priority, until: float | None) -> None:
        before = self.limit.in_flight
        passes = before < self.share(priority) and not any(
            visitor.priority <= priority for visitor in self.waiting
        )
        deadline = None if until is None else self.clock.now() + until
        visitor = Visitor(priority, self.loop.create_task(self.gate.enter(priority, deadline)))
        self.waiting.append(visitor)
        self.run()
        assert (visitor in self.inside) == passes, "in at once where there is room for its class, else not"
        if passes:
            assert visitor.task.result() is False

    @rule(priorities=st.lists(PRIORITIES, min_size=2, max_size=6))
    def come_together(self, priorities: list[Priority]) -> None:
        self.waiting += [
            Visitor(priority, self.loop.create_task(self.gate.enter(priority, None)))
            for priority in priorities
        ]
        self.run()

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.inside.remove(data.draw(st.sampled_from(self.inside)))
        order = self.expected_order()
        self.gate.leave()
        self.run()
        let_in = [visitor for visitor in order if visitor.entered]
        stayed = [visitor for visitor in order if visitor in self.waiting]
        assert not let_in or self.limit.in_flight <= self.limit.limit
        for visitor in let_in:
            assert visitor.task.result() is True
            for other in stayed:
                assert order.index(visitor) < order.index(other), "out of turn"

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).task.cancel()
        self.run()

    @precondition(lambda self: self.inside and self.waiting)
    @rule(data=st.data(), cancel_first=st.booleans())
    def give_up_as_one_leaves(self, data: st.DataObject, cancel_first: bool) -> None:
        """In the same turn of the loop, in either order."""
        self.inside.remove(data.draw(st.sampled_from(self.inside)))
        visitor = data.draw(st.sampled_from(self.waiting))
        if cancel_first:
            visitor.task.cancel()
        self.gate.leave()
        visitor.task.cancel()
        self.run()
        assert visitor not in self.inside

    @rule(quarters=st.integers(1, 30))
    def wait(self, quarters: int) -> None:
        self.run(quarters / 4)

    @rule(seconds=st.floats(0.001, 3))
    def answer(self, seconds: float) -> None:
        """The upstream answers one of those inside: the queue learns, and the limit may."""
        if self.waiting:
            self.gate.served(seconds)
        if isinstance(self.limit, AdaptiveLimit):
            for _ in range(10):
                self.limit.sample(seconds)
            self.gate.admit()
        self.run()

    @precondition(lambda self: isinstance(self.limit, AdaptiveLimit))
    @rule()
    def fail(self) -> None:
        assert isinstance(self.limit, AdaptiveLimit)
        self.limit.drop(self.clock.now(), self.clock.now())
        self.gate.admit()
        self.run()

    # -- what must hold ------------------------------------------------------------------------

    @invariant()
    def permits_are_those_of_the_people_inside(self) -> None:
        assert self.limit.in_flight == len(self.inside)

    @invariant()
    def the_queue_is_those_who_wait(self) -> None:
        assert self.gate.waiting == len(self.waiting) <= self.queue_size

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        """No wake-up is lost: the first in line has no permit that it could have."""
        if self.waiting:
            assert self.limit.in_flight >= self.share(self.expected_order()[0].priority)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        for visitor in self.waiting:
            visitor.task.cancel()
        while self.inside:
            self.inside.pop()
            self.gate.leave()
        self.run()
        while self.inside:  # those who were let in at the last moment
            self.inside.pop()
            self.gate.leave()
            self.run()
        assert (self.limit.in_flight, self.gate.waiting, self.clock.armed) == (0, 0, 0)
        self.loop.close()


TestDoorway = Doorway.TestCase
TestDoorway.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_limit_that_falls_may_leave_a_lower_class_more() -> None:
    """What is kept for higher classes is rounded up: whoever lowers a limit lets in who may go now."""
    assert shares(11, True, True)[Priority.LOW] < shares(10, True, True)[Priority.LOW]
