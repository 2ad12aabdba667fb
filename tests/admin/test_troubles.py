"""The words that tell an operator what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.admin.troubles import troubles

WELL: dict[str, Any] = {"checks": {"app": {"status": "healthy", "required": True}}}
ROUTE: dict[str, Any] = {"route": "matching", "requests": 200, "errors": 0, "fallbacks": {}, "degraded": 0}
BREAKER: dict[str, Any] = {"breaker": "maps", "state": "closed", "mode": "enforce", "cause": "consecutive"}
UPSTREAM: dict[str, Any] = {"upstream": "maps", "calls": 50, "failed": 0, "limited": 0, "held_seconds": None}


def told(**parts: Any) -> list[tuple[str, str]]:
    found = troubles(
        {**WELL, **parts.get("health", {})},
        [{**ROUTE, **parts.get("route", {})}],
        [{**BREAKER, **parts.get("breaker", {})}],
        [{**UPSTREAM, **parts.get("upstream", {})}],
    )
    return [(it.level, it.text) for it in found]


def check(name: str, **members: Any) -> dict[str, Any]:
    return {"health": {"checks": {name: members}}}


@pytest.mark.parametrize(
    ("parts", "level", "text"),
    [
        (
            {"health": {"reason": "draining"}},
            "critical",
            "The sidecar is draining: it takes no requests.",
        ),
        (
            check("app", status="unhealthy", required=True, reason="refused"),
            "critical",
            "The app is down: refused.",
        ),
        (
            check("app", status="degraded", reason="no answer within 2 s"),
            "serious",
            "The app is in doubt: no answer within 2 s.",
        ),
        (
            check("redis", status="degraded", reason="no connection"),
            "warning",
            "Redis is away (no connection); this replica goes on by itself.",
        ),
        (
            check("faults", status="degraded", active=["route geocode"]),
            "warning",
            "Faults are injected on purpose: route geocode.",
        ),
        (
            check("event_loop", status="degraded", lag_max_ms=1234.5),
            "warning",
            "The sidecar itself was up to 1234 ms late in the last minute.",
        ),
        (check("disk", status="degraded", reason="98 % full"), "warning", "disk is degraded: 98 % full."),
        (
            {"route": {"errors": 100}},
            "critical",
            "50 % of 200 requests to matching failed in the last minute.",
        ),
        (
            {"route": {"errors": 3}},
            "warning",
            "1.5 % of 200 requests to matching failed in the last minute.",
        ),
        (
            {"route": {"fallbacks": {"respond": 20, "stale": 20}}},
            "warning",
            "20 % of 200 requests to matching got a fallback (respond, stale).",
        ),
        (
            {"route": {"degraded": 100}},
            "warning",
            "50 % of matching's answers were made without an upstream.",
        ),
        (
            {"breaker": {"state": "open"}},
            "serious",
            "The circuit breaker of maps is open (failures in a row): it is not called.",
        ),
        (
            {"breaker": {"state": "open", "mode": "shadow"}},
            "note",
            (
                "The circuit breaker of maps is open (failures in a row); "
                "it is in shadow mode and refuses nothing."
            ),
        ),
        ({"breaker": {"state": "half_open"}}, "warning", "Probes find out whether maps is back."),
        (
            {
                "breaker": {
                    "state": "open",
                    "forced": {"state": "open", "reason": "their move", "expires_in_seconds": 540.0},
                }
            },
            "serious",
            "The circuit breaker of maps is forced open for 9 min: their move.",
        ),
        (
            {"upstream": {"held_seconds": 40.0}},
            "serious",
            "maps is held for 40 s: its quota is used up.",
        ),
        ({"upstream": {"failed": 25}}, "warning", "50 % of 50 calls to maps failed."),
        (
            {"upstream": {"limited": 5}},
            "warning",
            "maps refused 10 % of 50 calls: too many, or no quota.",
        ),
    ],
)
def test_each_trouble_has_its_words(parts: dict[str, Any], level: str, text: str) -> None:
    """What is wrong, how much, and how bad it is."""
    assert told(**parts) == [(level, text)]


def test_all_is_well() -> None:
    """Then nothing is told; a share of a few requests is chance."""
    assert told() == []
    assert told(route={"requests": 4, "errors": 4}) == []
    assert told(upstream={"calls": 4, "failed": 4}) == []


def test_the_worst_is_first() -> None:
    """Whatever it is of."""
    found = told(
        breaker={"state": "open"}, route={"errors": 4}, health={"checks": {"app": {"status": "unhealthy"}}}
    )
    assert [level for level, _ in found] == ["critical", "serious", "warning"]
