"""`observe`: counts and logs every request once, when its answer is over, and turns errors into answers.

Must stand outermost: it sees every final outcome, and no error may pass it. What is measured starts with
the request's head and ends when the listener says that the answer is over, by `exchange.on_sent`: an
answer whose body breaks on its way is not a success.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.errors import ClientGone, SidecarError, rescue
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler, Layer, Place


def layer(place: Place) -> Layer:
    services = place.services
    cells = services.metrics.route(place.route.name, place.upstream)
    record = cells.record
    append = services.access_log.append if services.access_log.enabled else None
    now = services.clock.now
    name = place.route.name
    log = get_logger("sidecar.observe")

    def sent(exchange: Exchange, response: Response | None, how: str) -> None:
        if exchange.on_sent is None:  # a client that leaves is told of here and by the listener
            return
        exchange.on_sent = None
        ended = now()
        if response is None or (how == "client_gone" and not exchange.first_byte):
            status = ClientGone.status
        else:
            status = response.status
        seconds = ended - exchange.started
        record(exchange.request.method, status, seconds)
        if how != "done":
            if how == "client_gone":
                cells.client_gone()
            else:
                cells.aborted()
        trace = exchange.traceparent
        if trace is not None and int(trace[1], 16) & 1:  # an unsampled trace leads nowhere
            cells.exemplar(trace[0], seconds, ended)
        if append is not None:
            append(exchange, status, ended, how)

    def compose(inner: Handler) -> Handler:
        async def observe(exchange: Exchange) -> Response:
            exchange.route = name
            exchange.on_sent = sent
            try:
                return await inner(exchange)
            except SidecarError as error:
                exchange.error = error
            except asyncio.CancelledError:
                sent(exchange, None, "client_gone")
                raise
            except Exception:
                # The last line: whatever is wrong in a layer, the client gets an answer and we a traceback.
                exchange.error = SidecarError()
                log.exception("unexpected error", request_id=exchange.request_id, route=name)
            cells.error(exchange.error.code)
            return rescue(exchange.error, exchange.request_id, name)

        return observe

    return compose
