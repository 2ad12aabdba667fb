from __future__ import annotations

from typing import Any

import pytest

from sidecar.decisions.breaker import PROBING_RETRY, Breaker, Permit, Reason, State, Transition
from sidecar.decisions.verdict import Outcome

OK, FAIL, IGNORE = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORE
OFF: dict[str, Any] = {"failure_ratio": None, "consecutive": None}
FAST, SLOW = 0.1, 3.0


def breaker(**settings: Any) -> Breaker:
    """Five in a row open it, for 5 s at first; nothing else does, unless `settings` say so."""
    usual: dict[str, Any] = {
        "failure_ratio": None,
        "window": 20.0,
        "consecutive": 5,
        "open_for": 5.0,
        "open_max": 60.0,
    }
    return Breaker(**(usual | settings))


def call(breaker: Breaker, outcome: Outcome, now: float, elapsed: float = FAST) -> None:
    breaker.end(admitted(breaker, now), outcome, now, elapsed)


def admitted(breaker: Breaker, now: float) -> Permit:
    permit = breaker.acquire(now)
    assert permit is not None
    return permit


def opened(now: float = 100.0, **settings: Any) -> Breaker:
    """One that five failures opened at `now`."""
    it = breaker(**settings)
    for _ in range(5):
        call(it, FAIL, now)
    assert it.state(now) is State.OPEN
    return it


class TestClosed:
    def test_starts_closed(self) -> None:
        """A new breaker lets everything through and has no history."""
        it = breaker()
        assert it.state(0.0) is State.CLOSED
        assert (it.transitions, it.last, it.opened_at, it.retry_after(0.0)) == (0, None, None, 0.0)
        assert admitted(it, 0.0).label == "closed"

    def test_consecutive_failures_open(self) -> None:
        """The fifth failure in a row opens, and the reader can see why."""
        it = breaker()
        for _ in range(4):
            call(it, FAIL, 100.0)
        assert it.state(100.0) is State.CLOSED
        call(it, FAIL, 101.0)
        assert it.acquire(101.0) is None
        assert it.opened_at == 101.0
        assert it.last == Transition(State.CLOSED, State.OPEN, 101.0, Reason.CONSECUTIVE)

    def test_a_success_ends_the_streak(self) -> None:
        """Four failures, a success, four failures: not five in a row."""
        it = breaker()
        for outcome in [FAIL] * 4 + [OK] + [FAIL] * 4:
            call(it, outcome, 100.0)
        assert it.state(100.0) is State.CLOSED

    def test_ignored_results_do_not_touch_the_streak(self) -> None:
        """A rejection of our own between failures neither counts nor forgives."""
        it = breaker()
        for outcome in [FAIL, IGNORE] * 4:
            call(it, outcome, 100.0)
        assert it.state(100.0) is State.CLOSED
        call(it, FAIL, 100.0)
        assert it.state(100.0) is State.OPEN

    def test_a_streak_does_not_age(self) -> None:
        """Five failures in a row are five failures in a row, however rare the calls."""
        it = breaker()
        for n in range(5):
            call(it, FAIL, 100.0 + 3600 * n)
        assert it.state(100.0 + 4 * 3600) is State.OPEN

    @pytest.mark.parametrize(
        ("outcomes", "state"),
        [
            ([FAIL] * 9, State.CLOSED),
            ([FAIL] * 10, State.OPEN),
            ([OK] * 5 + [FAIL] * 4, State.CLOSED),
            ([OK] * 5 + [FAIL] * 5, State.OPEN),
            ([OK] * 6 + [FAIL] * 5, State.CLOSED),
            ([OK] * 6 + [FAIL] * 6, State.OPEN),
            ([OK] * 5 + [IGNORE] * 10 + [FAIL] * 4, State.CLOSED),
            ([IGNORE] * 10 + [FAIL] * 2, State.CLOSED),
        ],
    )
    def test_a_share_of_failures_opens(self, outcomes: list[Outcome], state: State) -> None:
        """Half of at least ten calls; ignored ones are no calls."""
        it = breaker(failure_ratio=0.5, minimum_calls=10, consecutive=None)
        for outcome in outcomes:
            call(it, outcome, 100.0)
        assert it.state(100.0) is state
        if state is State.OPEN:
            assert it.last is not None
            assert it.last.reason is Reason.FAILURE_RATIO

    def test_an_exact_share_is_reached_in_spite_of_rounding(self) -> None:
        """7 of 100 is 7 %, though 0.07 × 100 is a little more than 7 in floats."""
        it = breaker(failure_ratio=0.07, minimum_calls=100, consecutive=None)
        for outcome in [OK] * 93 + [FAIL] * 7:
            call(it, outcome, 100.0)
        assert it.state(100.0) is State.OPEN

    def test_old_failures_leave_the_window(self) -> None:
        """Failures of more than a window ago do not add up with new ones."""
        it = breaker(failure_ratio=0.5, minimum_calls=5, window=20.0, consecutive=None)
        for _ in range(4):
            call(it, FAIL, 100.0)
        call(it, FAIL, 120.0)
        assert it.state(120.0) is State.CLOSED

    def test_old_successes_leave_the_window(self) -> None:
        """A good past does not hide a bad present."""
        it = breaker(failure_ratio=0.5, minimum_calls=5, window=20.0, consecutive=None)
        for _ in range(1000):
            call(it, OK, 100.0)
        for _ in range(5):
            call(it, FAIL, 121.0)
        assert it.state(121.0) is State.OPEN

    def test_slow_calls_open(self) -> None:
        """Slow answers open it though each is a success; as slow as allowed is not slow."""
        it = breaker(slow_ratio=0.8, slow_over=2.0, minimum_calls=5, consecutive=None)
        call(it, OK, 100.0, 2.0)
        for _ in range(3):
            call(it, OK, 100.0, 2.1)
        assert it.state(100.0) is State.CLOSED
        call(it, OK, 100.0, 2.1)
        assert it.state(100.0) is State.OPEN
        assert it.last is not None
        assert it.last.reason is Reason.SLOW_RATIO

    def test_slow_failures_count_as_slow(self) -> None:
        """A timeout is a slow call too."""
        it = breaker(slow_ratio=0.5, slow_over=2.0, minimum_calls=2, consecutive=None)
        call(it, OK, 100.0, FAST)
        call(it, FAIL, 100.0, SLOW)
        assert it.state(100.0) is State.OPEN

    def test_every_trigger_can_be_off(self) -> None:
        """With no trigger set nothing ever opens it."""
        it = Breaker(**OFF)
        for _ in range(1000):
            call(it, FAIL, 100.0, SLOW)
        assert it.state(100.0) is State.CLOSED

    def test_late_results_of_another_generation_are_ignored(self) -> None:
        """What was started before the breaker opened and closed again says nothing of now."""
        it = breaker(consecutive=2)
        late = [admitted(it, 100.0) for _ in range(6)]
        it.end(late.pop(), FAIL, 100.0, FAST)
        it.end(late.pop(), FAIL, 100.0, FAST)
        it.end(late.pop(), FAIL, 101.0, FAST)
        assert it.transitions == 1
        for _ in range(3):
            call(it, OK, 105.0)
        assert it.state(105.0) is State.CLOSED
        while late:
            it.end(late.pop(), FAIL, 106.0, FAST)
        assert it.state(106.0) is State.CLOSED

    def test_a_generation_shares_one_permit(self) -> None:
        """Permits tell generations apart, not attempts."""
        it = opened(100.0)
        probes = {admitted(it, 105.0) for _ in range(3)}
        for probe in list(probes) * 3:
            it.end(probe, OK, 105.0, FAST)
        assert len(probes) == 1
        assert len({admitted(it, 106.0) for _ in range(3)} | probes) == 2


