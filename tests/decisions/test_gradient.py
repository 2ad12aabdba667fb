"""A limit that learns: Gradient2, and what keeps it from drifting."""

from __future__ import annotations

import pytest

from sidecar.decisions.gradient import LEAST_WINDOW, PROBE_AFTER, AdaptiveLimit

USUAL = 0.1


def window(limit: AdaptiveLimit, seconds: float, in_flight: int | None = None) -> None:
    """One window of answers after `seconds`, with so many in flight; None: as many as may be."""
    for _ in range(max(LEAST_WINDOW, limit.limit)):
        limit.in_flight = limit.limit if in_flight is None else in_flight
        limit.sample(seconds)


def settled(initial: int, least: int = 1, most: int = 200) -> AdaptiveLimit:
    """A limit that has seen many windows of the usual time, none of which made use of it."""
    limit = AdaptiveLimit(initial, least, most)
    for _ in range(20):
        window(limit, USUAL, in_flight=0)
    assert limit.baseline == pytest.approx(USUAL)
    assert limit.limit == initial
    return limit


def queueing(limit: AdaptiveLimit, workers: int) -> float:
    """The time to the first byte at a server with so many workers, all permits in use."""
    return USUAL * max(1.0, limit.limit / workers)


@pytest.mark.parametrize(
    ("initial", "short", "after"),
    [
        (40, 0.10, 40.8),  # as usual: 4 × 0.2 more
        (40, 0.15, 40.8),  # within the tolerance
        (40, 0.20, 38.8),  # gradient 0.75: 40 × 0.95 + 0.8
        (40, 0.30, 36.8),  # gradient 0.5
        (40, 9.99, 36.8),  # never less than that
        (40, 0.01, 40.8),  # never more than 1
        (8, 0.10, 8.4),  # below 16 a quarter of the limit may queue
        (8, 0.20, 8.0),
        (2, 0.10, 2.2),  # but one at least
        (1, 0.10, 1.2),
    ],
)
def test_the_rule(initial: int, short: float, after: float) -> None:
    """After a window the limit is what Gradient2 says."""
    limit = settled(initial)
    window(limit, short)
    assert limit._estimate == pytest.approx(after, rel=0.005)
    assert limit.limit == int(limit._estimate)


@pytest.mark.parametrize("in_flight", [0, 10, 19])
def test_no_change_while_less_than_half_is_in_use(in_flight: int) -> None:
    """What is not used tells nothing of where it ends, whether answers are quick or late."""
    limit = settled(40)
    window(limit, USUAL, in_flight)
    window(limit, 10 * USUAL, in_flight)
    assert limit.limit == 40


def test_half_in_use_counts() -> None:
    """At half of the limit it grows."""
    limit = settled(40)
    window(limit, USUAL, 20)
    assert limit._estimate == pytest.approx(40.8)


@pytest.mark.parametrize(("least", "most", "short"), [(10, 40, 5.0), (10, 40, USUAL)])
def test_stays_between_its_bounds(least: int, most: int, short: float) -> None:
    """However late or quick answers are."""
    limit = settled(20, least, most)
    seen = set()
    for _ in range(300):
        window(limit, short)
        seen.add(limit.limit)
    assert min(seen) >= least
    assert max(seen) <= most


def test_grows_from_one() -> None:
    """A limit of one is no trap: the fraction it gains adds up."""
    limit = AdaptiveLimit(1, 1, 50)
    for _ in range(60):
        window(limit, USUAL)
    assert limit.limit > 10


@pytest.mark.parametrize("bounds", [(0, 1, 1), (1, 0, 1), (3, 4, 8), (9, 4, 8), (5, 8, 4)])
def test_bounds_that_make_no_sense_are_refused(bounds: tuple[int, int, int]) -> None:
    """1 ≤ min ≤ initial ≤ max."""
    initial, least, most = bounds
    with pytest.raises(ValueError, match="min ≤ initial ≤ max"):
        AdaptiveLimit(initial, least, most)


def test_a_failure_takes_a_tenth_off() -> None:
    """At once, not at the end of a window."""
    limit = settled(40)
    limit.drop(started=5.0, now=6.0)
    assert limit.limit == 36


