"""`observe`: counts and logs every request once, when its answer is over, and turns errors into answers.

Must stand outermost: it sees every final outcome, and no error may pass it. What is measured starts with
the request's head and ends when the listener says that the answer is over, by `exchange.on_sent`: an
answer whose body breaks on its stack is not a success.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sidecar.decisions.trail import Facts
from sidecar.errors import ClientGone, SidecarError, rescue
from sidecar.headers import Line
from sidecar.telemetry.access_lines import Stack
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler, Layer, Place

DECISION: Final = b"Sidecar-Decision"
"""Field that carries the trail of an answer up to its head."""


def layer(place: Place) -> Layer:
    services = place.services
    cells = services.metrics.route(place.route.name, place.upstream)
    services.state.show("route", place.route.name)
    record = cells.record
    append = services.access_log.append if services.access_log.enabled else None
    now = services.clock.now
    name = place.route.name
    stack = Stack(place.below, place.plane, services.state.switched_off(name))
    tracer = services.tracer
    finish = tracer.finish(place) if tracer is not None else None
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
            append(exchange, status, ended, how, stack)
        if finish is not None:
            finish(exchange, status, ended, how, stack)

    def telling(exchange: Exchange, response: Response) -> Response:
        """`response` with the decision trail, for a client that asks for it."""
        milliseconds = (now() - exchange.started) * 1000
        value = f"{trail(stack, exchange, response)}, observe;ms={milliseconds:.3f}"
        _replace(response, Line(DECISION, value.encode("ascii")))
        return response

    def around(inner: Handler) -> Handler:
        async def observe(exchange: Exchange) -> Response:
            exchange.route = name
            exchange.on_sent = sent
            try:
                response = await inner(exchange)
                return telling(exchange, response) if exchange.debug else response
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
            response = rescue(exchange.error, exchange.request_id, name)
            if exchange.cache_status:
                response.add(Line(b"Cache-Status", exchange.cache_status))
            return telling(exchange, response) if exchange.debug else response

        if tracer is None:
            return observe
        begin = tracer.begin

        def traced(exchange: Exchange) -> Awaitable[Response]:
            begin(exchange)
            return observe(exchange)

        return traced

    return around


def trail(stack: Stack, exchange: Exchange, response: Response) -> str:
    """What was decided about `exchange`, as far as it has come, when `response` is to answer it."""
    facts = Facts(
        response.status,
        attempts=exchange.attempts,
        verdict="" if exchange.verdict is None else exchange.verdict.value,
        cache=exchange.cache,
        error="" if exchange.error is None else exchange.error.code,
        rung=exchange.rung,
    )
    return stack.trail(facts, exchange.note_list or ())


def _replace(response: Response, ours: Line) -> None:
    """Puts `ours` into the place of what the upstream may have sent under that name."""
    theirs = [line for line in response.headers if line.name == ours.name]
    if theirs:
        response.headers = [line for line in response.headers if line not in theirs]
        if response.plain is not None:
            for line in theirs:
                response.plain = response.plain.replace(line.wire, b"", 1)
    response.add(ours)
