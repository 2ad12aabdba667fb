"""What runs on each request makes no objects."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable
from itertools import repeat

from sidecar.decisions.breaker import Breaker
from sidecar.decisions.concurrency import FixedLimit
from sidecar.decisions.verdict import Outcome

TURNS = 100
"""So few that counters stay within the small integers that Python keeps anyway."""


def most_allocated(work: Callable[[Iterable[None]], None]) -> int:
    """Bytes allocated at a time while `work` takes its turns, after a few to warm up."""
    turns = repeat(None, TURNS)
    work(repeat(None, 3))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        work(turns)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_the_measure_sees_an_object() -> None:
    """One object a turn shows, though it is gone by the next."""

    def work(turns: Iterable[None]) -> None:
        for _ in turns:
            object()

    assert most_allocated(work) > 0


def test_a_closed_breaker_allocates_nothing() -> None:
    """Permission and success cost counters only."""
    breaker = Breaker(failure_ratio=0.5, slow_ratio=0.5, slow_over=1.0)
    now, elapsed, success = 100.0, 0.1, Outcome.SUCCESS

    def work(turns: Iterable[None]) -> None:
        for _ in turns:
            permit = breaker.acquire(now)
            if permit is not None:  # a rewritten assert allocates
                breaker.end(permit, success, now, elapsed)

    assert most_allocated(work) == 0


def test_a_free_limit_allocates_nothing() -> None:
    """A place is a number."""
    limit = FixedLimit(2)

    def work(turns: Iterable[None]) -> None:
        for _ in turns:
            limit.try_acquire()
            limit.release()

    assert most_allocated(work) == 0
