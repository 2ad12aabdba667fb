"""Gives every attempt its verdict, and counts it.

Must be the layer closest to the upstream (save `fault`): all that stand above act on the verdict,
never on the bare status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.decisions.verdict import BY_STATUS, Verdict
from sidecar.errors import UpstreamError

if TYPE_CHECKING:
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler, Layer, Place


def layer(place: Place) -> Layer | None:
    clock = place.services.clock
    cells = place.services.metrics.upstream(place.upstream)
    # Then that layer has noted when the attempt began.
    timed = place.route.attempt_timeout is not None or place.route.deadline is not None
    ok = Verdict.OK
    retry = place.route.retry
    listed = retry.on.statuses if retry is not None else ()
    verdicts = tuple(
        Verdict.TRANSIENT if status in listed else verdict for status, verdict in enumerate(BY_STATUS)
    )

    def around(inner: Handler) -> Handler:
        async def classify(exchange: Exchange) -> Response:
            if not timed:
                exchange.attempt_started = clock.now()
            try:
                response = await inner(exchange)
            except UpstreamError as error:
                exchange.note("upstream", f"error={error.code}")
                exchange.note("classify", "transient")
                exchange.upstream_seconds = clock.now() - exchange.attempt_started
                exchange.verdict = Verdict.TRANSIENT
                cells.attempt(Verdict.TRANSIENT, exchange.upstream_seconds)
                raise
            exchange.upstream_seconds = seconds = clock.now() - exchange.attempt_started
            exchange.verdict = response.verdict = verdict = verdicts[response.status]
            cells.attempt(verdict, seconds)
            if verdict is not ok:
                exchange.note("upstream", f"status={response.status}")
                exchange.note("classify", verdict.value)
            return response

        return classify

    return around
