from __future__ import annotations

from typing import Any

import pytest

from sidecar.decisions.cache_control import FOREVER, NOTHING_ASKED, RequestDirectives
from sidecar.decisions.freshness import Lifetime
from sidecar.decisions.refresh import next_ttl, refresh_due
from sidecar.decisions.reuse import Use, is_error, judge_use, may_serve_on_error
from sidecar.decisions.verdict import Verdict


def lifetime(**changes: Any) -> Lifetime:
    """Fresh from 0 to 100, then 50 s while revalidating, 200 s on errors, 300 s offline; gone at 1000."""
    settings: dict[str, Any] = {
        "born": 0.0,
        "fresh_until": 100.0,
        "swr_until": 150.0,
        "sie_until": 300.0,
        "offline_until": 400.0,
        "kept_until": 1000.0,
        "obtained": 0.0,
    }
    return Lifetime(**{**settings, **changes})


STRICT = lifetime(swr_until=100.0, sie_until=100.0, offline_until=100.0, must_revalidate=True)


@pytest.mark.parametrize(
    ("stored", "asked", "now", "use"),
    [
        (lifetime(), {}, 0.0, Use.FRESH),
        (lifetime(), {}, 99.9, Use.FRESH),
        (lifetime(), {}, 100.0, Use.STALE_WHILE_REVALIDATE),
        (lifetime(), {}, 149.9, Use.STALE_WHILE_REVALIDATE),
        (lifetime(), {}, 150.0, Use.VALIDATE),
        (lifetime(), {}, 999.9, Use.VALIDATE),
        (lifetime(), {}, 1000.0, Use.MISS),
        (None, {}, 0.0, Use.MISS),
        (STRICT, {}, 99.0, Use.FRESH),
        (STRICT, {}, 100.0, Use.VALIDATE),
        (lifetime(always_validate=True), {}, 1.0, Use.VALIDATE),
        (lifetime(), {"no_cache": True}, 1.0, Use.VALIDATE),
        (lifetime(), {"no_store": True}, 1.0, Use.BYPASS),
        (None, {"no_store": True}, 1.0, Use.BYPASS),
        (lifetime(), {"max_age": 0}, 0.0, Use.VALIDATE),
        (lifetime(), {"max_age": 0}, 1.0, Use.VALIDATE),
        (lifetime(), {"max_age": 50}, 49.0, Use.FRESH),
        (lifetime(), {"max_age": 50}, 51.0, Use.VALIDATE),
        (lifetime(), {"max_age": 500}, 120.0, Use.VALIDATE),
        (lifetime(), {"max_age": 500, "max_stale": 30}, 120.0, Use.STALE_ALLOWED),
        (lifetime(), {"min_fresh": 50}, 50.0, Use.FRESH),
        (lifetime(), {"min_fresh": 50}, 51.0, Use.VALIDATE),
        (lifetime(), {"min_fresh": 50}, 120.0, Use.VALIDATE),
        (lifetime(), {"max_stale": 100}, 50.0, Use.FRESH),
        (lifetime(), {"max_stale": 100}, 190.0, Use.STALE_ALLOWED),
        (lifetime(), {"max_stale": 10}, 120.0, Use.STALE_WHILE_REVALIDATE),
        (lifetime(), {"max_stale": 10}, 190.0, Use.VALIDATE),
        (lifetime(), {"max_stale": FOREVER}, 999.0, Use.STALE_ALLOWED),
        (lifetime(), {"max_stale": FOREVER}, 1000.0, Use.MISS),
        (STRICT, {"max_stale": FOREVER}, 190.0, Use.VALIDATE),
        (lifetime(always_validate=True), {"max_stale": FOREVER}, 190.0, Use.VALIDATE),
        (lifetime(), {"only_if_cached": True}, 50.0, Use.FRESH),
        (lifetime(), {"only_if_cached": True}, 120.0, Use.STALE_WHILE_REVALIDATE),
        (lifetime(), {"only_if_cached": True}, 200.0, Use.ONLY_IF_CACHED),
        (lifetime(), {"only_if_cached": True, "no_cache": True}, 50.0, Use.ONLY_IF_CACHED),
        (lifetime(), {"only_if_cached": True, "max_stale": FOREVER}, 200.0, Use.STALE_ALLOWED),
        (None, {"only_if_cached": True}, 0.0, Use.ONLY_IF_CACHED),
    ],
)
def test_judge_use(stored: Lifetime | None, asked: dict[str, Any], now: float, use: Use) -> None:
    """RFC 9111, 4 and 5.2.1; RFC 5861, 3: what a stored response is good for, for this request, now."""
    assert judge_use(stored, RequestDirectives(**asked), now) is use


