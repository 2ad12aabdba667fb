"""Whose turn it is, by what answers said."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sidecar.decisions.pacer import LONGEST_PAUSE, MOST_WINDOWS, Mark, Pacer
from sidecar.decisions.quota_headers import Quota, Stated
from sidecar.decisions.quota_window import NEVER
from sidecar.decisions.verdict import Verdict
from tests.support.quotas import FixedWindow, SlidingLog, TokenBucket
from tests.support.quotas import Quota as Counting

START = 1000.0
OK, REFUSED = Verdict.OK, Verdict.RATE_LIMITED


def learning(rate: float | None = None, burst: int = 1, hold: float | None = 60.0) -> Pacer:
    return Pacer(rate, burst, learn=True, hold=hold)


def left(remaining: int, reset: float, limit: int | None = 60, name: str = "requests") -> Stated:
    return Stated((Quota(name, remaining, reset, limit),))


def told(
    pacer: Pacer, stated: Stated, now: float = START, verdict: Verdict = OK, asked: float | None = None
) -> None:
    """A request whose answer comes at once."""
    pacer.answered(pacer.take(now, low=False), now, verdict, stated, asked)


def batch_turns(pacer: Pacer, provider: Counting, count: int, now: float = START) -> list[float]:
    """When `count` batch requests in a row go, each answered at once by the provider, which refuses none."""
    turns = []
    for _ in range(count):
        while (at := pacer.next_turn(now, low=True)) > now:
            now = at
        turns.append(now - START)
        mark = pacer.take(now, low=True)
        counted = provider.count(now)
        assert counted.admitted
        pacer.answered(mark, now, OK, left(counted.remaining, counted.reset, provider.limit))
    return turns


# -- nothing known ---------------------------------------------------------------------------------


def test_interactive_requests_wait_for_nothing_unknown() -> None:
    """Where nothing was stated or refused they all go at once."""
    pacer = learning()
    for _ in range(100):
        assert pacer.next_turn(START, low=False) <= START
        pacer.take(START, low=False)


def test_batch_begins_with_one() -> None:
    """The first answer is waited for; with each good one, one more goes at a time."""
    pacer = learning()
    under_way: list[Mark] = []
    widths = []
    for _ in range(4):
        while pacer.next_turn(START, low=True) <= START:
            under_way.append(pacer.take(START, low=True))
        widths.append(len(under_way))
        for mark in under_way:
            pacer.answered(mark, START, OK)
        under_way.clear()
    assert widths == [1, 2, 4, 8]


def test_a_given_rate_is_believed() -> None:
    """With a rate batch requests need not find out anything first."""
    pacer = learning(10.0)
    pacer.take(START, low=True)
    assert pacer.next_turn(START, low=True) == pytest.approx(START + 0.1)


# -- stated ----------------------------------------------------------------------------------------


def test_what_is_left_is_spread_over_the_time_to_the_reset() -> None:
    """A batch request each second, of 60 for a minute; the last one before the window ends."""
    turns = batch_turns(learning(), FixedWindow(60, 60.0, offset=START), 60)
    assert turns[0] == 0
    distances = [after - before for before, after in pairwise(turns)]
    assert distances == pytest.approx([60 / 59.5] * 59, rel=0.02)
    assert turns[-1] < 60


def test_interactive_requests_take_of_it_at_once() -> None:
    """What is left at any moment is there for them, and batch requests slow down."""
    pacer = learning()
    told(pacer, left(40, 60.0))
    pacer.take(START, low=True)
    before = pacer.next_turn(START, low=True)
    for _ in range(20):
        assert pacer.next_turn(START, low=False) <= START
        pacer.take(START, low=False)
    assert pacer.next_turn(START, low=True) > before


def test_nothing_goes_when_nothing_is_left() -> None:
    """All wait for the reset; then the whole is there again."""
    pacer = learning()
    told(pacer, left(1, 30.0))
    pacer.take(START, low=False)
    assert pacer.next_turn(START, low=False) == START + 30
    assert pacer.next_turn(START + 30, low=False) <= START + 30
    assert pacer.remaining(START + 30) == 59  # one may be counted there


def test_batch_leaves_what_others_will_want() -> None:
    """As many as interactive requests took of late are kept for them, up to the reset."""
    alone, beside = learning(), learning()
    for second in range(60):
        beside.take(START + second, low=False)
    for pacer in (alone, beside):
        told(pacer, left(50, 100.0), START + 60)
    for second in range(30):
        told(beside, left(50, 40.0), START + 60 + second)
    for pacer in (alone, beside):
        pacer.take(START + 90, low=True)
    assert beside.next_turn(START + 90, low=True) - alone.next_turn(START + 90, low=True) > 1.0


def test_a_bucket_is_known_by_its_reset() -> None:
    """Where each request moves the reset away, tokens come back one by one: so does the next turn."""
    pacer, bucket = learning(), TokenBucket(60, 60.0)
    batch_turns(pacer, bucket, 40)
    (window,) = pacer.windows
    assert window.refill == pytest.approx(1.0, rel=0.1)
    now = START + 1
    while pacer.next_turn(now, low=False) <= now:
        pacer.take(now, low=False)
    assert pacer.next_turn(now, low=False) < now + 1.2


def test_a_bucket_is_kept_half_full() -> None:
    """In the long run batch requests go as tokens come back, and half of them stay for the others."""
    pacer, bucket = learning(), TokenBucket(60, 60.0)
    turns = batch_turns(pacer, bucket, 200)
    assert turns[-1] - turns[-61] == pytest.approx(60, rel=0.03)
    assert pacer.remaining(START + turns[-1]) == pytest.approx(30, abs=3)


def test_a_sliding_window_brings_back_what_it_brought_before() -> None:
    """Where a reset brings one and not the whole, one is expected of the next."""
    pacer = learning()
    turns = batch_turns(pacer, SlidingLog(10, 10.0), 60)
    assert turns[-1] == pytest.approx(59, rel=0.1)
    assert pacer.windows[0].renewal < 3


def test_the_tightest_quota_counts() -> None:
    """Of several that are stated all must have something left."""
    pacer = learning()
    both = Stated((Quota("minute", 10, 60.0, 10), Quota("day", 1, 3600.0, 1000)))
    told(pacer, both)
    assert pacer.remaining(START) == 1
    pacer.take(START, low=False)
    assert pacer.next_turn(START, low=False) == START + 3600


def test_a_quota_of_something_else_blocks_when_it_is_used_up() -> None:
    """No tokens left: nothing goes until they are back."""
    pacer = learning()
    told(pacer, Stated((Quota("requests", 50, 60.0, 60),), empty_for=9.0))
    assert pacer.next_turn(START, low=False) == START + 9
    assert pacer.next_turn(START + 9, low=False) <= START + 9


def test_answers_may_overtake_one_another() -> None:
    """What an older request was told says nothing new; who is under way is counted as if it had been."""
    pacer = learning()
    told(pacer, left(50, 60.0))
    first, second = pacer.take(START, low=False), pacer.take(START, low=False)
    pacer.answered(second, START, OK, left(48, 60.0))
    assert pacer.remaining(START) == 48
    pacer.answered(first, START, OK, left(49, 60.0))
    assert pacer.remaining(START) == 48


def test_others_may_use_the_quota_too() -> None:
    """What the provider says is left is never exceeded, whatever we have counted."""
    pacer = learning()
    told(pacer, left(50, 60.0))
    told(pacer, left(12, 59.0))
    assert pacer.remaining(START) == 12


def test_a_changed_limit_is_followed() -> None:
    """A provider that raises the limit has its new quota used from the next answer on."""
    pacer = learning()
    told(pacer, left(0, 1.0, 10))
    told(pacer, left(99, 60.0, 100), START + 2)
    assert pacer.remaining(START + 2) == 99


def test_a_quota_that_is_stated_no_more_is_forgotten() -> None:
    """After its reset, an answer without a word of it ends what was known."""
    pacer = learning()
    told(pacer, left(0, 5.0))
    assert pacer.next_turn(START + 5, low=False) <= START + 5
    told(pacer, Stated(), START + 6)
    assert pacer.windows == []
    assert pacer.pace(START + 6) is None


def test_names_do_not_pile_up() -> None:
    """A provider that names its quota anew each time leaves no more than a few."""
    pacer = learning()
    for number in range(100):
        told(pacer, left(50, 60.0, name=f"q{number}"))
    assert len(pacer.windows) == MOST_WINDOWS


def test_a_reset_in_a_month_is_looked_for_each_day() -> None:
    """No answer stops everything for longer than a day; then a single request finds out."""
    pacer = learning()
    told(pacer, left(0, 30 * 86400.0))
    day = START + 86400
    assert pacer.next_turn(START, low=False) == day
    assert pacer.next_turn(day, low=False) <= day
    mark = pacer.take(day, low=False)
    assert pacer.next_turn(day, low=False) == NEVER
    pacer.answered(mark, day, REFUSED, left(0, 29 * 86400.0), None)
    assert pacer.next_turn(day, low=False) == day + 86400


def test_learning_can_be_off() -> None:
    """With `learn: false` what is stated is not looked at."""
    pacer = Pacer(None, 1, learn=False, hold=None)
    told(pacer, left(0, 60.0))
    assert pacer.next_turn(START, low=True) <= START


# -- refused ---------------------------------------------------------------------------------------


def test_retry_after_holds_all_back() -> None:
    """Nothing goes before that; then the rate is what was accepted before."""
    pacer = learning()
    told(pacer, Stated(), verdict=REFUSED, asked=6.0)
    assert pacer.next_turn(START + 5.9, low=False) == START + 6
    assert pacer.next_turn(START + 6, low=False) <= START + 6


def test_an_absurd_retry_after_ends_after_a_day() -> None:
    """A provider's slip does not stop an upstream for years."""
    pacer = learning()
    told(pacer, Stated(), verdict=REFUSED, asked=1e9)
    assert pacer.next_turn(START, low=False) == START + 86400


