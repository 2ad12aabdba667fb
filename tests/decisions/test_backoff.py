from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.backoff import MULTIPLIERS, STRATEGIES, Backoff, RecentSuccess, category_of
from sidecar.decisions.verdict import Verdict

MOST = 1.0 - 2**-53
"""The largest number that chance can give."""


@pytest.mark.parametrize(
    ("strategy", "delays"),
    [
        ("fixed", [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ("linear", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ("exponential", [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]),
        ("fibonacci", [0.1, 0.1, 0.2, 0.3, 0.5, 0.8, 1.3]),
    ],
)
def test_sequences(strategy: str, delays: list[float]) -> None:
    """The strategies without chance give their sequence, cut off at the maximum."""
    backoff = Backoff(strategy, 0.1, 2.0)
    assert [backoff.next_delay(n, 0.0, 0.5, "") for n in range(1, 8)] == pytest.approx(delays)


@pytest.mark.parametrize(
    ("strategy", "failures", "previous", "random", "delay"),
    [
        ("full_jitter", 1, 0.0, 0.0, 0.0),
        ("full_jitter", 1, 0.0, 0.5, 0.1),
        ("full_jitter", 3, 0.0, 0.5, 0.4),
        ("full_jitter", 9, 0.0, 0.5, 1.0),
        ("equal_jitter", 1, 0.0, 0.0, 0.1),
        ("equal_jitter", 1, 0.0, 0.5, 0.15),
        ("equal_jitter", 9, 0.0, 0.5, 1.5),
        ("decorrelated_jitter", 1, 0.0, 0.0, 0.2),
        ("decorrelated_jitter", 1, 0.0, 0.5, 0.4),
        ("decorrelated_jitter", 2, 0.5, 0.0, 0.2),
        ("decorrelated_jitter", 2, 0.5, 0.5, 0.85),
        ("decorrelated_jitter", 5, 2.0, 0.9, 2.0),
    ],
)
def test_jitters(strategy: str, failures: int, previous: float, random: float, delay: float) -> None:
    """The jitters are those of the AWS article: base 0.2 s, at most 2 s."""
    assert Backoff(strategy, 0.2, 2.0).next_delay(failures, previous, random, "") == pytest.approx(delay)


def test_full_jitter_is_the_default() -> None:
    """Who asks for no strategy gets full jitter from 200 ms to 2 s."""
    assert [Backoff().next_delay(n, 0.0, 0.5) for n in (1, 2, 9)] == pytest.approx([0.1, 0.2, 1.0])


@pytest.mark.parametrize(
    ("category", "multiplier"),
    [
        ("timeout", 1.5),
        ("rate_limit", 3.0),
        ("server_error", 2.0),
        ("client_error", 0.5),
        ("auth", 0.2),
        ("resource_exhausted", 4.0),
        ("unavailable", 2.5),
        ("never heard of", 1.0),
    ],
)
def test_smart_multiplies_by_category(category: str, multiplier: float) -> None:
    """Smart is exponential times the category's multiplier, half of it by chance."""
    backoff = Backoff("smart", 0.1, 60.0)
    assert backoff.next_delay(3, 0.0, 0.0, category) == pytest.approx(0.4 * multiplier / 2)
    assert backoff.next_delay(3, 0.0, 0.5, category) == pytest.approx(0.4 * multiplier * 0.75)


def test_smart_jitters_below_the_maximum() -> None:
    """The multiplier does not squeeze the jitter out: half of the maximum stays to chance."""
    assert Backoff("smart", 1.0, 2.0).next_delay(5, 0.0, 0.5, "resource_exhausted") == pytest.approx(1.5)


@pytest.mark.parametrize(("share", "delay"), [(1.0, 0.2), (0.75, 0.4 / math.sqrt(2)), (0.5, 0.4), (0.0, 0.8)])
def test_adaptive_follows_the_recent_successes(share: float, delay: float) -> None:
    """Adaptive halves the exponential delay when all is well and doubles it when all fails."""
    recent = RecentSuccess()
    recent.share = share
    assert Backoff("adaptive", 0.1, 60.0, recent).next_delay(3, 0.0, 0.5, "") == pytest.approx(delay)


def test_recent_success_moves_towards_what_happens() -> None:
    """The share starts at 1, halves in about seven failures and comes back with successes."""
    recent = RecentSuccess()
    assert recent.share == 1.0
    for _ in range(7):
        recent.record(False)
    assert recent.share == pytest.approx(0.9**7)
    for _ in range(60):
        recent.record(True)
    assert 0.99 < recent.share <= 1.0


def test_only_adaptive_wants_to_be_told() -> None:
    """`adapts` tells the layer whether recording is worth its time."""
    assert [name for name in STRATEGIES if Backoff(name).adapts] == ["adaptive"]


def test_strategies_of_the_guide_are_all_there() -> None:
    """The names that configuration may use."""
    assert set(STRATEGIES) == {
        "fixed",
        "exponential",
        "linear",
        "fibonacci",
        "full_jitter",
        "equal_jitter",
        "decorrelated_jitter",
        "adaptive",
        "smart",
    }


@given(
    strategy=st.sampled_from(STRATEGIES),
    base=st.floats(0.0, 1e6),
    most=st.floats(0.0, 1e9),
    failures=st.integers(1, 10**400),
    previous=st.floats(0.0, 1e9),
    random=st.floats(0.0, MOST),
    category=st.sampled_from([*MULTIPLIERS, ""]),
)
def test_every_delay_is_within_bounds(
    *, strategy: str, base: float, most: float, failures: int, previous: float, random: float, category: str
) -> None:
    """No strategy, however many failures, gives a negative delay, one over the maximum, or an error."""
    delay = Backoff(strategy, base, most).next_delay(failures, previous, random, category)
    assert 0.0 <= delay <= most


@given(
    strategy=st.sampled_from(["fixed", "exponential", "linear", "fibonacci", "adaptive"]),
    failures=st.integers(1, 200),
)
def test_delays_without_chance_never_shrink(strategy: str, failures: int) -> None:
    """One more failure never means a shorter wait."""
    backoff = Backoff(strategy, 0.001, 1e30)
    assert backoff.next_delay(failures, 0.0, 0.0) <= backoff.next_delay(failures + 1, 0.0, 0.0)


@given(strategy=st.sampled_from(STRATEGIES), failures=st.integers(1, 10**6))
def test_a_base_of_zero_never_waits(strategy: str, failures: int) -> None:
    """`base: 0s` means at once, for every strategy."""
    assert Backoff(strategy, 0.0, 2.0).next_delay(failures, 0.0, 0.5, "timeout") == 0.0


@pytest.mark.parametrize(
    ("strategy", "base", "most"),
    [("random", 0.1, 1.0), ("fixed", -0.1, 1.0), ("fixed", 0.1, -1.0), ("fixed", math.nan, 1.0)],
)
def test_nonsense_is_refused(strategy: str, base: float, most: float) -> None:
    """An unknown strategy or a negative time is a ValueError when built, not a surprise when used."""
    with pytest.raises(ValueError, match="back-off"):
        Backoff(strategy, base, most)


@pytest.mark.parametrize(
    ("reason", "verdict", "status", "category"),
    [
        ("timeout", None, 0, "timeout"),
        ("connect", None, 0, "unavailable"),
        ("reset", None, 0, "unavailable"),
        (None, Verdict.RATE_LIMITED, 429, "rate_limit"),
        (None, Verdict.RATE_LIMITED, 200, "rate_limit"),
        (None, Verdict.QUOTA, 200, "resource_exhausted"),
        (None, Verdict.AUTH, 401, "auth"),
        (None, Verdict.CLIENT, 404, "client_error"),
        (None, Verdict.TRANSIENT, 500, "server_error"),
        (None, Verdict.TRANSIENT, 200, "server_error"),
        (None, Verdict.TRANSIENT, 408, "timeout"),
        (None, Verdict.TRANSIENT, 504, "timeout"),
        (None, Verdict.TRANSIENT, 502, "unavailable"),
        (None, Verdict.TRANSIENT, 503, "unavailable"),
    ],
)
def test_category_of(reason: str | None, verdict: Verdict | None, status: int, category: str) -> None:
    """Every way for an attempt to fail has its category, and the category its multiplier."""
    assert category_of(reason, verdict, status) == category
    assert category in MULTIPLIERS
