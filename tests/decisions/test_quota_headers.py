"""What answers state of their provider's quota, in each of the ways that are in use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.quota_headers import NAMES, NOTHING, Quota, Stated, read_quotas
from sidecar.headers import Line

WALL = 1_700_000_000.0


def read(*pairs: tuple[str, str]) -> Stated:
    return read_quotas([Line(name.encode(), value.encode()) for name, value in pairs], WALL)


@pytest.mark.parametrize(
    ("pairs", "quotas"),
    [
        # draft-ietf-httpapi-ratelimit-headers-10, 4 and 5
        (
            [("RateLimit-Policy", '"default";q=100;w=60'), ("RateLimit", '"default";r=50;t=30')],
            [Quota("default", 50, 30.0, 100, 60.0)],
        ),
        (
            [
                ("RateLimit", '"min";r=5;t=20, "hour";r=900;t=1000'),
                ("RateLimit-Policy", '"hour";q=1000;w=3600, "min";q=10;w=60'),
            ],
            [Quota("min", 5, 20.0, 10, 60.0), Quota("hour", 900, 1000.0, 1000, 3600.0)],
        ),
        (
            [("RateLimit", '"min";r=5;t=20'), ("RateLimit", '"hour";r=9;t=100')],
            [Quota("min", 5, 20.0), Quota("hour", 9, 100.0)],
        ),
        ([("RateLimit", '"default";r=50;t=30')], [Quota("default", 50, 30.0)]),
        ([("RateLimit", "default;r=50;t=30")], [Quota("default", 50, 30.0)]),
        # without `t`, what is left is for the window of the policy
        (
            [("RateLimit", '"a";r=5'), ("RateLimit-Policy", '"a";q=9;w=60')],
            [Quota("a", 5, 60.0, 9, 60.0)],
        ),
        ([("RateLimit", '"a";r=5')], []),
        ([("RateLimit-Policy", '"a";q=9;w=60')], []),
        # other units are no requests
        ([("RateLimit", '"a";r=5;t=1'), ("RateLimit-Policy", '"a";q=9;w=6;qu="content-bytes"')], []),
        ([("RateLimit", '"a";r=0;t=1'), ("RateLimit-Policy", '"a";q=9;w=6;qu="concurrent-requests"')], []),
        # draft 07
        ([("RateLimit", "limit=100, remaining=50, reset=5")], [Quota("requests", 50, 5.0, 100)]),
        ([("RateLimit", "remaining=50, reset=5")], [Quota("requests", 50, 5.0)]),
        # draft 06 and before
        (
            [
                ("RateLimit-Limit", "100, 100;w=60"),
                ("RateLimit-Remaining", "50"),
                ("RateLimit-Reset", "7"),
            ],
            [Quota("requests", 50, 7.0, 100)],
        ),
        # GitHub: Unix time
        (
            [
                ("X-RateLimit-Limit", "5000"),
                ("X-RateLimit-Remaining", "4999"),
                ("X-RateLimit-Reset", "1700003600"),
            ],
            [Quota("requests", 4999, 3600.0, 5000)],
        ),
        (
            [("X-RateLimit-Remaining", "1"), ("X-RateLimit-Reset", "1700000060000")],
            [Quota("requests", 1, 60.0)],
        ),
        (
            [("X-RateLimit-Remaining", "1"), ("X-RateLimit-Reset", "1699999990")],
            [Quota("requests", 1, 0.0)],
        ),
        (
            [("X-Rate-Limit-Remaining", "1"), ("X-Rate-Limit-Reset", "12.5")],
            [Quota("requests", 1, 12.5)],
        ),
        ([("X-RateLimit-Remaining", "1")], []),
        ([("X-RateLimit-Remaining", "many"), ("X-RateLimit-Reset", "1")], []),
        ([("X-RateLimit-Remaining", "1"), ("X-RateLimit-Reset", "soon")], []),
        # OpenAI
        (
            [
                ("x-ratelimit-limit-requests", "60"),
                ("x-ratelimit-remaining-requests", "59"),
                ("x-ratelimit-reset-requests", "6m0s"),
            ],
            [Quota("requests", 59, 360.0, 60)],
        ),
        (
            [("x-ratelimit-remaining-requests", "4999"), ("x-ratelimit-reset-requests", "12ms")],
            [Quota("requests", 4999, 0.012)],
        ),
        # the standard goes first, unless it means nothing
        (
            [
                ("RateLimit", '"default";r=50;t=30'),
                ("X-RateLimit-Remaining", "1"),
                ("X-RateLimit-Reset", "1"),
            ],
            [Quota("default", 50, 30.0)],
        ),
        (
            [("RateLimit", '"a;'), ("X-RateLimit-Remaining", "1"), ("X-RateLimit-Reset", "2")],
            [Quota("requests", 1, 2.0)],
        ),
        # malformed: ignored
        ([("RateLimit", '"a";r=-1;t=1')], []),
        ([("RateLimit", '"a";r=1.5;t=1')], []),
        ([("RateLimit", '"a";r;t=1')], []),
        ([("RateLimit", "5")], []),
        ([("RateLimit", "")], []),
        ([("Content-Type", "text/plain")], []),
        ([], []),
    ],
)
def test_quotas(pairs: list[tuple[str, str]], quotas: list[Quota]) -> None:
    """Each way of saying it is understood, and what makes no sense is ignored."""
    assert read(*pairs) == Stated(tuple(quotas))


@pytest.mark.parametrize(
    ("pairs", "empty_for"),
    [
        ([("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "1m30s")], 90.0),
        ([("x-ratelimit-remaining-tokens", "7"), ("x-ratelimit-reset-tokens", "1m30s")], None),
        ([("RateLimit", '"b";r=0;t=9'), ("RateLimit-Policy", '"b";q=1;w=60;qu="content-bytes"')], 9.0),
    ],
)
def test_other_quotas_count_when_they_are_used_up(
    pairs: list[tuple[str, str]], empty_for: float | None
) -> None:
    """Of tokens and bytes nobody knows what a request will take: they matter when nothing is left."""
    assert read(*pairs) == Stated((), empty_for)


def test_no_quota_costs_no_object() -> None:
    """An answer that states nothing is always the same nothing."""
    assert read(("Content-Type", "a")) is NOTHING


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(NAMES)),
            st.one_of(
                st.binary(max_size=30),
                st.from_regex(rb'"[a-z]";r=\d{1,3};t=\d{1,20}(, "[a-z]";r=\d)?', fullmatch=True),
                st.from_regex(rb"\d{1,30}(\.\d)?(s|ms|h)?", fullmatch=True),
            ),
        ),
        max_size=6,
    )
)
def test_whatever_comes_is_read(pairs: list[tuple[bytes, bytes]]) -> None:
    """No value that a provider may send does anything but state a quota that makes sense, or none."""
    stated = read_quotas([Line(*pair) for pair in pairs], WALL)
    for quota in stated.quotas:
        assert quota.remaining >= 0
        assert quota.reset >= 0
        assert quota.limit is None or quota.limit >= 0
        assert quota.window is None or quota.window > 0
    assert stated.empty_for is None or stated.empty_for >= 0
