"""The order of the layers, and how a route's pipeline is composed. Read this first.

A request enters at the top of `ORDER` and goes down; its response comes back up. Each layer is one
file in `layers/`, with one function `layer(place)` that returns the layer for a route, or None when
the route does not ask for it: a policy that a route does not name adds no frame to its calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from sidecar.exchange import Exchange, Response

if TYPE_CHECKING:
    from sidecar.caching.cache import Caching
    from sidecar.clock import Clock, Random
    from sidecar.config.schema import Route
    from sidecar.state import State
    from sidecar.telemetry.access_log import AccessLog
    from sidecar.telemetry.metrics import Metrics

Handler = Callable[[Exchange], Awaitable[Response]]
Layer = Callable[[Handler], Handler]


@dataclass(frozen=True, slots=True)
class Services:
    """What `app.py` builds once and every layer may use."""

    clock: Clock
    random: Random
    state: State
    metrics: Metrics
    access_log: AccessLog
    caching: Caching


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer stands: the route it serves, the upstream below it, the services around it."""

    route: Route
    upstream: str
    services: Services
    below: tuple[str, ...] = ()
    """The layers between it and the upstream, outermost first."""
    policy: str = ""
    """The policy file; empty for requests that no file speaks of."""
    plane: Literal["ingress", "egress"] = "ingress"


class Step(NamedTuple):
    name: str
    why: str
    layer: Callable[[Place], Layer | None]


def _order() -> tuple[Step, ...]:
    from sidecar.layers import (
        attempt_timeout,
        cache,
        circuit_breaker,
        classify,
        concurrency_limit,
        deadline,
        observe,
        retry,
    )

    return (
        Step("observe", "sees every final outcome, and turns errors into responses", observe.layer),
        Step("cache", "above deadline and retry: one coalesced fill for all who wait", cache.layer),
        Step("deadline", "only sets a value: retry and the attempt's timer read it", deadline.layer),
        Step("retry", "above the breaker: attempts are judged singly", retry.layer),
        Step("circuit_breaker", "above the attempt timeout: it must see timeouts", circuit_breaker.layer),
        Step("concurrency_limit", "per attempt: its time excludes back-off", concurrency_limit.layer),
        Step("attempt_timeout", "the one timer: its own, or what is left", attempt_timeout.layer),
        Step("classify", "the verdict that all of the above read", classify.layer),
    )


ORDER: tuple[Step, ...] = _order()
"""Outermost first."""


def compile_pipeline(place: Place, upstream: Handler) -> Handler:
    """Composes the layers that the route names around `upstream`."""
    handler = upstream
    for step in reversed(ORDER):
        layer = step.layer(place)
        if layer is not None:
            handler = layer(handler)
            place = replace(place, below=(step.name, *place.below))
    return handler


def composed(place: Place) -> list[Step]:
    """The steps of a route's pipeline, outermost first: what `sidecar routes` prints."""
    return [step for step in ORDER if step.layer(place) is not None]
