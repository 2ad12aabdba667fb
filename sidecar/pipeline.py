"""The order of the layers, and how a route's pipeline is composed. Read this first.

A request enters at the top of `ORDER` and goes down; its response comes back up. Each layer is one
file in `layers/`, with one function `layer(place)` that returns the layer for a route, or None when
the route does not ask for it: a policy that a route does not name adds no frame to its calls. Those that
only decide before an attempt and learn from how it ended are guards (`guards.py`), which share one.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from sidecar.exchange import Exchange, Response
from sidecar.guards import Guard, Guarded, guarded

if TYPE_CHECKING:
    from sidecar.caching.cache import Caching
    from sidecar.clock import Clock, Random
    from sidecar.config.schema import Route
    from sidecar.listeners.memo import Memo
    from sidecar.overlap import Overlaps
    from sidecar.state import State
    from sidecar.telemetry.access_log import AccessLog
    from sidecar.telemetry.metrics import Metrics
    from sidecar.telemetry.trace import Tracer

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
    overlaps: Overlaps
    tracer: Tracer | None = None
    """Where spans are exported."""


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
    depends_on: frozenset[str] = frozenset()
    """The egress policy files whose failing calls make an answer of the app doubtful."""
    expects: frozenset[str] = frozenset()
    """Those of them that the policy file names: until their calls are seen, nobody can tell."""
    alternates: tuple[Handler, ...] = ()
    """The other upstreams that the route's `fallback` names, in its order, each with its own layers."""
    alternate: bool = False
    """It is one of these."""
    memo: Memo | None = None
    """Remembers heads of requests that the cache answered; None where nothing may be remembered."""


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
        fallback,
        fault,
        observe,
        overlap,
        pace,
        rate_limit,
        retry,
    )

    return (
        Step("observe", "sees every final outcome, and turns errors into responses", observe.layer),
        Step("rate_limit", "above cache: it protects the sidecar itself", rate_limit.layer),
        Step(
            "fallback",
            "above cache: a stale answer goes first, and a fallback is never stored",
            fallback.layer,
        ),
        Step("cache", "above deadline and retry: one coalesced fill for all who wait", cache.layer),
        Step(
            "overlap",
            "below cache: what the app said while a call of its own failed is not stored",
            overlap.layer,
        ),
        Step("deadline", "only sets a value: retry and the attempt's timer read it", deadline.layer),
        Step("retry", "above the breaker: attempts are judged singly", retry.layer),
        Step("circuit_breaker", "above the attempt timeout: it must see timeouts", circuit_breaker.layer),
        Step("concurrency_limit", "per attempt: its time excludes back-off", concurrency_limit.layer),
        Step(
            "pace", "per attempt, above its timer: waiting for a turn is not the upstream's time", pace.layer
        ),
        Step("attempt_timeout", "the one timer: its own, or what is left", attempt_timeout.layer),
        Step("classify", "the verdict that all of the above read", classify.layer),
        Step("fault", "innermost: what it injects, all of the above take for real", fault.layer),
    )


ORDER: tuple[Step, ...] = _order()
"""Outermost first."""


WITHOUT_UPSTREAM: Final = frozenset({"observe", "rate_limit"})
"""The layers of a route that answers by itself: none that looks after an upstream."""
_ABOVE_ATTEMPTS: Final = frozenset({"observe", "rate_limit", "fallback", "cache", "overlap"})
"""The layers that a request goes through once, whichever upstream is asked."""


def _steps(route: Route) -> list[Step]:
    return [step for step in ORDER if route.respond is None or step.name in WITHOUT_UPSTREAM]


_UNMOVED_BY_HITS: Final = frozenset({"observe", "fallback"})
"""The layers above `cache` that do nothing about a fresh hit but what `on_sent` stands for."""


def compile_pipeline(place: Place, upstream: Handler) -> Handler:
    """Composes the layers that the route names around `upstream`."""
    steps = _steps(place.route)
    if place.memo is not None and _sees_hits(place, steps):
        place = replace(place, memo=None)
    return _compose(place, steps, upstream)


def _sees_hits(place: Place, steps: Sequence[Step]) -> bool:
    """Whether something above `cache` must see each request, those too that the cache answers."""
    above = itertools.takewhile(lambda step: step.name != "cache", steps)
    others = (step for step in above if step.name not in _UNMOVED_BY_HITS)
    return place.services.tracer is not None or any(step.layer(place) is not None for step in others)


def compile_alternate(place: Place, upstream: Handler) -> Handler:
    """The same for an upstream that a fallback asks: without the layers that the request is in already."""
    steps = [step for step in ORDER if step.name not in _ABOVE_ATTEMPTS]
    return _compose(replace(place, alternate=True), steps, upstream)


def _compose(place: Place, steps: Sequence[Step], handler: Handler) -> Handler:
    tracer, now = place.services.tracer, place.services.clock.now
    if tracer is not None and place.route.respond is None:
        handler = tracer.attempts(place, handler)
    guards: list[Guard[Any]] = []
    for step in reversed(steps):
        layer = step.layer(place)
        if layer is None:
            continue
        if isinstance(layer, Guarded):
            guards.insert(0, layer.bind())
        else:
            handler = layer(guarded(guards, handler, now))
            guards.clear()
        place = replace(place, below=(step.name, *place.below))
    return guarded(guards, handler, now)


def composed(place: Place) -> list[Step]:
    """The steps of a route's pipeline, outermost first."""
    return [step for step in _steps(place.route) if step.layer(place) is not None]
