"""Bounds the attempts in flight at an upstream.

Must be below `retry`: a permit is held for one attempt, not for the back-off between them. It is
given back when the body ends, not at the headers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.errors import LimitExceeded
from sidecar.exchange import End, Stream

if TYPE_CHECKING:
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler, Layer, Place


def layer(place: Place) -> Layer | None:
    settings = place.route.concurrency_limit
    if settings is None:
        return None
    gate = place.services.state.gate(place.upstream, place.route.name, settings)
    cells = place.services.metrics.route(place.route.name, place.upstream)
    limit = gate.limit

    def release(_: End) -> None:
        gate.leave()

    def around(inner: Handler) -> Handler:
        async def concurrency_limit(exchange: Exchange) -> Response:
            if gate.waiting or not limit.try_acquire():
                try:
                    await gate.enter(exchange.deadline)
                except LimitExceeded:
                    exchange.note("concurrency_limit", "rejected")
                    cells.limit_rejected()
                    raise
                exchange.note("concurrency_limit", "queued")
            try:
                response = await inner(exchange)
            except BaseException:
                gate.leave()
                raise
            if isinstance(response.body, Stream) or response.tunnel is not None:
                response.on_end(release)
            else:
                gate.leave()
            return response

        return concurrency_limit

    return around
