"""In which order addresses are tried."""

from __future__ import annotations

import pytest

from sidecar.decisions.eyeballs import interleaved, usable_first


@pytest.mark.parametrize(
    ("hosts", "first", "order"),
    [
        ("1 2 3", None, "1 2 3"),
        ("a: b: 1 2", None, "a: 1 b: 2"),
        ("1 2 a: b:", None, "1 a: 2 b:"),
        ("a: b: c: 1", None, "a: 1 b: c:"),
        ("a: 1 2 3", None, "a: 1 2 3"),
        ("a: b: 1 2", False, "1 a: 2 b:"),
        ("1 2 a: b:", True, "a: 1 b: 2"),
        ("1 2", True, "1 2"),
        ("", None, ""),
    ],
)
def test_both_families_in_turn(hosts: str, first: bool | None, order: str) -> None:
    """Each in its own order; the one that is preferred begins, else that of the first."""
    assert interleaved(hosts.split(), str, first) == order.split()


@pytest.mark.parametrize(
    ("hosts", "unusable", "order"),
    [
        ("1 2 a: b:", "", "a: b: 1 2"),
        ("1 2 a: b:", "a: b:", "1 2 a: b:"),
        ("1 2 a: b:", "2 b:", "a: 1 b: 2"),
        ("1 a:", "1 a:", "a: 1"),
    ],
)
def test_those_with_a_way_go_first(hosts: str, unusable: str, order: str) -> None:
    """Then IPv6; none is left out, as a route may come up."""
    closed = unusable.split()
    assert list(usable_first(hosts.split(), lambda host: host not in closed)) == order.split()
