"""Marks answers that the app made while one of its own calls went wrong, so that they are not kept.

Must be below `cache`, which does not store what is marked and gives the mark to all who wait for the same
answer, and above `retry`: what counts is the time since the app was first asked. The answer's head decides
about the mark. A call that goes wrong while the body is still on its way can only keep it from being stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.exchange import Stream
from sidecar.headers import Line, every

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.exchange import End, Exchange, Response
    from sidecar.overlap import Trace
    from sidecar.pipeline import Handler, Layer, Place


def layer(place: Place) -> Layer | None:
    among = place.depends_on
    if not among:
        return None
    expects = place.expects
    cached = place.route.cache is not None
    overlaps = place.services.overlaps
    seen = overlaps.seen
    cells = place.services.metrics.route(place.route.name, place.upstream)

    def around(inner: Handler) -> Handler:
        async def overlap(exchange: Exchange) -> Response:
            if exchange.traceparent is not None:
                return await traced(exchange, exchange.traceparent[0])
            return judged(exchange, await inner(exchange), None)

        async def traced(exchange: Exchange, trace_id: bytes) -> Response:
            trace = overlaps.enter(trace_id)
            try:
                response = judged(exchange, await inner(exchange), trace)
            except BaseException:
                overlaps.leave(trace_id, trace)
                raise
            response.on_end(lambda _: overlaps.leave(trace_id, trace))
            return response

        def judged(exchange: Exchange, response: Response, trace: Trace | None) -> Response:
            started = exchange.started
            if overlaps.kept or overlaps.last >= started:
                names = overlaps.blamed(started, trace, among)
                if overlaps.kept:
                    kept = overlaps.remembered(exchange.request.body, among)
                    names = tuple(sorted({*names, *kept}))
                if names:
                    added = _mark(response, names)
                    for name in added:
                        cells.degraded(name)
                        exchange.note("overlap", f"degraded={name}")
                    return response
            if cached and not seen >= expects:
                # The app may call past the sidecar: nobody can tell what it was answered.
                response.degraded = True
                exchange.note("overlap", "unseen")
            elif isinstance(response.body, Stream):
                response.body.on_end(_still_good(response, lambda: overlaps.blamed(started, trace, among)))
            return response

        return overlap

    return around


def _still_good(response: Response, blamed: Callable[[], Sequence[str]]) -> Callable[[End], None]:
    def ended(_: End) -> None:
        if blamed():
            response.degraded = True

    return ended


def _mark(response: Response, names: Sequence[str]) -> Sequence[str]:
    """Says on the answer what it was made without; which of `names` were not said yet.

    One name is a Token, several are an Inner List (RFC 9651, 3.1.1).
    """
    ours = b"upstream="
    said: list[str] = []
    marks = every(response.headers, b"sidecar-degraded") if response.degraded else ()
    if marks:  # by `classify`
        value = marks[-1]
        said = value.removeprefix(ours).strip(b"()").decode("ascii").split()
    response.degraded = True
    added = [name for name in names if name not in said]
    if not added:
        return added
    if said:
        lines = [line for line in response.headers if line.name == b"sidecar-degraded"]
        response.headers = [line for line in response.headers if line is not lines[-1]]
        response.plain = None
    whole = [*said, *added]
    shown = whole[0] if len(whole) == 1 else f"({' '.join(whole)})"
    response.add(Line(b"Sidecar-Degraded", ours + shown.encode("ascii")))
    return added