class TestOpen:
    def test_refuses_until_the_time_is_over(self) -> None:
        """Nobody passes for five seconds, and everybody is told how long."""
        it = opened(100.0)
        assert [it.acquire(now) for now in (100.0, 102.0, 104.999)] == [None, None, None]
        assert [it.retry_after(now) for now in (100.0, 102.0, 105.0, 110.0)] == [5.0, 3.0, 0.0, 0.0]
        assert admitted(it, 105.0).label == "half_open"

    def test_reads_as_half_open_when_the_time_is_over(self) -> None:
        """A reader sees that probes may pass; the transition itself waits for one."""
        it = opened(100.0)
        assert it.state(104.9) is State.OPEN
        assert it.state(105.0) is State.HALF_OPEN
        assert it.transitions == 1
        admitted(it, 107.0)
        assert it.last == Transition(State.OPEN, State.HALF_OPEN, 107.0, Reason.OPEN_TIME_OVER)

    def test_the_time_doubles_up_to_the_longest(self) -> None:
        """5, 10, 20, 40, then 60 s for ever, while the probes fail."""
        it = opened(100.0)
        now, times = 100.0, []
        for _ in range(6):
            times.append(it.retry_after(now))
            now += times[-1]
            call(it, FAIL, now)
        assert times == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]

    def test_the_time_is_short_again_after_closing(self) -> None:
        """A recovery resets the growth."""
        it = opened(100.0)
        call(it, FAIL, 105.0)
        assert it.retry_after(105.0) == 10.0
        for _ in range(3):
            call(it, OK, 115.0)
        assert it.state(115.0) is State.CLOSED
        for _ in range(5):
            call(it, FAIL, 116.0)
        assert it.retry_after(116.0) == 5.0

    def test_results_while_open_change_nothing(self) -> None:
        """Attempts that were under way when it opened neither extend nor end the open time."""
        it = breaker(consecutive=1)
        late = [admitted(it, 100.0) for _ in range(3)]
        it.end(late.pop(), FAIL, 100.0, FAST)
        it.end(late.pop(), FAIL, 103.0, FAST)
        it.end(late.pop(), OK, 104.0, FAST)
        assert (it.transitions, it.retry_after(104.0)) == (1, 1.0)


