"""How often a client may come."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.gcra import Buckets


def passes(buckets: Buckets, client: str, now: float) -> bool:
    return buckets.take(client, now) > 0


def test_a_burst_at_once_then_one_each_interval() -> None:
    """Ten a second, burst of five: five at once, then every tenth of a second one."""
    buckets = Buckets(10, 5)
    assert [passes(buckets, "a", 100.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert not passes(buckets, "a", 100.09)
    assert passes(buckets, "a", 100.1)
    assert not passes(buckets, "a", 100.1)
    assert [passes(buckets, "a", 100.3) for _ in range(3)] == [True, True, False]


def test_a_burst_of_one_is_an_even_rate() -> None:
    """Nothing may come before its time."""
    buckets = Buckets(2, 1)
    assert [passes(buckets, "a", at / 10) for at in range(1000, 1011)] == [
        at % 5 == 0 for at in range(1000, 1011)
    ]


def test_the_whole_burst_comes_back() -> None:
    """After a pause of burst / rate, and not more of it after a longer one."""
    buckets = Buckets(10, 5)
    for now in (100.0, 100.5, 200.0):
        assert [passes(buckets, "a", now) for _ in range(6)] == [True] * 5 + [False]


def test_says_how_long_to_wait() -> None:
    """A refusal is the negative time after which one passes, exactly."""
    buckets = Buckets(10, 3)
    for _ in range(3):
        buckets.take("a", 50.0)
    wait = -buckets.take("a", 50.02)
    assert wait == pytest.approx(0.08)
    assert not passes(buckets, "a", 50.02 + wait - 0.001)
    assert passes(buckets, "a", 50.02 + wait)


def test_says_when_the_burst_is_whole() -> None:
    """A passage is the time until all of it is there again."""
    buckets = Buckets(10, 5)
    assert [buckets.take("a", 0.0) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert buckets.take("a", 10.0) == pytest.approx(0.1)


def test_knocking_does_not_make_it_longer() -> None:
    """A thousand refused requests cost their client nothing."""
    buckets = Buckets(1, 1)
    buckets.take("a", 0.0)
    for _ in range(1000):
        assert not passes(buckets, "a", 0.5)
    assert passes(buckets, "a", 1.0)


def test_clients_do_not_share() -> None:
    """What one uses up the other has; text and bytes are never the same client."""
    buckets = Buckets(1, 1)
    assert passes(buckets, "a", 0.0)
    assert passes(buckets, "b", 0.0)
    assert buckets.take(b"a", 0.0) > 0
    assert len(buckets) == 3


def test_a_client_whose_burst_is_whole_is_forgotten() -> None:
    """It is as good as new: what is remembered are the clients of the last moments."""
    buckets = Buckets(10, 5)
    for number in range(1000):
        buckets.take(f"{number}", number * 1.0)
    assert len(buckets) <= 2


def test_not_more_than_so_many_are_remembered() -> None:
    """When all are of the last moment, the one that has not come for longest goes."""
    buckets = Buckets(1, 1, most=100)
    for number in range(1000):
        assert passes(buckets, f"{number}", 0.0)
    assert len(buckets) == 100
    assert not passes(buckets, "999", 0.1)
    assert not passes(buckets, "900", 0.1)
    assert passes(buckets, "0", 0.1)


def test_one_that_keeps_coming_is_not_forgotten() -> None:
    """A thousand others pass by; who came in between is still known."""
    buckets = Buckets(1, 50, most=100)
    for number in range(1000):
        buckets.take(f"{number}", 0.0)
        if number % 20 == 0:
            buckets.take("regular", 0.0)
    assert not passes(buckets, "regular", 0.0)


@pytest.mark.parametrize(("rate", "burst", "most"), [(0, 1, 1), (-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_limits_that_let_nobody_through_are_refused(rate: float, burst: int, most: int) -> None:
    """They are a mistake."""
    with pytest.raises(ValueError, match="at least one"):
        Buckets(rate, burst, most)


@given(
    rate=st.sampled_from([0.1, 0.7, 3.0, 1000 / 60, 250.0]),
    burst=st.integers(1, 30),
    gaps=st.lists(st.floats(0, 3), max_size=200),
    start=st.sampled_from([0.0, 12345.678, 3e6]),
)
def test_is_a_token_bucket(rate: float, burst: int, gaps: list[float], start: float) -> None:
    """Beside a bucket of `burst` tokens that fills at `rate`: the same may pass."""
    buckets = Buckets(rate, burst)
    tokens, now, before = float(burst), start, start
    for gap in gaps:
        now += gap / rate
        tokens = min(burst, tokens + (now - before) * rate)
        before = now
        if math.isclose(tokens, 1.0, abs_tol=2e-3):
            return  # a tie, which either may decide
        assert passes(buckets, "a", now) == (tokens > 1)
        if tokens > 1:
            tokens -= 1


@given(
    rate=st.sampled_from([0.5, 5.0, 1000 / 60]),
    burst=st.integers(1, 20),
    gaps=st.lists(st.floats(0, 0.5), min_size=1, max_size=300),
)
def test_never_more_than_burst_and_rate(rate: float, burst: int, gaps: list[float]) -> None:
    """In any stretch of time there pass at most `burst` + `rate` × its length."""
    buckets = Buckets(rate, burst)
    now, passed = 1000.0, []
    for gap in gaps:
        now += gap
        if passes(buckets, "a", now):
            passed.append(now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + rate * (passed[last] - passed[first]) + 1e-3
