"""Whether a new generation takes over: numbers in, a judgement out."""

from __future__ import annotations

import random

from sidecar.decisions.rollout import MOST_TIMES, Tally, Trial, shares, together


def trial(**changes: float) -> Trial:
    rule = {"error_rate": 0.02, "p95": 1.0, "window": 30.0, "minimum": 20, **changes}
    return Trial(0.0, **rule)  # type: ignore[arg-type]


def fed(one: Trial, share: float, *, per_second: int, seconds: float, slow: float = 0.01) -> float | None:
    """When it was rolled back, if it was: a share of the requests fails, evenly spread."""
    owed = 0.0
    for number in range(int(seconds * per_second)):
        now = number / per_second
        owed += share
        one.new.record(failed=owed >= 1, seconds=slow)
        owed -= owed >= 1
        judged = one.judge(now)
        if judged is not None:
            assert judged.outcome == "roll_back"
            return now
    return None


def test_one_that_fails_a_tenth_is_rolled_back_within_ten_seconds() -> None:
    """At 50 requests a second of its own it takes two; at 10, still less than ten."""
    for per_second in (10, 50):
        when = fed(trial(), 0.1, per_second=per_second, seconds=30)
        assert when is not None
        assert when < 10


def test_one_failure_among_the_first_ends_nothing() -> None:
    """Evidence is asked for, not chance: what fails as seldom as it may is hardly ever rolled back early."""
    one = trial()
    one.new.record(failed=True, seconds=0.1)
    assert one.judge(0.1) is None
    lucky = random.Random(7)  # reproducible
    ended = 0
    for _ in range(100):
        one = trial()
        for number in range(300):
            one.new.record(failed=lucky.random() < 0.01, seconds=0.01)
            if one.judge(number / 100) is not None:
                ended += 1
                break
    assert ended <= 5


def test_a_good_one_is_promoted_at_the_end_of_its_window() -> None:
    """Not before; the reason has the figures of both."""
    one = trial()
    assert fed(one, 0.0, per_second=5, seconds=29) is None
    one.old.record(failed=True, seconds=0.1)
    judged = one.judge(30.0)
    assert judged is not None
    assert judged.outcome == "promote"
    assert "0 of 145 failed" in judged.why
    assert "the one before: 1 of 1 failed" in judged.why


def test_a_slow_one_is_rolled_back() -> None:
    """Early with a hundred requests, at the end with what there is."""
    when = fed(trial(), 0.0, per_second=50, seconds=30, slow=1.5)
    assert when is not None
    assert when < 3
    assert fed(trial(p95=2.0), 0.0, per_second=50, seconds=29, slow=1.5) is None


def test_a_quiet_one_is_watched_longer_but_not_for_ever() -> None:
    """Too few requests: ten windows at most, then what there was decides."""
    one = trial()
    one.new.record(failed=False, seconds=0.1)
    assert one.judge(30.0) is None
    judged = one.judge(300.0)
    assert judged is not None
    assert judged.outcome == "promote"
    assert judged.why.startswith("few requests came")


def test_a_client_sees_one_generation() -> None:
    """The share is of clients, about as large as asked, and another one in the next rollout."""
    clients = [f"10.0.{n // 256}.{n % 256}" for n in range(5000)]
    first = {it for it in clients if shares(it, 0.1, 7)}
    assert first == {it for it in clients if shares(it, 0.1, 7)}
    assert 400 < len(first) < 600
    assert len(first & {it for it in clients if shares(it, 0.1, 8)}) < 150


def test_one_that_answers_nothing_is_rolled_back() -> None:
    """Its clients leave, at some time; none of them has failed by its status."""
    one = trial(p95=float("inf"))
    for _ in range(200):
        one.old.record(failed=False, seconds=0.01)
    for _ in range(30):
        one.new.record_left(5.0)
    judged = one.judge(5.0)
    assert judged is not None
    assert judged.outcome == "roll_back"
    assert "30 clients left unanswered" in judged.why


def test_clients_that_leave_everywhere_are_no_evidence() -> None:
    """As many leave beside: then it is their way, and not the generation's fault."""
    one = trial()
    for tally, count in ((one.old, 900), (one.new, 100)):
        for number in range(count):
            if number % 10:
                tally.record(failed=False, seconds=0.01)
            else:
                tally.record_left(0.01)
    assert one.judge(1.0) is None
    judged = one.judge(30.0)
    assert judged is not None
    assert judged.outcome == "promote"


def test_the_tallies_of_several_processes_are_one() -> None:
    """Slow answers count in it as they do in each, however many times there are in all."""
    parts = []
    for _ in range(4):
        tally = Tally()
        for number in range(MOST_TIMES):
            tally.record(failed=number % 100 == 0, seconds=2.0 if number % 10 == 0 else 0.01)
        tally.record_left(0.01)
        parts.append(tally)
    whole = together(parts)
    assert whole.requests == 4 * (MOST_TIMES + 1)
    assert whole.failures == sum(it.failures for it in parts)
    assert (whole.left, whole.p95) == (4, 2.0)
    assert len(whole.times) <= MOST_TIMES
