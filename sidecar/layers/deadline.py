"""Sets the time past which nobody waits for the answer.

Must be above `retry` and `attempt_timeout`, which read it. It only sets a value: the one timer is
the attempt's. Below `cache`, so that each fill has its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler, Layer, Place


def layer(place: Place) -> Layer | None:
    seconds = place.route.deadline
    if seconds is None:
        return None

    def around(inner: Handler) -> Handler:
        def deadline(exchange: Exchange) -> Awaitable[Response]:
            exchange.deadline = exchange.started + seconds
            return inner(exchange)

        return deadline

    return around
