"""What those who wait may expect."""

from __future__ import annotations

import random

import pytest

from sidecar.decisions.turns import Turns


def test_nothing_is_expected_of_what_nobody_has_seen() -> None:
    """Before the first turn no wait is too long."""
    turns = Turns()
    assert turns.wait(1000) == 0
    assert turns.service == 0
    turns.given(5.0)
    assert turns.wait(1000) == 0


def test_one_waits_for_those_ahead_and_for_itself() -> None:
    """Turns a tenth of a second apart: three ahead make four tenths."""
    turns = Turns()
    for number in range(30):
        turns.given(number / 10)
    assert turns.wait(3) == pytest.approx(0.4)
    assert turns.wait(0) == pytest.approx(0.1)


def test_the_time_in_which_nobody_waits_does_not_count() -> None:
    """An hour without a queue is no hour between two turns."""
    turns = Turns()
    turns.given(0.0)
    turns.given(0.1)
    turns.rest()
    turns.given(3600.0)
    turns.given(3600.1)
    assert turns.wait(0) == pytest.approx(0.1)


def test_follows_a_queue_that_slows_down() -> None:
    """After some tens of turns the old pace is forgotten."""
    turns = Turns()
    now = 0.0
    for gap in [0.01] * 50 + [0.1] * 50:
        now += gap
        turns.given(now)
    assert turns.wait(0) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_the_service_time_is_the_median(seed: int) -> None:
    """One answer in ten takes a hundred times as long: half of them still take what half of them take."""
    chance = random.Random(seed)
    turns = Turns()
    for _ in range(2000):
        turns.served(chance.uniform(5, 6) if chance.random() < 0.1 else chance.uniform(0.04, 0.06))
    assert 0.035 < turns.service < 0.075