@pytest.mark.parametrize("now", [0.0, 99.0, 100.0, 149.0, 150.0, 999.0, 1000.0])
@pytest.mark.parametrize("stored", [lifetime(), STRICT, lifetime(always_validate=True)])
def test_the_short_way_judges_alike(stored: Lifetime, now: float) -> None:
    """A request that asks nothing gets what one with directives that ask nothing gets."""
    assert judge_use(stored, NOTHING_ASKED, now) is judge_use(stored, RequestDirectives(), now)


@pytest.mark.parametrize(
    ("stored", "asked", "now", "disconnected", "allowed"),
    [
        (lifetime(), {}, 50.0, False, True),
        (lifetime(), {}, 299.0, False, True),
        (lifetime(), {}, 300.0, False, False),
        (lifetime(), {}, 399.0, True, True),
        (lifetime(), {}, 400.0, True, False),
        (lifetime(), {"stale_if_error": 500}, 599.0, False, True),
        (lifetime(), {"stale_if_error": 500}, 601.0, False, False),
        (lifetime(), {"stale_if_error": 10**9}, 1000.0, False, False),
        (lifetime(sie_until=2000.0), {}, 1000.0, False, False),
        (STRICT, {}, 99.0, False, True),
        (STRICT, {}, 100.0, True, False),
        (STRICT, {"stale_if_error": 500}, 100.0, True, False),
        (lifetime(always_validate=True), {}, 50.0, True, False),
        (lifetime(always_validate=True), {"stale_if_error": 500}, 50.0, True, False),
        (lifetime(), {"max_age": 0}, 50.0, False, True),
        (lifetime(), {"no_cache": True}, 50.0, True, False),
        (lifetime(), {"no_store": True}, 50.0, True, False),
        (lifetime(), {"no_cache": True, "stale_if_error": 500}, 150.0, False, True),
    ],
)
def test_may_serve_on_error(
    stored: Lifetime, asked: dict[str, Any], now: float, disconnected: bool, allowed: bool
) -> None:
    """RFC 5861, 4; RFC 9111, 4.2.4: within a window that somebody gave, never against what forbids it."""
    assert may_serve_on_error(stored, RequestDirectives(**asked), now, disconnected=disconnected) is allowed


@pytest.mark.parametrize(
    ("status", "verdict", "error"),
    [
        (500, Verdict.TRANSIENT, True),
        (502, Verdict.OK, True),
        (503, Verdict.CLIENT, True),
        (504, Verdict.TRANSIENT, True),
        (200, Verdict.TRANSIENT, True),
        (200, Verdict.QUOTA, True),
        (429, Verdict.RATE_LIMITED, True),
        (200, Verdict.OK, False),
        (200, Verdict.NEGATIVE, False),
        (404, Verdict.CLIENT, False),
        (401, Verdict.AUTH, False),
    ],
)
def test_is_error(status: int, verdict: Verdict, error: bool) -> None:
    """RFC 5861, 4 names statuses; a verdict finds the same behind a 200."""
    assert is_error(status, verdict) is error


@pytest.mark.parametrize(
    ("share", "now", "due"),
    [(0.8, 79.9, False), (0.8, 80.0, True), (0.8, 99.9, True), (0.8, 100.0, False), (0.0, 0.0, True)],
)
def test_refresh_due(share: float, now: float, due: bool) -> None:
    """Ahead means: after its share of the freshness, before the end of it."""
    assert refresh_due(lifetime(), share, now) is due


def test_no_refresh_of_what_is_never_fresh() -> None:
    """`no-cache` is asked for at each use anyway."""
    assert not refresh_due(lifetime(always_validate=True), 0.8, 90.0)


@pytest.mark.parametrize(
    ("ttl", "changed", "expected"),
    [(60, False, 120), (60, True, 30), (3000, False, 3600), (15, True, 10), (1, False, 10)],
)
def test_next_ttl(ttl: float, changed: bool, expected: float) -> None:
    """Twice as long when nothing changed, half as long when something did, within 10 s and an hour."""
    assert next_ttl(ttl, changed=changed, least=10, most=3600) == expected
