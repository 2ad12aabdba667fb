"""What is counted of batches."""

from __future__ import annotations

import pytest

from sidecar.batch.stats import Rate


@pytest.mark.parametrize("phase", [0.0, 0.5, 0.99])
def test_an_even_rate_is_told_as_it_is(phase: float) -> None:
    """100 events a second are 100 a second, whatever part of a second has passed, also in the beginning."""
    rate = Rate()
    start = 1000.0 + phase
    for number in range(3000):
        now = start + number / 100
        rate.add(1, now)
        if number > 150:
            assert rate.at(now) == pytest.approx(100, rel=0.02)


def test_a_rate_ends() -> None:
    """Some seconds without events lower it, a window without any makes it none."""
    rate = Rate()
    for number in range(1000):
        rate.add(1, 1000 + number / 100)
    assert 40 < rate.at(1015.5) < 60
    assert rate.at(1022.0) == 0.0
    assert Rate().at(5.0) == 0.0
