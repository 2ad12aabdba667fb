"""Quantiles from the counts of buckets, and the profiles of bounds."""

from __future__ import annotations

import pytest

from sidecar.decisions.buckets import PROFILES, histogram_quantile

BOUNDS = (0.1, 0.5, 1.0)


@pytest.mark.parametrize(
    ("share", "counts", "value"),
    [
        (0.5, [0, 0, 0, 0], None),
        (0.5, [10, 0, 0, 0], 0.05),
        (1.0, [10, 0, 0, 0], 0.1),
        (0.5, [0, 4, 0, 0], 0.3),
        (0.75, [5, 0, 5, 0], 0.75),
        (0.5, [5, 0, 5, 0], 0.1),
        (0.95, [0, 0, 0, 3], 1.0),
        (0.99, [98, 0, 0, 2], 1.0),
        (0.0, [0, 4, 0, 0], 0.1),
    ],
)
def test_a_quantile_is_interpolated_as_prometheus_does(
    share: float, counts: list[int], value: float | None
) -> None:
    """Evenly within its bucket; above all bounds it is the last of them."""
    assert histogram_quantile(share, BOUNDS, counts) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_ascends_and_has_what_alerts_compare_with(name: str) -> None:
    """2 s and 10 s are bounds of every profile; no bound comes twice."""
    bounds = PROFILES[name]
    assert sorted(set(bounds)) == list(bounds)
    assert {2.0, 10.0} <= set(bounds)
