"""Holding back, and probing."""

from __future__ import annotations

from sidecar.decisions.quota_hold import LONGEST, PROBING, Hold


def test_nothing_is_held_at_first() -> None:
    """Without a verdict everything goes."""
    hold = Hold(60.0)
    assert not hold.active
    assert hold.left(100.0) == 0.0


def test_it_holds_for_its_time() -> None:
    """As long as configured where the provider states nothing; then one may probe."""
    hold = Hold(60.0)
    assert hold.begin(100.0, None)
    assert hold.left(100.0) == 60.0
    assert hold.left(159.0) == 1.0
    assert hold.left(160.0) == 0.0
    assert hold.active


def test_the_provider_knows_better() -> None:
    """What it states goes first, longer or shorter; a day is the longest."""
    hold = Hold(60.0)
    hold.begin(100.0, 5.0)
    assert hold.left(100.0) == 5.0
    hold.begin(100.0, 1e9)
    assert hold.left(100.0) == LONGEST


def test_one_probes_at_a_time() -> None:
    """While a probe is under way others are told to come back soon."""
    hold = Hold(60.0)
    hold.begin(100.0, None)
    hold.probe = 7
    assert hold.left(160.0) == PROBING
    hold.probe = -1
    assert hold.left(160.0) == 0.0


def test_it_ends() -> None:
    """After a good answer everything goes."""
    hold = Hold(60.0)
    hold.begin(100.0, None)
    hold.end()
    assert not hold.active
    assert hold.left(101.0) == 0.0


def test_it_can_be_off() -> None:
    """Without a time nothing is ever held."""
    hold = Hold(None)
    assert not hold.begin(100.0, 1000.0)
    assert hold.left(100.0) == 0.0
