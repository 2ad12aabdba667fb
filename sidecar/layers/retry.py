"""Repeats a failed attempt, where that is safe, affordable and in time; sends a second one beside a slow one.

Must be above `circuit_breaker`: each attempt is judged singly, and an open breaker is not retried. Below
`deadline`, whose time left it reads. Nothing is retried once a response was handed up: what streams to the
client is final.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sidecar.clock import Ids
from sidecar.decisions.asked_wait import asked_wait
from sidecar.decisions.backoff import category_of
from sidecar.decisions.replay import Replay, RetryRule, wait_before
from sidecar.decisions.retry_hints import advised_against, client_retries, wants_event_stream
from sidecar.decisions.verdict import OUTCOMES, Outcome, Verdict
from sidecar.errors import ConnectFailed, UpstreamError
from sidecar.exchange import Stream
from sidecar.hedging import Hedging, Race
from sidecar.replayable import Recording

if TYPE_CHECKING:
    from sidecar.config.schema import Retry
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler, Layer, Place

KEYED: Final = frozenset({"POST", "PATCH"})
"""Methods that a key makes repeatable (draft-ietf-httpapi-idempotency-key-header, 2)."""
_UNLISTED: Final[dict[Verdict, str]] = {
    verdict: "" if OUTCOMES[verdict] is Outcome.SUCCESS else verdict.value for verdict in Verdict
}
"""What the trail says of an answer that the route does not retry: of one that is no failure, nothing."""


class _Governor:
    """What decides about the attempts after the first, on one route."""

    def __init__(self, place: Place, settings: Retry) -> None:
        services = place.services
        self._clock = services.clock
        self._random = services.random.random
        self._cells = services.metrics.route(place.route.name, place.upstream)
        self._settings = settings
        self._latency = services.state.latency
        self._names = place.upstream, place.route.name
        self.budget = services.state.budget(*self._names, settings)
        self.backoff = services.state.backoff(place.upstream, settings)
        self.rule = RetryRule(
            settings.attempts,
            settings.methods,
            tuple(Verdict(word) for word in settings.on.verdicts),
            settings.on.statuses,
            settings.on.errors,
            settings.retry_after_max,
        )
        self.usual = None if place.route.deadline is None else self._latency(*self._names, 0.5)
        """How long half of the attempts take at most; None where no deadline asks for it."""

    def next_wait(
        self,
        exchange: Exchange,
        outcome: Response | UpstreamError,
        *,
        tries: int,
        attempts: int,
        waited: float,
        from_client: bool,
        keyed: bool,
        replayable: bool,
    ) -> float | str:
        """Seconds to wait before the next attempt, or why there is none: empty where none is due.

        `tries` counts the waits and the first attempt, `attempts` the hedges too. `waited` is the last wait.
        """
        rule, now = self.rule, self._clock.now()
        reason: str | None = None
        verdict: Verdict | None = None
        asked: float | None = None
        status = 0
        advised = False
        if isinstance(outcome, UpstreamError):
            reason = outcome.reason
        else:
            verdict, status = outcome.verdict, outcome.status
            if not rule.listed(None, verdict, status):
                return _UNLISTED[verdict] if verdict is not None else ""
            asked = asked_wait(outcome.headers, self._clock.wall())
            advised = advised_against(outcome.headers)
        category = category_of(reason, verdict, status)
        delay = self.backoff.next_delay(tries, waited, self._random(), category)
        decision = rule.judge(
            method=exchange.request.method,
            reason=reason,
            verdict=verdict,
            status=status,
            attempts=attempts,
            client_retries=from_client,
            keyed=keyed,
            nothing_sent=isinstance(outcome, ConnectFailed),
            replayable=replayable,
            advised_against=advised,
            delay=delay,
            retry_after=asked,
            time_left=None if exchange.deadline is None else exchange.deadline - now,
            typical=0.0 if self.usual is None else self.usual.value,
        )
        if decision is not Replay.GO:
            word: str = decision.value
            return word
        return wait_before(delay, asked) if self.budget.try_withdraw(now) else "budget"

    def hedging(self, inner: Handler) -> Hedging | None:
        hedge = self._settings.hedge
        if hedge is None:
            return None
        after = hedge.after
        return Hedging(
            inner,
            after=after if isinstance(after, float) else self._latency(*self._names, after.share),
            most=hedge.max,
            attempts=self._settings.attempts,
            mendable=self._mendable,
            objection=self._objection,
            clock=self._clock,
            cells=self._cells,
        )

    def _mendable(self, response: Response) -> bool:
        return self.rule.listed(None, response.verdict, response.status)

    def _objection(self, exchange: Exchange, now: float) -> str:
        """Why there is no hedge now; nothing when there may be one: then it is paid."""
        request = exchange.request
        body = request.body
        if client_retries(request.headers):
            return Replay.CLIENT_RETRIES.value
        if isinstance(body, Stream) or wants_event_stream(request.headers, body):
            return "event-stream"
        usual = 0.0 if self.usual is None else self.usual.value
        if exchange.deadline is not None and exchange.deadline - now <= usual:
            return Replay.DEADLINE.value
        return "" if self.budget.try_withdraw(now) else "budget"


def layer(place: Place) -> Layer | None:
    settings = place.route.retry
    if settings is None or settings.attempts < 2:
        return None
    governor = _Governor(place, settings)
    budget, usual = governor.budget, governor.usual
    repeatable = governor.rule.methods
    clock = place.services.clock
    cells = place.services.metrics.route(place.route.name, place.upstream)
    recent = governor.backoff.recent if governor.backoff.adapts else None
    keys = Ids() if settings.idempotency_key else None
    max_body = settings.max_body
    ok = Verdict.OK
    current_task = asyncio.current_task

    def around(inner: Handler) -> Handler:
        hedging = governor.hedging(inner)
        flights = {} if hedging is None else hedging.flights

        async def retry(exchange: Exchange) -> Response:
            request = exchange.request
            body = request.body
            recording = None
            if isinstance(body, Stream):
                recording = request.body = Recording(body, max_body)
            keyed = keys is not None and request.method in KEYED
            if keys is not None and keyed:
                _ensure_key(exchange, keys)
            hedged = (
                hedging is not None
                and recording is None
                and not request.upgrade
                and request.method in repeatable
            )
            tries = hedges = 0
            waited = 0.0
            from_client = False
            while True:
                tries += 1
                outcome: Response | UpstreamError
                try:
                    if hedging is None or not hedged:
                        outcome = await inner(exchange)
                    else:
                        since = exchange.started if tries == 1 else clock.now()
                        flights[exchange] = since, current_task(hedging.loop), tries + hedges, hedges
                        if hedging.timer is None:
                            hedging.watch(since)
                        try:
                            outcome = await inner(exchange)
                        except BaseException as error:
                            flight = flights.pop(exchange)
                            if type(flight) is not Race:
                                raise
                            hedges += flight.sent
                            outcome = await flight.decide(error)
                        else:
                            flight = flights.pop(exchange)
                            if hedging.latency is not None and outcome.verdict is ok:
                                hedging.latency.record(exchange.upstream_seconds)
                            if type(flight) is Race:
                                hedges += flight.sent
                                outcome = await flight.decide(outcome)
                    if outcome.verdict is ok:
                        if tries == 1:
                            budget.deposit(exchange.started)
                        if usual is not None:
                            usual.record(exchange.upstream_seconds)
                        if recent is not None:
                            recent.record(success=True)
                        return outcome
                except UpstreamError as error:
                    outcome = error
                if tries == 1:
                    # What repeats another request pays for nothing: a client's retries would pay for ours.
                    from_client = client_retries(request.headers)
                    if not from_client:
                        budget.deposit(clock.now())
                if recent is not None:
                    recent.record(success=_succeeded(outcome))
                wait = governor.next_wait(
                    exchange,
                    outcome,
                    tries=tries,
                    attempts=tries + hedges,
                    waited=waited,
                    from_client=from_client,
                    keyed=keyed,
                    replayable=recording is None or recording.replayable,
                )
                if isinstance(wait, str):
                    if wait:
                        exchange.note("retry", f"skipped={wait}")
                        cells.retry_skipped(wait)
                    if isinstance(outcome, UpstreamError):
                        raise outcome
                    return outcome
                if isinstance(outcome, UpstreamError):
                    why = outcome.reason
                else:
                    why = outcome.verdict.value if outcome.verdict is not None else ""
                    outcome.close()
                exchange.note("retry", why)
                cells.retry(why)
                if exchange.address:
                    exchange.avoid = (*exchange.avoid, exchange.address)
                waited = wait
                if waited > 0:
                    await clock.sleep(waited)
                if recording is not None:
                    recording.rewind()
                exchange.attempt_started = 0.0
                hedged = hedged and hedging is not None and hedging.left(tries + 1 + hedges, hedges) > 0

        return retry

    return around


def _succeeded(outcome: Response | UpstreamError) -> bool:
    if isinstance(outcome, UpstreamError) or outcome.verdict is None:
        return False
    return OUTCOMES[outcome.verdict] is Outcome.SUCCESS


def _ensure_key(exchange: Exchange, keys: Ids) -> None:
    """Gives the request an `Idempotency-Key`, a string (RFC 9651, 3.3.3), unless its client has.

    Not its X-Request-ID: that may be the client's own, and the same for several requests.
    """
    if exchange.request.header(b"idempotency-key") is None and b"Idempotency-Key:" not in exchange.forwarded:
        exchange.forwarded += b'Idempotency-Key: "%b"\r\n' % keys.request_id().encode()
