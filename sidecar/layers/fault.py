"""Injects failures into attempts: latency, answers, resets, bodies that break off or drip.

Must be the innermost layer: whatever it does, the layers above take it for the upstream's own doing, so
that it counts in the breaker and is retried as a real failure is. It stands in every pipeline, as faults
may be set at run time: while none is in force it is one look at a slot, and no frame of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.errors import ConnectionReset
from sidecar.exchange import Response, Stream
from sidecar.responder import Responder
from sidecar.shaping import ShapedBody

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sidecar.config.schema import Respond
    from sidecar.exchange import Exchange
    from sidecar.faults import ActiveFault
    from sidecar.pipeline import Handler, Layer, Place


def layer(place: Place) -> Layer:
    services = place.services
    clock = services.clock
    random = services.random.random
    faults = services.state.faults
    route = place.route
    slot = faults.slot(route.name, place.upstream, route.fault, alternate=place.alternate)
    cells = services.metrics.route(route.name, place.upstream)
    responders: dict[Respond, Responder] = {}

    def due(now: float) -> ActiveFault | None:
        """The fault that hits this attempt."""
        for active in slot.active or ():
            if active.ended(now):
                faults.sweep(now)
            elif active.plan.hits(random() if active.settings.percent < 1 else 0.0):
                return active
        return None

    def around(inner: Handler) -> Handler:
        def fault(exchange: Exchange) -> Awaitable[Response]:
            return inner(exchange) if slot.active is None else injected(exchange)

        async def injected(exchange: Exchange) -> Response:
            active = due(clock.now())
            if active is None:
                return await inner(exchange)
            settings = active.settings
            delay = active.plan.delay(random()) if settings.delay is not None else 0.0
            exchange.note("fault", active.told(delay))
            for kind in active.kinds:
                cells.fault_injected(kind)
            # To the layers above the upstream is at work from here on.
            exchange.attempts += 1
            exchange.upstream = place.upstream
            if delay:
                await clock.sleep(delay)
            if settings.reset:
                raise ConnectionReset
            if settings.respond is not None:
                return shaped(responder(settings.respond).answer(exchange), active)
            exchange.attempts -= 1  # it counts its own
            return shaped(await inner(exchange), active)

        def responder(respond: Respond) -> Responder:
            """Compiled when the first attempt is answered so."""
            known = responders.get(respond)
            if known is None:
                responders.clear()
                known = responders[respond] = Responder(respond, route.match)
            return known

        def shaped(response: Response, active: ActiveFault) -> Response:
            settings = active.settings
            body = response.body
            length = body.length if isinstance(body, Stream) else len(body)
            cut = settings.truncate is not None and (length is None or length > settings.truncate)
            if (cut or settings.bandwidth is not None) and length != 0 and response.tunnel is None:
                shaping = ShapedBody(body, clock, rate=settings.bandwidth, most=settings.truncate)
                response.body = shaping.start(faults.keep)
            return response

        return fault

    return around
