from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.decisions.concurrency import FixedLimit, Limit, shares
from sidecar.decisions.priority import Priority

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def test_lets_as_many_through_as_it_says() -> None:
    """The third of two is refused, and may come when one has left."""
    limit: Limit = FixedLimit(2)
    assert [limit.try_acquire() for _ in range(3)] == [True, True, False]
    limit.release()
    assert limit.try_acquire()
    assert (limit.in_flight, limit.limit) == (2, 2)


def test_a_refusal_costs_nothing() -> None:
    """Refused requests are not in flight: nothing is owed for them."""
    limit = FixedLimit(1)
    limit.try_acquire()
    for _ in range(5):
        assert not limit.try_acquire()
    limit.release()
    assert limit.in_flight == 0


@pytest.mark.parametrize("most", [0, -1])
def test_a_limit_of_nothing_is_refused(most: int) -> None:
    """A limit that lets nothing through is a mistake."""
    with pytest.raises(ValueError, match="at least one"):
        FixedLimit(most)


@pytest.mark.parametrize(
    ("limit", "high", "normal", "expected"),
    [
        (64, False, False, (64, 64, 64)),
        (64, False, True, (64, 64, 57)),
        (64, True, False, (64, 57, 57)),
        (64, True, True, (64, 57, 50)),
        (20, True, True, (20, 18, 16)),
        (16, True, True, (16, 14, 12)),
        (8, True, True, (8, 7, 6)),
        (3, True, True, (3, 2, 1)),
        (2, True, True, (2, 1, 1)),
        (1, True, True, (1, 1, 1)),
    ],
)
def test_what_each_class_may_use(
    limit: int, high: bool, normal: bool, expected: tuple[int, int, int]
) -> None:
    """A tenth, rounded up, is kept for each class in use against those below; one permit is for everybody."""
    assert shares(limit, high, normal) == expected


def test_nothing_is_kept_for_a_class_that_no_route_names() -> None:
    """Routes without `priority` use the whole limit."""
    limit = FixedLimit(10)
    limit.keep_for(NORMAL)
    assert [limit.try_acquire_as(NORMAL) for _ in range(11)] == [True] * 10 + [False]


def test_the_last_tenth_is_for_high() -> None:
    """With a `high` route on the limit the others leave it a tenth, each class one more."""
    limit = FixedLimit(10)
    limit.keep_for(NORMAL)
    limit.keep_for(HIGH)
    assert sum(limit.try_acquire_as(LOW) for _ in range(10)) == 8
    assert sum(limit.try_acquire_as(NORMAL) for _ in range(10)) == 1
    assert sum(limit.try_acquire_as(HIGH) for _ in range(10)) == 1


def test_who_says_no_class_gets_what_everybody_may_have() -> None:
    """Without a look at the class only those permits are given that no class has to itself."""
    limit = FixedLimit(10)
    limit.keep_for(NORMAL)
    assert sum(limit.try_acquire() for _ in range(10)) == 9
    assert limit.try_acquire_as(NORMAL)


def test_one_that_only_counts_is_let_over_the_limit() -> None:
    """`take` gives a permit in any case, and it counts like any other."""
    limit = FixedLimit(1)
    limit.take()
    limit.take()
    assert limit.in_flight == 2
    limit.release()
    assert not limit.try_acquire()


class Balance(RuleBasedStateMachine):
    """Any order of coming and going, of all classes, beside a plain count."""

    @initialize(most=st.integers(1, 25), high=st.booleans(), normal=st.booleans())
    def build(self, most: int, high: bool, normal: bool) -> None:
        self.most = most
        self.limit = FixedLimit(most)
        for used, priority in ((high, HIGH), (normal, NORMAL)):
            if used:
                self.limit.keep_for(priority)
        self.shares = shares(most, high, normal)
        self.inside = 0

    @rule(priority=st.sampled_from(Priority))
    def come(self, priority: Priority) -> None:
        let_in = self.limit.try_acquire_as(priority)
        assert let_in == (self.inside < self.shares[priority])
        self.inside += let_in

    @rule()
    def come_without_a_class(self) -> None:
        let_in = self.limit.try_acquire()
        assert let_in == (self.inside < self.shares[LOW])
        self.inside += let_in

    @precondition(lambda self: self.inside > 0)
    @rule()
    def go(self) -> None:
        self.limit.release()
        self.inside -= 1

    @invariant()
    def never_over(self) -> None:
        assert self.limit.in_flight == self.inside <= self.limit.limit


TestBalance = Balance.TestCase
