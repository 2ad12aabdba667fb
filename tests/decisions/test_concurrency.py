from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.decisions.concurrency import FixedLimit, Limit


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


class Balance(RuleBasedStateMachine):
    """Any order of coming and going, beside a plain count."""

    @initialize(most=st.integers(1, 5))
    def build(self, most: int) -> None:
        self.most = most
        self.limit = FixedLimit(most)
        self.inside = 0

    @rule()
    def come(self) -> None:
        let_in = self.limit.try_acquire()
        assert let_in == (self.inside < self.most)
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