def test_failures_of_one_flight_count_once() -> None:
    """What was sent before the limit fell says nothing of the lower limit; what was sent after it does."""
    limit = settled(40)
    for started in (5.0, 5.1, 5.9):
        limit.drop(started, now=6.0)
    assert limit.limit == 36
    limit.drop(started=6.1, now=7.0)
    assert limit.limit == 32


def test_failures_never_take_the_last_permit() -> None:
    """An upstream that only fails keeps the least number of attempts, and gets more when it is well again."""
    limit = settled(40, least=2)
    for second in range(100):
        limit.drop(started=float(second), now=second + 0.5)
    assert limit.limit == 2
    for _ in range(60):
        window(limit, USUAL)
    assert limit.limit > 16


@pytest.mark.parametrize("workers", [1, 2, 8, 16, 50])
def test_lasting_overload_does_not_let_it_drift(workers: int) -> None:
    """Gradient2 by itself would take the queue for normal: after ten thousand windows it is where it was."""
    limit = AdaptiveLimit(8, 1, 200)
    for _ in range(1_000):
        window(limit, queueing(limit, workers))
    seen = []
    for _ in range(10_000):
        window(limit, queueing(limit, workers))
        seen.append(limit.limit)
    assert max(seen) <= 2 * workers + 5
    assert sum(seen) / len(seen) >= min(workers, 1.2 * workers - 1)


def test_an_upstream_that_got_slower_by_itself_is_not_taken_for_overloaded() -> None:
    """Four times slower, and no queue: the limit falls, a probe finds out, and it grows again."""
    limit = settled(40, most=100)
    least = 40
    for _ in range(PROBE_AFTER + 10):
        window(limit, 4 * USUAL)
        least = min(least, limit.limit)
    assert least < 20
    assert limit.baseline == pytest.approx(4 * USUAL)
    for _ in range(60):
        window(limit, 4 * USUAL)
    assert limit.limit > 40


def test_pinned_at_its_least_it_recovers() -> None:
    """Where the limit cannot fall, what it measures there is the time without a queue."""
    limit = settled(8, least=8, most=100)
    for _ in range(PROBE_AFTER + 60):
        window(limit, 4 * USUAL)
    assert limit.limit > 16


def test_restored_capacity_is_used_again() -> None:
    """Half of the workers, then all of them: the limit follows down and up."""
    limit = AdaptiveLimit(8, 1, 200)
    lows: list[int] = []
    highs: list[int] = []
    for workers, seen in ((32, highs), (16, lows), (32, highs)):
        for _ in range(200):
            window(limit, queueing(limit, workers))
        for _ in range(50):
            window(limit, queueing(limit, workers))
            seen.append(limit.limit)
    assert max(lows) <= 2 * 16 + 5
    assert max(highs) >= 1.4 * 32


def test_a_probe_looks_only_at_what_began_in_it() -> None:
    """Answers to what was in flight before the probe do not count for it."""
    limit = settled(30, most=100)
    for _ in range(PROBE_AFTER):
        window(limit, 3 * USUAL)
    probing = limit.limit
    in_flight = limit.in_flight
    assert probing <= in_flight // 2
    for _ in range(max(LEAST_WINDOW, in_flight)):
        limit.sample(3 * USUAL)
    assert limit.limit == probing
    assert limit.baseline < 2 * USUAL
    for _ in range(max(LEAST_WINDOW, probing)):
        limit.sample(1.2 * USUAL)
    assert limit.baseline == pytest.approx(1.2 * USUAL)
    assert limit.limit > probing


def test_a_baseline_from_worse_times_is_given_up_soon() -> None:
    """After ten windows at less than half of the usual time it falls faster than the long average would."""
    limit = settled(40)
    for _ in range(60):
        window(limit, USUAL / 10, in_flight=0)
    assert limit.baseline < USUAL / 4


def test_a_quick_window_now_and_then_is_no_better_time() -> None:
    """Hits of some cache behind the upstream come in runs; what is usual is still usual."""
    limit = settled(40)
    for number in range(200):
        window(limit, USUAL / 10 if number % 5 else USUAL, in_flight=0)
    assert limit.baseline > USUAL / 2


def test_answers_that_take_no_time_do_no_harm() -> None:
    """A clock that does not move between request and answer divides by nothing."""
    limit = AdaptiveLimit(8, 1, 20)
    for _ in range(30):
        window(limit, 0.0)
    assert limit.limit > 8
