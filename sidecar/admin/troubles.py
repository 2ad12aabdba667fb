"""What is wrong now, in words, the worst first: the line that an operator reads before any figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

Level = Literal["critical", "serious", "warning", "note"]
_ORDER: Final[tuple[Level, ...]] = ("critical", "serious", "warning", "note")

FEWEST: Final = 5
"""Requests in a minute that a share is told of: below that it is chance."""
ERRORS: Final[tuple[tuple[float, Level], ...]] = ((0.5, "critical"), (0.1, "serious"), (0.01, "warning"))
"""Share of a route's answers that are errors, and how bad that is."""
FALLBACKS: Final = 0.1
FAILING_CALLS: Final = 0.1
LIMITED_CALLS: Final = 0.02

_CAUSES: Final = {
    "consecutive": "failures in a row",
    "failure_ratio": "too many failures",
    "slow_ratio": "too many slow calls",
    "probe_failed": "a probe failed",
    "probes_slow": "probes are slow",
}


class Trouble(NamedTuple):
    level: Level
    text: str


def troubles(
    health: Mapping[str, Any],
    routes: Sequence[Mapping[str, Any]],
    breakers: Sequence[Mapping[str, Any]],
    upstreams: Sequence[Mapping[str, Any]],
) -> list[Trouble]:
    """The worst first; of the same level what stands nearer to the client. Empty when all is well.

    `health` is the detailed report, `breakers` as the admin listener lists them; `routes` and `upstreams`
    have the figures of the last minute.
    """
    found = [*_of_health(health), *_of_routes(routes), *_of_breakers(breakers), *_of_upstreams(upstreams)]
    return sorted(found, key=lambda it: _ORDER.index(it.level))


def _of_health(health: Mapping[str, Any]) -> Iterator[Trouble]:
    reason = health.get("reason", "")
    if reason in ("draining", "starting"):
        yield Trouble("critical", f"The sidecar is {reason}: it takes no requests.")
    for name, check in health["checks"].items():
        status = check["status"]
        if status == "healthy" or name.startswith("upstream:"):  # the breakers tell more
            continue
        why = check.get("reason", "")
        if name == "app":
            yield (
                Trouble("critical", f"The app is down: {why}.")
                if status == "unhealthy"
                else Trouble("serious", f"The app is in doubt: {why}.")
            )
        elif name == "redis":
            yield Trouble("warning", f"Redis is away ({why}); this replica goes on by itself.")
        elif name == "faults":
            yield Trouble("warning", f"Faults are injected on purpose: {', '.join(check['active'])}.")
        elif name == "event_loop":
            late = f"{check['lag_max_ms']:.0f} ms"
            yield Trouble("warning", f"The sidecar itself was up to {late} late in the last minute.")
        else:
            yield Trouble(
                "critical" if check.get("required") else "warning",
                f"{name} is {status}{f': {why}' if why else ''}.",
            )


def _of_routes(routes: Sequence[Mapping[str, Any]]) -> Iterator[Trouble]:
    for route in sorted(routes, key=lambda it: -it["errors"]):
        name, requests, errors = route["route"], route["requests"], route["errors"]
        if requests < FEWEST:
            continue
        level = next((level for share, level in ERRORS if errors / requests >= share), None)
        if level is not None:
            part = _share(errors, requests)
            yield Trouble(level, f"{part} of {requests} requests to {name} failed in the last minute.")
        fallen = sum(route["fallbacks"].values())
        if fallen / requests >= FALLBACKS:
            rungs = ", ".join(sorted(route["fallbacks"]))
            yield Trouble(
                "warning",
                f"{_share(fallen, requests)} of {requests} requests to {name} got a fallback ({rungs}).",
            )
        if route["degraded"] / requests >= FALLBACKS:
            part = _share(route["degraded"], requests)
            yield Trouble("warning", f"{part} of {name}'s answers were made without an upstream.")


def _of_breakers(breakers: Sequence[Mapping[str, Any]]) -> Iterator[Trouble]:
    for breaker in breakers:
        name, state, forced = breaker["breaker"], breaker["state"], breaker.get("forced")
        idle = breaker["mode"] != "enforce"
        if forced is not None:
            time = _time(forced["expires_in_seconds"])
            text = (
                f"The circuit breaker of {name} is forced {forced['state']} for {time}: {forced['reason']}."
            )
            yield Trouble("serious" if forced["state"] == "open" and not idle else "warning", text)
        elif state == "open":
            why = _CAUSES.get(breaker.get("cause", ""), "")
            text = f"The circuit breaker of {name} is open{f' ({why})' if why else ''}"
            yield (
                Trouble("note", f"{text}; it is in shadow mode and refuses nothing.")
                if idle
                else Trouble("serious", f"{text}: it is not called.")
            )
        elif state == "half_open":
            yield Trouble("note" if idle else "warning", f"Probes find out whether {name} is back.")


def _of_upstreams(upstreams: Sequence[Mapping[str, Any]]) -> Iterator[Trouble]:
    for upstream in upstreams:
        name, calls = upstream["upstream"], upstream["calls"]
        if upstream["held_seconds"] is not None:
            yield Trouble(
                "serious", f"{name} is held for {_time(upstream['held_seconds'])}: its quota is used up."
            )
        if calls < FEWEST:
            continue
        if upstream["failed"] / calls >= FAILING_CALLS:
            yield Trouble(
                "warning", f"{_share(upstream['failed'], calls)} of {calls} calls to {name} failed."
            )
        if upstream["limited"] / calls >= LIMITED_CALLS:
            part = _share(upstream["limited"], calls)
            yield Trouble("warning", f"{name} refused {part} of {calls} calls: too many, or no quota.")


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 10 or part == 0 else f"{percent:.1f} %"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
