from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.sliding import SlidingCount


def test_counts_what_is_in_the_window() -> None:
    """Events leave with their bucket, no sooner and no later."""
    count = SlidingCount(1.0, 3)
    for now in (100.0, 100.9, 101.5, 102.0):
        count.add(now)
    assert [count.total(now) for now in (102.9, 103.0, 103.9, 104.0, 105.0)] == [4, 2, 2, 1, 0]


def test_a_long_silence_forgets_all() -> None:
    """After more than a window without events nothing is left."""
    count = SlidingCount(0.5, 10)
    count.add(7.0)
    assert count.total(10_000.0) == 0
    count.add(10_000.2)
    assert count.total(10_000.3) == 1


def test_clear_starts_from_nothing() -> None:
    """What was counted is gone, what comes is counted."""
    count = SlidingCount(1.0, 3)
    count.add(5.0)
    count.clear()
    assert count.total(5.0) == 0
    count.add(5.5)
    assert count.total(7.9) == 1
    assert count.total(8.0) == 0


@given(
    steps=st.lists(st.integers(0, 40), max_size=60),
    buckets=st.integers(1, 12),
    width=st.sampled_from([0.25, 1.0, 2.0]),
)
def test_agrees_with_a_list_of_events(steps: list[int], buckets: int, width: float) -> None:
    """However events fall, the count is that of the buckets that are not past."""
    count = SlidingCount(width, buckets)
    events: list[float] = []
    now = 50.0
    for step in steps:
        now += step / 8
        count.add(now)
        events.append(now)
        live = [at for at in events if int(at / width) > int(now / width) - buckets]
        assert count.total(now) == len(live)


@pytest.mark.parametrize(("width", "buckets"), [(0.0, 10), (-1.0, 10), (1.0, 0)])
def test_nonsense_is_refused(width: float, buckets: int) -> None:
    """A window of no length is a ValueError."""
    with pytest.raises(ValueError, match="sliding count"):
        SlidingCount(width, buckets)