def test_pauses_double_and_one_finds_out() -> None:
    """Refused without a word: 1 s, 2 s, … a minute at most, and a single request after each."""
    pacer = learning()
    told(pacer, Stated(), verdict=REFUSED)
    now, pauses = START, []
    for _ in range(8):
        at = pacer.next_turn(now, low=False)
        pauses.append(at - now)
        now = at
        assert pacer.probing
        mark = pacer.take(now, low=False)
        assert pacer.next_turn(now, low=False) == NEVER
        pacer.answered(mark, now, REFUSED)
    assert pauses == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE]
    now = pacer.next_turn(now, low=False)
    pacer.answered(pacer.take(now, low=False), now, OK)
    assert not pacer.probing
    assert pacer.next_turn(now + 60, low=False) <= now + 60


def test_those_refused_together_count_once() -> None:
    """Ten requests that were under way when the first was refused do not lower the rate ten times."""
    pacer = learning(10.0, burst=10)
    marks = [pacer.take(START, low=False) for _ in range(10)]
    for mark in marks:
        pacer.answered(mark, START, REFUSED, asked=1.0)
    assert pacer.rate.rate == pytest.approx(2.5, rel=0.01)  # nothing was accepted: a quarter, once


def test_a_window_that_was_refused_lets_one_find_out() -> None:
    """After a refusal with nothing left the reset may be wrong: one request goes, then the others."""
    pacer = learning()
    told(pacer, left(0, 30.0), verdict=REFUSED, asked=20.0)
    at = pacer.next_turn(START, low=False)
    assert at == START + 20
    assert pacer.next_turn(at, low=False) <= at
    mark = pacer.take(at, low=False)
    assert pacer.next_turn(at, low=False) == NEVER
    pacer.answered(mark, at, OK, left(59, 60.0))
    assert pacer.next_turn(at, low=False) <= at
    assert pacer.remaining(at) == 59


