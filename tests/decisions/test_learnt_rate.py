"""The rate that refusals teach."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sidecar.decisions.learnt_rate import LATENESS, LEAST, UNKNOWN, LearntRate


def taken(rate: LearntRate, seconds: float, start: float = 1000.0) -> int:
    """Turns that a queue without end takes in that time, each when it is due; each is accepted."""
    now, count = start, 0
    while (at := max(rate.turn(low=True), now)) < start + seconds:
        now = at
        rate.take(now)
        rate.accepted += 1
        count += 1
    return count


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_nonsense_is_refused(rate: float, burst: int) -> None:
    """A rate or a burst that lets nothing through is a ValueError."""
    with pytest.raises(ValueError, match="let something through"):
        LearntRate(rate, burst, learn=True)


def test_turns_are_even() -> None:
    """Sixty a minute are one a second."""
    assert taken(LearntRate(1.0, 1, learn=False), 60.0) == 60


def test_lateness_is_made_up_for() -> None:
    """A timer that is late by less than `LATENESS` each time loses no turn."""
    rate = LearntRate(50.0, 1, learn=False)
    now = 1000.0
    for _ in range(50):
        rate.take(now)
        now = rate.turn(low=True) + LATENESS / 2
    assert now == pytest.approx(1001.0, abs=LATENESS)


def test_it_climbs_slowly_while_turns_are_waited_for() -> None:
    """By 3 % a minute; the share of a turn that is not waited for is not counted."""
    rate = LearntRate(1.0, 1, learn=True)
    taken(rate, 60.0)
    assert rate.rate == pytest.approx(1.03, abs=0.002)
    idle = LearntRate(1.0, 1, learn=True)
    for second in range(0, 60, 3):
        idle.take(1000.0 + second)
    assert idle.rate == 1.0


def test_it_climbs_faster_once_the_quota_has_changed() -> None:
    """A rate ten times too low is mended in eight minutes."""
    rate = LearntRate(1.0, 1, learn=True)
    taken(rate, 480.0)
    assert rate.rate > 10.0


def test_it_stays_where_learning_is_off() -> None:
    """With `learn: false` neither turns nor refusals change it."""
    rate = LearntRate(1.0, 1, learn=False)
    taken(rate, 60.0)
    rate.refused()
    rate.resume(1100.0, 1060.0)
    assert rate.rate == 1.0
    assert rate.turn(low=False) == 1100.0


def test_a_refusal_lowers_it_a_little() -> None:
    """At about the right rate it goes down by a twentieth."""
    rate = LearntRate(1.0, 1, learn=True)
    taken(rate, 60.0)
    before = rate.rate
    rate.refused()
    rate.resume(1061.0, 1060.0)
    assert rate.rate == pytest.approx(0.95 * before, rel=0.01)


def test_a_far_too_high_rate_goes_to_what_was_accepted() -> None:
    """Sixty accepted in six seconds, and no more for the rest of a minute: a request a second."""
    rate = LearntRate(3.9, 1, learn=True)
    assert taken(rate, 15.0) == 59
    rate.refused()
    rate.resume(1060.0, 1015.2)
    assert rate.rate == pytest.approx(1.0, abs=0.02)


def test_one_cycle_lowers_it_to_a_quarter_at_most() -> None:
    """A long Retry-After after few requests may be a penalty, and says little of the quota."""
    rate = LearntRate(8.0, 1, learn=True)
    rate.take(1000.0)
    rate.accepted += 1
    rate.refused()
    rate.resume(1600.0, 1000.1)
    assert rate.rate == 2.0


def test_the_first_rate_is_what_was_accepted() -> None:
    """Where no rate was given the first refusal gives one; before that nobody waits."""
    rate = LearntRate(None, 1, learn=True)
    for turn in range(61):
        assert rate.turn(low=True) <= 1000.0 + turn / 100
        rate.take(1000.0 + turn / 100)
        rate.accepted += 1
    rate.refused()
    rate.resume(1060.0, 1000.7)
    assert rate.rate == pytest.approx(0.97, abs=0.02)


def test_it_never_goes_to_nothing() -> None:
    """A turn a minute is left, whatever is refused."""
    rate = LearntRate(None, 1, learn=True)
    for cycle in range(20):
        now = 1000.0 + cycle * 5000
        rate.take(now)
        rate.refused()
        rate.resume(now + 4000, now)
    assert rate.rate == LEAST


def test_an_idle_hour_says_nothing_of_the_quota() -> None:
    """A new cycle begins with the first request after a rest."""
    rate = LearntRate(1.0, 1, learn=True)
    taken(rate, 10.0)
    taken(rate, 10.0, start=4600.0)
    rate.refused()
    rate.resume(4611.0, 4610.0)
    assert rate.rate > 0.9


class Turns(RuleBasedStateMachine):
    """Turns that are taken when they are due, and a list of them."""

    @initialize(rate=st.sampled_from([0.5, 1.0, 7.0, 50.0]), burst=st.integers(1, 5))
    def build(self, rate: float, burst: int) -> None:
        self.rate = LearntRate(rate, burst, learn=False)
        self.now = 1000.0
        self.turns: list[float] = []

    @rule(hundredths=st.one_of(st.integers(0, 10), st.integers(0, 1000)))
    def wait(self, hundredths: int) -> None:
        self.now += hundredths / 100

    @rule(low=st.booleans(), many=st.integers(1, 8))
    def come(self, low: bool, many: int) -> None:
        for _ in range(many):
            if self.rate.turn(low=low) <= self.now:
                self.rate.take(self.now)
                self.turns.append(self.now)

    @rule(low=st.booleans())
    def wait_for_a_turn(self, low: bool) -> None:
        at = self.rate.turn(low=low)
        assert at <= self.now + self.rate.burst / self.rate.rate + 1e-6
        self.now = max(at, self.now)
        self.rate.take(self.now)
        self.turns.append(self.now)

    @invariant()
    def never_above_the_rate(self) -> None:
        """In any span of time: `burst` and what the rate allows, and nothing is unlimited."""
        assert self.rate.rate != UNKNOWN
        for first, since in enumerate(self.turns):
            spent = len(self.turns) - first
            span = self.turns[-1] - since + LATENESS
            assert spent <= self.rate.burst + span * self.rate.rate + 1e-6


Turns.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestTurns = Turns.TestCase
