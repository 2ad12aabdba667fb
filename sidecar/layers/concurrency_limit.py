"""Bounds the attempts in flight at an upstream.

Must be below `retry`: a permit is held for one attempt, not for the back-off between them. It is
given back when the body ends, not at the headers.

An adaptive limit learns from the time to the response headers. What may last for hours, tunnels and event
streams, tells it nothing, and gives its permit back at the headers: a limit that is learnt from requests
would be filled by connections that are idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.decisions.gradient import AdaptiveLimit
from sidecar.decisions.priority import Priority, priority_of
from sidecar.decisions.verdict import OUTCOMES, Outcome, Verdict
from sidecar.errors import AttemptTimeout, ConnectionReset, LimitExceeded
from sidecar.guards import Guard, Guarded

if TYPE_CHECKING:
    from sidecar.exchange import End, Exchange, Response
    from sidecar.pipeline import Layer, Place

NAME = "concurrency_limit"


def layer(place: Place) -> Layer | None:
    settings = place.route.concurrency_limit
    if settings is None:
        return None
    gate = place.services.state.gate(place.upstream, place.route.name, settings)
    cells = place.services.metrics.route(place.route.name, place.upstream)
    now = place.services.clock.now
    limit = gate.limit
    adaptive = limit if isinstance(limit, AdaptiveLimit) else None
    give_back = limit.release
    default = Priority[settings.priority.upper()]
    ok = Verdict.OK

    async def wait(exchange: Exchange) -> bool:
        """By class and by queue, where a permit is not simply there."""
        try:
            if await gate.enter(priority_of(exchange.request.headers, default), exchange.deadline):
                exchange.note(NAME, "queued")
        except LimitExceeded:
            exchange.note(NAME, "rejected")
            cells.limit_rejected()
            raise
        return True

    async def overlook(exchange: Exchange) -> bool:
        """`mode: shadow`: a permit in any case."""
        if not limit.try_acquire_as(priority_of(exchange.request.headers, default)):
            limit.take()
            if exchange.would_reject(NAME):
                cells.would_reject(NAME)
        return True

    def learn(limit: AdaptiveLimit, exchange: Exchange, response: Response) -> None:
        verdict = response.verdict
        if verdict is ok or verdict is None or OUTCOMES[verdict] is Outcome.SUCCESS:
            limit.sample(exchange.upstream_seconds)
            if gate.waiting:  # it may have grown
                gate.admit()
        elif verdict is Verdict.TRANSIENT and response.status == 503:  # overloaded (RFC 9110, 15.6.4)
            limit.drop(exchange.attempt_started, now())
            if gate.waiting:  # what is kept for higher classes is rounded up: less of it may be kept now
                gate.admit()

    def release(_: End) -> None:
        gate.leave()

    if settings.mode == "shadow":
        wait = overlook

    def enter(_: Exchange, __: float) -> bool | None:
        return None if gate.waiting or not limit.try_acquire() else True

    def leave(exchange: Exchange, _: bool, response: Response) -> None:
        if gate.waiting:
            gate.served(exchange.upstream_seconds)
        streams = type(response.body) is not bytes or response.tunnel is not None
        if adaptive is not None:
            if streams and response.lasting:
                streams = False
            elif response.verdict is ok:
                adaptive.sample(exchange.upstream_seconds)
                if gate.waiting:  # it may have grown
                    gate.admit()
            else:
                learn(adaptive, exchange, response)
        if streams:
            response.on_end(release)
        else:
            give_back()
            if gate.waiting:
                gate.admit()

    def fail(exchange: Exchange, _: bool, error: BaseException) -> BaseException:
        if adaptive is not None and isinstance(error, (AttemptTimeout, ConnectionReset)):
            adaptive.drop(exchange.attempt_started, now())
        gate.leave()
        return error

    return Guarded(lambda: Guard(enter, leave, fail, wait), now)