def test_the_one_who_finds_out_may_be_lost() -> None:
    """When no answer comes the next one goes in its place."""
    pacer = learning()
    told(pacer, left(0, 30.0), verdict=REFUSED)
    at = START + 30
    assert pacer.next_turn(at, low=False) <= at
    mark = pacer.take(at, low=False)
    pacer.lost(mark, sent=True)
    assert pacer.next_turn(at, low=False) <= at


def test_refused_in_vain_a_bucket_is_none() -> None:
    """Twice in a row without a token where one should be: it is taken for a window again."""
    pacer, bucket = learning(), TokenBucket(60, 60.0)
    batch_turns(pacer, bucket, 40)
    assert pacer.windows[0].refill
    now = START + 100
    told(pacer, left(0, 60.0), now, REFUSED)
    assert pacer.windows[0].refill
    now = pacer.next_turn(now, low=False)
    told(pacer, left(0, 60.0), now, REFUSED)
    assert not pacer.windows[0].refill


# -- turns that are not used -----------------------------------------------------------------------


def test_a_turn_given_back_is_there_again() -> None:
    """The rate and the quota are as if it had never been."""
    pacer = learning(1.0)
    pacer.take(START, low=False)
    before = pacer.before()
    mark = pacer.take(START + 1, low=True)
    pacer.give_back(mark, before)
    assert pacer.next_turn(START + 1, low=True) <= START + 1
    stated = learning()
    told(stated, left(2, 60.0))
    stated.give_back(stated.take(START, low=False), stated.before())
    assert stated.remaining(START) == 2


def test_a_turn_given_back_late_moves_nobody() -> None:
    """Where others have had theirs since, their distances stay."""
    pacer = learning(1.0)
    before = pacer.before()
    first = pacer.take(START, low=False)
    pacer.take(START + 1, low=False)
    pacer.give_back(first, before)
    assert pacer.next_turn(START + 1, low=False) > START + 1.9


# -- foretold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 5, 30, 100])
def test_batch_turns_come_as_foretold(ahead: int) -> None:
    """A batch request is told at first about when it goes, if nobody overtakes it; of a bucket, no later."""
    for provider in (FixedWindow(60, 60.0, offset=START), TokenBucket(60, 60.0)):
        pacer = learning()
        batch_turns(pacer, provider, 45)
        now = START + 46
        expected = pacer.expected(now, low=True, ahead=ahead) - START
        at = batch_turns(pacer, provider, ahead + 1, now)[-1]
        if isinstance(provider, FixedWindow):
            assert expected == pytest.approx(at, abs=3 + 0.1 * ahead)
        else:
            assert at / 2 <= expected <= at + 1


def test_a_rate_foretells_too() -> None:
    """Each one ahead takes an interval."""
    pacer = Pacer(2.0, 1, learn=False, hold=None)
    pacer.take(START, low=False)
    assert pacer.expected(START, low=False, ahead=3) == START + 2.0


def test_what_is_shown() -> None:
    """The pace and what is left: of the rate, of a window, of nothing."""
    assert learning().pace(START) is None
    assert learning().remaining(START) is None
    assert learning(5.0).pace(START) == 5.0
    pacer = learning(5.0)
    told(pacer, left(30, 60.0))
    assert (pacer.pace(START), pacer.remaining(START)) == (0.5, 30)
    assert pacer.held_for(START) is None