class TestHalfOpen:
    def test_lets_only_the_probes_through(self) -> None:
        """Three at a time, no more; who is refused may come back soon."""
        it = opened(100.0, half_open_probes=3)
        probes = [it.acquire(105.0) for _ in range(5)]
        assert [probe is not None for probe in probes] == [True, True, True, False, False]
        assert it.probing == 3
        assert it.retry_after(105.0) == PROBING_RETRY

    def test_a_probe_that_ends_makes_room_for_another(self) -> None:
        """The limit is on probes in flight."""
        it = opened(100.0, half_open_probes=2)
        first, _second = admitted(it, 105.0), admitted(it, 105.0)
        assert it.acquire(105.0) is None
        it.end(first, OK, 105.1, FAST)
        assert it.acquire(105.1) is not None

    def test_enough_successes_close(self) -> None:
        """As many successes as probes are allowed close it; one less does not."""
        it = opened(100.0, half_open_probes=3)
        call(it, OK, 105.0)
        call(it, OK, 105.0)
        assert it.state(105.0) is State.HALF_OPEN
        call(it, OK, 106.0)
        assert it.state(106.0) is State.CLOSED
        assert it.opened_at is None
        assert it.last == Transition(State.HALF_OPEN, State.CLOSED, 106.0, Reason.PROBES_SUCCEEDED)

    def test_one_failure_opens_again(self) -> None:
        """Two good probes do not outweigh a bad one."""
        it = opened(100.0, half_open_probes=3)
        call(it, OK, 105.0)
        call(it, OK, 105.0)
        call(it, FAIL, 106.0)
        assert it.acquire(106.0) is None
        assert it.opened_at == 106.0
        assert it.last == Transition(State.HALF_OPEN, State.OPEN, 106.0, Reason.PROBE_FAILED)

    def test_an_ignored_probe_gives_its_place_back(self) -> None:
        """A probe that was cancelled or rejected on the way neither closes nor opens."""
        it = opened(100.0, half_open_probes=1)
        for _ in range(10):
            call(it, IGNORE, 105.0)
        assert it.state(105.0) is State.HALF_OPEN
        assert (it.transitions, it.probing) == (2, 0)
        call(it, OK, 105.0)
        assert it.state(105.0) is State.CLOSED

    def test_probes_of_an_earlier_half_open_are_ignored(self) -> None:
        """A slow probe of the last round cannot close this one, nor take or give back its places."""
        it = opened(100.0, half_open_probes=2)
        late, failing = admitted(it, 105.0), admitted(it, 105.0)
        it.end(failing, FAIL, 105.0, FAST)
        assert it.acquire(115.0) is not None
        it.end(late, OK, 115.0, 10.0)
        assert (it.state(115.0), it.probing) == (State.HALF_OPEN, 1)
        assert it.acquire(115.0) is not None
        assert it.acquire(115.0) is None

    def test_closed_starts_afresh(self) -> None:
        """What led to opening is forgotten: it takes a full count to open again."""
        it = opened(100.0, failure_ratio=0.5, minimum_calls=5, consecutive=5)
        for _ in range(3):
            call(it, OK, 105.0)
        for _ in range(4):
            call(it, FAIL, 105.0)
        assert it.state(105.0) is State.CLOSED
        call(it, FAIL, 105.0)
        assert it.state(105.0) is State.OPEN

    def test_calls_of_before_do_not_thin_out_failures(self) -> None:
        """After closing, the share is of the calls since then."""
        it = breaker(failure_ratio=0.6, minimum_calls=5, consecutive=None)
        for outcome in [OK, OK] + [FAIL] * 3:
            call(it, outcome, 100.0)
        for outcome in [OK] * 3 + [OK, OK] + [FAIL] * 3:
            call(it, outcome, 105.0)
        assert it.state(105.0) is State.OPEN

    def test_slow_calls_of_before_are_forgotten(self) -> None:
        """After closing, one slow call among fast ones is one slow call."""
        it = breaker(slow_ratio=0.8, slow_over=2.0, minimum_calls=5, consecutive=None)
        for _ in range(5):
            call(it, OK, 100.0, SLOW)
        for elapsed in [FAST] * 3 + [FAST] * 4 + [SLOW]:
            call(it, OK, 105.0, elapsed)
        assert it.state(105.0) is State.CLOSED

    def test_slow_probes_of_before_are_forgotten(self) -> None:
        """Each round of probes is judged by itself."""
        it = opened(100.0, slow_ratio=0.8, slow_over=2.0)
        call(it, OK, 105.0, SLOW)
        call(it, FAIL, 105.0)
        for elapsed in (SLOW, SLOW, FAST):
            call(it, OK, 115.0, elapsed)
        assert it.state(115.0) is State.CLOSED

    @pytest.mark.parametrize(
        ("times", "state", "reason"),
        [
            ([SLOW, SLOW, SLOW], State.OPEN, Reason.PROBES_SLOW),
            ([SLOW, SLOW, FAST], State.CLOSED, Reason.PROBES_SUCCEEDED),
            ([FAST, FAST, FAST], State.CLOSED, Reason.PROBES_SUCCEEDED),
        ],
    )
    def test_slow_probes_do_not_close(self, times: list[float], state: State, reason: Reason) -> None:
        """When too large a share of the probes was slow, it opens again, for longer."""
        it = opened(100.0, slow_ratio=0.8, slow_over=2.0)
        for elapsed in times:
            call(it, OK, 110.0, elapsed)
        assert it.state(110.0) is state
        assert it.last is not None
        assert it.last.reason is reason
        assert it.retry_after(110.0) == (10.0 if state is State.OPEN else 0.0)


