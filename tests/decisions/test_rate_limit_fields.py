"""What clients are told of their limit."""

from __future__ import annotations

import pytest

from sidecar.decisions.rate_limit_fields import policy, quota, state
from sidecar.decisions.structured_fields import parse_list


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (50.0, (50, 1)),
        (1000 / 60, (1000, 60)),
        (100 / 60, (100, 60)),
        (0.5, (30, 60)),
        (10 / 3600, (10, 3600)),
        (1 / 86400, (1, 86400)),
        (1 / 200_000, (1, 200_000)),
        (1234.5, (74070, 60)),
        (1_000_000.0, (1_000_000, 1)),
    ],
)
def test_a_rate_as_it_was_written(rate: float, expected: tuple[int, int]) -> None:
    """Whole requests in the shortest period that has them."""
    assert quota(rate) == expected


def test_the_policy_is_a_list_with_a_string() -> None:
    """As draft-10 has it: the name is a String, `q` and `w` are its parameters."""
    assert policy(1000 / 60) == b'"default";q=1000;w=60'
    assert parse_list(policy(3.0)) == ["default"]


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (19, b'"default";r=19;t=1'),
        (20, b'"default";r=20;t=0'),
        (3, b'"default";r=3;t=2'),
        (0, b'"default";r=0;t=2'),
    ],
)
def test_what_is_left_and_until_when(left: int, expected: bytes) -> None:
    """Seconds are rounded up: nobody is told to come too early."""
    assert state(left, 20, 1000 / 60) == expected
