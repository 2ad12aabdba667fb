"""How long an answer of the DNS is used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.dns_memory import (
    ABSENT_LEAST,
    ABSENT_MOST,
    FAILED,
    LEAST,
    MOST,
    RECHECK,
    STALE,
    Memory,
    Standing,
)

SOME = ("192.0.2.1",)


def known(ttl: float, addresses: tuple[str, ...] = SOME) -> Memory:
    memory = Memory()
    memory.learn(addresses, ttl, 0.0)
    return memory


@pytest.mark.parametrize(
    ("addresses", "ttl", "until"),
    [
        (SOME, 60, 60),
        (SOME, 0, LEAST),
        (SOME, 1, LEAST),
        (SOME, 86400, MOST),
        ((), 10, 10),
        ((), 0, ABSENT_LEAST),
        ((), 3600, ABSENT_MOST),
    ],
)
def test_an_answer_lives_for_its_ttl(addresses: tuple[str, ...], ttl: float, until: float) -> None:
    """Within bounds, which are closer for the answer that there are no addresses."""
    memory = known(ttl, addresses)
    assert memory.standing(until - 0.01) in (Standing.FRESH, Standing.DUE, Standing.ABSENT)
    assert memory.standing(until) is Standing.EXPIRED


def test_it_is_asked_again_before_its_end() -> None:
    """In the last fifth of its time; what is absent is not."""
    memory = known(100)
    assert memory.standing(79.9) is Standing.FRESH
    assert memory.standing(80) is Standing.DUE
    assert known(10, ()).standing(9.9) is Standing.ABSENT


def test_nothing_is_known_at_first() -> None:
    """A name has to be asked for."""
    assert Memory().standing(0) is Standing.UNKNOWN


def test_a_failure_while_it_is_fresh() -> None:
    """It stays fresh, and is not asked for again at once."""
    memory = known(100)
    memory.fail("no answer", 80)
    assert memory.standing(81) is Standing.FRESH
    assert memory.standing(100) is Standing.STALE
    assert memory.standing(80 + RECHECK) is Standing.EXPIRED
    assert memory.addresses == SOME


def test_stale_answers_end() -> None:
    """A day after their time they are forgotten, if the DNS still fails."""
    memory = known(60)
    memory.fail("no answer", 60 + STALE - 1)
    assert (memory.standing(60 + STALE - 0.5), memory.addresses) == (Standing.STALE, SOME)
    assert memory.standing(60 + STALE) is Standing.FAILED
    assert (memory.usable(60 + STALE - 0.5), memory.usable(60 + STALE)) == (SOME, ())
    memory.fail("no answer", 60 + STALE + RECHECK)
    assert memory.addresses == ()


def test_an_answer_ends_a_failure() -> None:
    """It is fresh then, and the reason is gone."""
    memory = known(60)
    memory.fail("no answer", 61)
    memory.learn(("192.0.2.2",), 60, 95)
    assert (memory.standing(96), memory.failure, memory.addresses) == (Standing.FRESH, "", ("192.0.2.2",))


def test_absence_takes_the_place_of_addresses() -> None:
    """The DNS has not failed when it says that there are none (RFC 8767, 4)."""
    memory = known(60)
    memory.learn((), 10, 61)
    assert (memory.standing(62), memory.addresses) == (Standing.ABSENT, ())


def test_absence_is_stale_too() -> None:
    """A family that a name has not got is not asked for with every look-up while the DNS fails."""
    memory = known(10, ())
    memory.fail("no answer", 11)
    assert memory.standing(12) is Standing.STALE
    assert memory.standing(11 + RECHECK) is Standing.EXPIRED


def test_failures_in_a_row() -> None:
    """They are repeated less and less often."""
    memory, now, waits = Memory(), 0.0, []
    for _ in range(7):
        memory.fail("no answer", now)
        assert memory.standing(now) is Standing.FAILED
        wait = next(seconds for seconds in range(100) if memory.standing(now + seconds) is Standing.UNKNOWN)
        waits.append(wait)
        now += wait
    assert waits == [FAILED, 4, 8, 16, RECHECK, RECHECK, RECHECK]


@given(
    st.lists(
        st.tuples(
            st.floats(0, 2 * STALE),
            st.one_of(st.none(), st.tuples(st.sampled_from([SOME, ()]), st.floats(0, 2 * MOST))),
        ),
        max_size=12,
    )
)
def test_what_serves_was_once_an_answer(
    steps: list[tuple[float, tuple[tuple[str, ...], float] | None]],
) -> None:
    """Whatever comes in which order: addresses serve for `MOST` and `STALE` after their answer at most, and
    a standing that needs addresses has them.
    """
    memory, now, learnt = Memory(), 0.0, float("-inf")
    for wait, answer in steps:
        now += wait
        standing = memory.standing(now)
        if standing in (Standing.FRESH, Standing.DUE):
            assert memory.addresses
        if standing in (Standing.UNKNOWN, Standing.FAILED):
            assert not memory.addresses or now >= learnt + STALE
        if standing in (Standing.STALE, Standing.EXPIRED):
            assert now < learnt + MOST + STALE
        if answer is None:
            memory.fail("no answer", now)
        else:
            memory.learn(*answer, now)
            learnt = now
