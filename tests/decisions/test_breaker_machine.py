"""The breaker beside a model of it: any order of calls, results, waits and overrides."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.decisions.breaker import Breaker, Permit, Reason, State
from sidecar.decisions.verdict import Outcome

OK, FAIL, IGNORE = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORE


@dataclass
class Settings:
    failure_ratio: float | None
    minimum_calls: int
    consecutive: int | None
    slow_ratio: float | None
    slow_over: float | None
    half_open_probes: int
    window: float = 10.0
    open_for: float = 2.0
    open_max: float = 16.0


SETTINGS = st.builds(
    Settings,
    failure_ratio=st.sampled_from([None, 0.25, 0.5, 1.0]),
    minimum_calls=st.integers(1, 6),
    consecutive=st.one_of(st.none(), st.integers(1, 4)),
    slow_ratio=st.sampled_from([None, 0.5, 1.0]),
    slow_over=st.sampled_from([None, 1.0]),
    half_open_probes=st.integers(1, 3),
)


@dataclass
class Stay:
    """What the model knows of the stay in the state that is now."""

    state: State
    since: float
    until: float = 0.0
    calls: list[tuple[float, Outcome, bool]] = field(default_factory=list)
    out: int = 0
    """Permits of this stay that were not given back."""
    counts: bool = True


class BesideAModel(RuleBasedStateMachine):
    @initialize(chosen=SETTINGS)
    def build(self, chosen: Settings) -> None:
        self.chosen = chosen
        self.breaker = Breaker(**vars(chosen))
        self.now = 1000.0
        self.stay = Stay(State.CLOSED, self.now)
        self.open_time = 0.0
        self.moves = 0
        self.out: list[tuple[Permit, Stay]] = []

    # -- what may happen -----------------------------------------------------------------------

    @rule(quarters=st.one_of(st.integers(0, 8), st.integers(0, 100)))
    def wait(self, quarters: int) -> None:
        self.now += quarters / 4

    @rule()
    def ask(self) -> None:
        permit = self.breaker.acquire(self.now)
        assert (permit is not None) == self.may_pass()
        if permit is not None:
            self.stay.out += 1
            self.out.append((permit, self.stay))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome), slow=st.booleans())
    def end(self, data: st.DataObject, outcome: Outcome, slow: bool) -> None:
        permit, stay = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        stay.out -= 1
        self.breaker.end(permit, outcome, self.now, 1.5 if slow else 1.0)
        if stay is self.stay and stay.counts and outcome is not IGNORE:
            stay.calls.append((self.now, outcome, slow and self.chosen.slow_over is not None))
            self.judge()

    @rule(outcome=st.sampled_from([OK, FAIL]), many=st.integers(1, 6))
    def calls(self, outcome: Outcome, many: int) -> None:
        for _ in range(many):
            permit = self.breaker.acquire(self.now)
            assert (permit is not None) == self.may_pass()
            if permit is None:
                return
            self.breaker.end(permit, outcome, self.now, 0.5)
            if self.stay.counts:
                self.stay.calls.append((self.now, outcome, False))
                self.judge()

    @rule(state=st.sampled_from(State), seconds=st.one_of(st.none(), st.integers(1, 20)))
    def force(self, state: State, seconds: int | None) -> None:
        until = None if seconds is None else self.now + seconds
        self.breaker.force(state, until, self.now)
        self.move(state)
        if state is not State.HALF_OPEN:
            self.stay.until = float("inf") if until is None else until
        self.stay.counts = state is not State.CLOSED

    # -- the model -----------------------------------------------------------------------------

    def may_pass(self) -> bool:
        stay = self.stay
        if stay.state is State.CLOSED:
            if not stay.counts and self.now >= stay.until:
                self.stay = Stay(State.CLOSED, self.now)
            return True
        if stay.state is State.OPEN:
            if self.now < stay.until:
                return False
            self.move(State.HALF_OPEN)
        return self.stay.out < self.chosen.half_open_probes

    def judge(self) -> None:
        if self.stay.state is State.HALF_OPEN:
            self.judge_probes()
        else:
            self.judge_calls()

    def judge_probes(self) -> None:
        calls = self.stay.calls
        if calls[-1][1] is FAIL:
            self.open()
        elif len(calls) == self.chosen.half_open_probes:
            if self.reached(sum(slow for *_, slow in calls), self.chosen.slow_ratio, len(calls)):
                self.open()
            else:
                self.move(State.CLOSED)
                self.open_time = 0.0

    def judge_calls(self) -> None:
        """Triggers look when a call of their kind ends; the window is ten buckets of a second."""
        calls, chosen = self.stay.calls, self.chosen
        recent = [each for each in calls if int(each[0]) > int(self.now) - 10]
        _, last, was_slow = calls[-1]
        streak = 0
        for _, outcome, _ in reversed(calls):
            if outcome is OK:
                break
            streak += 1
        failures = sum(outcome is FAIL for _, outcome, _ in recent)
        slow = sum(slow for *_, slow in recent)
        enough = len(recent) >= chosen.minimum_calls
        if (
            (last is FAIL and chosen.consecutive is not None and streak >= chosen.consecutive)
            or (last is FAIL and enough and self.reached(failures, chosen.failure_ratio, len(recent)))
            or ((was_slow or last is FAIL) and enough and self.reached(slow, chosen.slow_ratio, len(recent)))
        ):
            self.open()

    @staticmethod
    def reached(part: int, ratio: float | None, whole: int) -> bool:
        return ratio is not None and part > 0 and part >= ratio * whole

    def open(self) -> None:
        self.open_time = min(self.open_time * 2, self.chosen.open_max) or self.chosen.open_for
        self.move(State.OPEN)
        self.stay.until = self.now + self.open_time

    def move(self, state: State) -> None:
        if state is State.CLOSED:
            self.open_time = 0.0
        self.stay = Stay(state, self.now)
        self.moves += 1

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def states_agree(self) -> None:
        overdue = self.stay.state is State.OPEN and self.now >= self.stay.until
        assert self.breaker.state(self.now) is (State.HALF_OPEN if overdue else self.stay.state)
        assert self.breaker.transitions == self.moves

    @invariant()
    def probes_are_bounded_and_balance(self) -> None:
        assert 0 <= self.breaker.probing <= self.chosen.half_open_probes
        assert self.breaker.probing == (self.stay.out if self.stay.state is State.HALF_OPEN else 0)

    @invariant()
    def waiting_times_are_honest(self) -> None:
        left = self.breaker.retry_after(self.now)
        assert left >= 0.0
        if self.breaker.last is None or self.breaker.last.reason is not Reason.FORCED:
            assert left <= self.chosen.open_max
        if self.stay.state is State.OPEN and self.stay.until < float("inf"):
            assert left == pytest.approx(max(self.stay.until - self.now, 0.0))

    @invariant()
    def opened_at_is_when_it_opened(self) -> None:
        if self.stay.state is State.CLOSED:
            assert self.breaker.opened_at is None
        elif self.stay.state is State.OPEN:
            assert self.breaker.opened_at == self.stay.since

    @invariant()
    def opens_for_a_reason(self) -> None:
        last, chosen = self.breaker.last, self.chosen
        if last is None:
            return
        assert last.at == self.stay.since or self.stay.state is State.CLOSED
        allowed = {
            Reason.CONSECUTIVE: chosen.consecutive is not None,
            Reason.FAILURE_RATIO: chosen.failure_ratio is not None,
            Reason.SLOW_RATIO: chosen.slow_ratio is not None and chosen.slow_over is not None,
            Reason.PROBES_SLOW: chosen.slow_ratio is not None and chosen.slow_over is not None,
        }
        assert allowed.get(last.reason, True)


BesideAModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBesideAModel = BesideAModel.TestCase
