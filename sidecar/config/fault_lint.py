"""Settings of `fault` that are valid one by one and make no sense together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal

from sidecar.config import fallback_lint
from sidecar.config.fault_policy import Fault
from sidecar.config.place import Place
from sidecar.config.policy import PolicyFile, Route
from sidecar.config.problems import Problem
from sidecar.config.schema import Environment

EFFECTS: Final = ("delay", "respond", "reset", "truncate", "bandwidth")
_AFTER_HEAD: Final = ("respond", "truncate", "bandwidth")

Finding = tuple[Literal["error", "warning"], str, str]
"""How bad, which key of the fault (empty: the whole), and what is wrong."""


def production(environment: Environment, files: Iterable[PolicyFile], place: Place) -> Iterator[Problem]:
    """Findings about faults where customers are."""
    if environment != "production":
        return
    for policy in files:
        for route in policy.routes:
            if route.fault is not None:
                at = Place.of(place.origins, policy.name, route.name)
                yield at.error(
                    "fault", "no faults are injected in production (remove it, or write fault: off)"
                )


def route(route: Route, place: Place) -> Iterator[Problem]:
    """Findings about `fault` of a route."""
    if route.fault is None:
        return
    for severity, key, text in findings(route.fault):
        path = f"fault.{key}" if key else "fault"
        yield place.error(path, text) if severity == "error" else place.warning(path, text)
    if route.fault.respond is not None:
        yield from fallback_lint.unknown_variables(route.fault.respond, "fault.respond", route, place)
    if route.fault.expires is None:
        yield place.warning("fault", "injects failures without end (write expires: 10m, or a time)")


def findings(fault: Fault) -> Iterator[Finding]:
    """What is wrong with a fault, wherever it comes from."""
    if not any(getattr(fault, name) for name in EFFECTS):
        yield "error", "", f"does nothing (write one of {', '.join(EFFECTS)})"
    for name in _AFTER_HEAD:
        if fault.reset and getattr(fault, name) is not None:
            yield "error", name, "after a reset nothing comes (remove one of the two)"
    if fault.every is not None and fault.first is not None and fault.every > fault.first:
        yield (
            "error",
            "every",
            f"the first {fault.first} attempts hold no {fault.every}. one: none is hit (raise first)",
        )
    if fault.respond is not None:
        for name, text in fallback_lint.body(fault.respond):
            yield "error", f"respond.{name}", text
    delay = fault.delay
    if delay is not None and delay.min > delay.max:
        yield "error", "delay.min", "longer than max (raise max)"
    elif delay is not None and not delay.max:
        yield "error", "delay", "waits for no time at all (write a longer one)"
