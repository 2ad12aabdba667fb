"""Gives every attempt its verdict, and counts it.

Must be the layer closest to the upstream (save `fault`): all that stand above act on the verdict,
never on the bare status. Below `attempt_timeout`, so that waiting for a body that has to be looked at
is part of the attempt.

Where rules need the body it is looked at before anything is handed up. Nothing is taken out of it: what
comes streaming goes on from its first byte, with all that waits for its end; a small one that is whole
by then is handed up whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.config.classify_rules import compiled
from sidecar.decisions.opening import NOTHING, opening
from sidecar.decisions.verdict import BY_STATUS, Verdict
from sidecar.errors import UpstreamError
from sidecar.exchange import Stream
from sidecar.headers import Line

if TYPE_CHECKING:
    from sidecar.decisions.classify import Judgement, Plan, Rules
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
    if place.route.classify is not None:
        return _with_rules(place, compiled(place.route.classify, verdicts), timed=timed)

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


def _with_rules(place: Place, rules: Rules, *, timed: bool) -> Layer:
    clock = place.services.clock
    cells = place.services.metrics.upstream(place.upstream)
    counted = place.services.metrics.route(place.route.name, place.upstream).degraded
    ok = Verdict.OK

    def around(inner: Handler) -> Handler:
        async def classify(exchange: Exchange) -> Response:
            if not timed:
                exchange.attempt_started = clock.now()
            try:
                response = await inner(exchange)
                exchange.upstream_seconds = seconds = clock.now() - exchange.attempt_started
                plan = rules.plan(response.status, response.headers)
                judgement = plan.otherwise
                trouble = ""
                if plan.pending and response.body:
                    value, trouble = await _look(response, plan)
                    if value is not NOTHING:
                        judgement = plan.settle(value)
            except UpstreamError as error:
                exchange.note("upstream", f"error={error.code}")
                exchange.note("classify", "transient")
                exchange.upstream_seconds = clock.now() - exchange.attempt_started
                exchange.verdict = Verdict.TRANSIENT
                cells.attempt(Verdict.TRANSIENT, exchange.upstream_seconds)
                raise
            verdict, degraded = judgement
            exchange.verdict = response.verdict = verdict
            cells.attempt(verdict, seconds)
            if verdict is not ok or trouble or degraded:
                _tell(exchange, response, judgement, trouble)
                if degraded:
                    counted(degraded)
            return response

        return classify

    return around


def _tell(exchange: Exchange, response: Response, judgement: Judgement, trouble: str) -> None:
    """Notes what is out of the ordinary, and marks an answer that was made without something."""
    verdict, degraded = judgement
    decision = f"{verdict.value};{trouble}" if trouble else verdict.value
    if degraded:
        decision += f";degraded={degraded}"
        response.degraded = True
        response.add(Line(b"Sidecar-Degraded", b"upstream=" + degraded.encode("ascii")))
    exchange.note("upstream", f"status={response.status}")
    exchange.note("classify", decision)


async def _look(response: Response, plan: Plan) -> tuple[Any, str]:
    """The JSON value that the body holds, or begins with; `NOTHING` where it has none that matters, and why.

    Raises what broke the body, if that happened before enough of it was there.
    """
    body = response.body
    length = body.length if isinstance(body, Stream) else len(body)
    look = opening(response.headers, length, plan.undecided, plan.pick)
    if isinstance(look, str):
        return NOTHING, look
    if not isinstance(body, Stream):
        if not look.feed(body):
            look.finish(body)
        return look.value, look.trouble
    number = 0
    try:
        while chunk := await body.peek(number):
            if look.feed(chunk):
                break
            number += 1
        else:
            response.body = whole = body.whole()
            look.finish(whole)
    except BaseException:
        response.close()
        raise
    return look.value, look.trouble