class TestForce:
    def test_isolated_until_a_time(self) -> None:
        """Nobody passes until then; then it probes."""
        it = breaker()
        it.force(State.OPEN, 200.0, 100.0)
        assert it.acquire(199.9) is None
        assert it.retry_after(150.0) == 50.0
        assert admitted(it, 200.0).state is State.HALF_OPEN
        assert it.transitions == 2

    def test_isolated_until_told_otherwise(self) -> None:
        """Without an end it stays isolated; clients are told the longest open time."""
        it = breaker()
        it.force(State.OPEN, None, 100.0)
        assert it.acquire(1e9) is None
        assert it.retry_after(1e9) == 60.0
        it.force(None, None, 1e9)
        assert admitted(it, 1e9).state is State.HALF_OPEN

    def test_forced_closed_lets_failures_through(self) -> None:
        """An operator may insist that the upstream is tried, whatever comes back."""
        it = opened(100.0)
        it.force(State.CLOSED, None, 101.0)
        for _ in range(50):
            call(it, FAIL, 102.0)
        assert it.state(102.0) is State.CLOSED
        assert it.last == Transition(State.OPEN, State.CLOSED, 101.0, Reason.FORCED)

    @pytest.mark.parametrize("told", [True, False])
    def test_what_happened_while_forced_closed_does_not_count(self, told: bool) -> None:
        """When the time is over, or somebody ends it, measuring starts from nothing."""
        it = breaker()
        it.force(State.CLOSED, None if told else 110.0, 100.0)
        late = admitted(it, 109.0)
        for _ in range(50):
            call(it, FAIL, 109.0)
        if told:
            it.force(None, None, 110.0)
        for _ in range(4):
            call(it, FAIL, 110.0)
        it.end(late, FAIL, 110.0, FAST)
        assert it.state(110.0) is State.CLOSED
        call(it, FAIL, 110.0)
        assert it.state(110.0) is State.OPEN

    def test_forced_half_open_probes_at_once(self) -> None:
        """An operator who knows that the upstream is back need not wait."""
        it = opened(100.0)
        it.force(State.HALF_OPEN, None, 101.0)
        for _ in range(3):
            call(it, OK, 101.0)
        assert it.state(101.0) is State.CLOSED

    def test_nothing_to_end(self) -> None:
        """Ending an override where there is none leaves an open breaker open."""
        it = opened(100.0)
        it.force(None, None, 101.0)
        assert it.acquire(101.0) is None
        assert it.retry_after(101.0) == 4.0

    def test_a_closed_breaker_needs_no_end(self) -> None:
        """Ending an override on a breaker that was never touched changes nothing."""
        it = breaker()
        it.force(None, None, 100.0)
        assert (it.transitions, it.state(100.0)) == (0, State.CLOSED)


@pytest.mark.parametrize("settings", [{"window": 0.0}, {"half_open_probes": 0}])
def test_nonsense_is_refused(settings: dict[str, Any]) -> None:
    """A breaker that could never judge, or never close, is a ValueError."""
    with pytest.raises(ValueError, match="a breaker needs"):
        Breaker(**settings)


def test_states_are_the_words_of_metrics_and_logs() -> None:
    """The values that people see."""
    assert [state.value for state in State] == ["closed", "open", "half_open"]
