"""Repeats a failed attempt, where that is safe, affordable and in time.

Must be above `circuit_breaker`: each attempt is judged singly, and an open breaker is not retried.
Nothing is retried once a response was handed up: what streams to the client is final.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.decisions.backoff import category_of
from sidecar.decisions.replay import Replay, RetryRule, wait_before
from sidecar.decisions.retry_after import parse_retry_after
from sidecar.decisions.verdict import OUTCOMES, Outcome, Verdict
from sidecar.errors import ConnectFailed, UpstreamError
from sidecar.exchange import Stream
from sidecar.replayable import Recording

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler, Layer, Place


def layer(place: Place) -> Layer | None:
    settings = place.route.retry
    if settings is None or settings.attempts < 2:
        return None
    services = place.services
    clock = services.clock
    random = services.random.random
    cells = services.metrics.route(place.route.name, place.upstream)
    budget = services.state.budget(place.upstream, place.route.name, settings)
    backoff = services.state.backoff(place.upstream, settings)
    rule = RetryRule(
        settings.attempts,
        settings.methods,
        tuple(Verdict(word) for word in settings.on.verdicts),
        settings.on.statuses,
        settings.on.errors,
        settings.retry_after_max,
    )
    max_body = settings.max_body
    recent = backoff.recent if backoff.adapts else None
    ok = Verdict.OK

    def around(inner: Handler) -> Handler:
        async def retry(exchange: Exchange) -> Response:
            budget.deposit(exchange.started)
            body = exchange.request.body
            recording = None
            if isinstance(body, Stream):
                recording = exchange.request.body = Recording(body, max_body)
            attempts = 0
            waited = 0.0
            while True:
                attempts += 1
                response: Response | None = None
                error: UpstreamError | None = None
                try:
                    response = await inner(exchange)
                except UpstreamError as caught:
                    error = caught
                verdict = response.verdict if response is not None else None
                if recent is not None:
                    recent.record(verdict is not None and OUTCOMES[verdict] is Outcome.SUCCESS)
                if verdict is ok and response is not None:
                    return response
                status = response.status if response is not None else 0
                reason = error.reason if error is not None else None
                now = clock.now()
                delay = backoff.next_delay(attempts, waited, random(), category_of(reason, verdict, status))
                retry_after = _asked_for(response, clock)
                decision = rule.judge(
                    method=exchange.request.method,
                    reason=reason,
                    verdict=verdict,
                    status=status,
                    attempts=attempts,
                    nothing_sent=isinstance(error, ConnectFailed),
                    replayable=recording is None or recording.replayable,
                    delay=delay,
                    retry_after=retry_after,
                    time_left=None if exchange.deadline is None else exchange.deadline - now,
                )
                skipped = _skipped(decision)
                if decision is Replay.GO and not budget.try_withdraw(now):
                    skipped = "budget"
                if decision is not Replay.GO or skipped:
                    if skipped:
                        exchange.note("retry", f"skipped={skipped}")
                        cells.retry_skipped(skipped)
                    if error is not None:
                        raise error
                    assert response is not None
                    return response
                if response is not None:
                    response.close()
                why = reason or (verdict.value if verdict is not None else "")
                exchange.note("retry", why)
                cells.retry(why)
                waited = wait_before(delay, retry_after)
                if waited > 0:
                    await clock.sleep(waited)
                if recording is not None:
                    recording.rewind()

        return retry

    return around


def _asked_for(response: Response | None, clock: Clock) -> float | None:
    """Seconds of `Retry-After`; None where there is none."""
    value = response.header(b"retry-after") if response is not None else None
    return parse_retry_after(value, clock.wall()) if value is not None else None


def _skipped(decision: Replay) -> str:
    """What the trail says of a retry that does not take place; nothing where none was due."""
    if decision in (Replay.GO, Replay.NOT_LISTED):
        return ""
    return "body-too-large" if decision is Replay.NOT_REPLAYABLE else decision.value
