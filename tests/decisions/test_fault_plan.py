"""Which attempts a fault hits."""

from __future__ import annotations

import pytest

from sidecar.decisions.fault_plan import FaultPlan


def hits(plan: FaultPlan, *chances: float) -> list[int]:
    """The numbers of the attempts that it hits, counted from 1."""
    return [number for number, chance in enumerate(chances, 1) if plan.hits(chance)]


@pytest.mark.parametrize(
    ("plan", "hit"),
    [
        (FaultPlan(), [1, 2, 3, 4, 5, 6, 7]),
        (FaultPlan(every=3), [3, 6]),
        (FaultPlan(first=2), [1, 2]),
        (FaultPlan(every=2, first=5), [2, 4]),
    ],
)
def test_by_number(plan: FaultPlan, hit: list[int]) -> None:
    """All, each n-th one, the first ones, or each n-th of the first ones."""
    assert hits(plan, *[0.0] * 7) == hit
    assert (plan.asked, plan.hit) == (7, len(hit))


def test_by_chance() -> None:
    """Below the share it hits; 100 % always does, whatever is drawn."""
    assert hits(FaultPlan(0.2), 0.0, 0.19, 0.2, 0.9) == [1, 2]
    assert hits(FaultPlan(1.0), 0.999999) == [1]


def test_chance_falls_on_what_the_number_allows() -> None:
    """A share of every second attempt is drawn for these alone: half of all can be hit at most."""
    assert hits(FaultPlan(0.5, every=2), 0.0, 0.4, 0.0, 0.6, 0.0, 0.1) == [2, 6]


def test_over_when_the_first_ones_were_asked_about() -> None:
    """Also those that chance spared count."""
    plan = FaultPlan(0.5, first=2)
    assert [plan.over, plan.hits(0.9), plan.over, plan.hits(0.1), plan.over] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert not plan.hits(0.0)
    assert not FaultPlan().over


def test_delay() -> None:
    """A time is a range of one; else all times between the two are alike; none is none."""
    assert FaultPlan(delay=(2.0, 2.0)).delay(0.7) == 2.0
    assert [FaultPlan(delay=(1.0, 3.0)).delay(chance) for chance in (0.0, 0.5, 0.75)] == [1.0, 2.0, 2.5]
    assert FaultPlan().delay(0.5) == 0.0
