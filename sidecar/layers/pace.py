"""Sends requests at the pace that the provider's quota allows, and none while it is used up.

Must be below `retry`, so that a repetition has its turn too, and above the attempt's timer, which counts no
waiting. Below `concurrency_limit`: who waits here holds a permit, so batch requests must not be able to take
all of them. What is refused here is a `Rejection`: neutral to breaker and limit, never retried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.decisions.asked_wait import asked_wait, retry_after_of
from sidecar.decisions.priority import Priority, priority_of
from sidecar.decisions.quota_headers import NAMES, NOTHING, read_quotas
from sidecar.decisions.quota_window import NEVER
from sidecar.decisions.verdict import Verdict
from sidecar.errors import ConnectFailed, PaceExceeded, QuotaHeld, Rejection
from sidecar.guards import Guard, Guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.decisions.pacer import Mark
    from sidecar.exchange import Exchange, Response
    from sidecar.headers import Line
    from sidecar.pipeline import Layer, Place

MOST_SILENT: Final = 1024
"""Header blocks known to state no quota; all are forgotten when there are more."""
OK, QUOTA, RATE_LIMITED = Verdict.OK, Verdict.QUOTA, Verdict.RATE_LIMITED


def layer(place: Place) -> Layer | None:
    if place.route.pace is None:
        return None
    return Guarded(_Pace(place).guard, place.services.clock.now)


class _Pace:
    """The layer of one route."""

    def __init__(self, place: Place) -> None:
        settings = place.route.pace
        assert settings is not None
        services = place.services
        self._clock = services.clock
        self._turns, self._cells = services.state.turns(place.upstream, place.route.name, settings)
        self._pacer = self._turns.pacer
        self._route = services.metrics.route(place.route.name, place.upstream)
        self._learns = settings.learn
        self._silent: dict[int, tuple[Line, ...]] = {}
        """Header blocks that state no quota, by identity: most answers of an upstream share the same few, and
        to hash one costs as much as to look through it."""
        self._patience = settings.patience
        self._batch_patience = settings.batch_patience
        limit = place.route.concurrency_limit
        word = settings.priority or (limit.priority if limit is not None else "normal")
        self._priority = Priority[word.upper()]
        self._shadow = settings.mode == "shadow"

    def guard(self) -> Guard[Mark]:
        pacer, turns = self._pacer, self._turns
        at_once, passed = pacer.at_once, pacer.passed
        learns, known, learn = self._learns, self._silent.get, self._learn
        last: Sequence[Line] = ()
        """The header block that was found silent last."""

        def enter(_: Exchange, now: float) -> Mark | None:
            return None if turns.waiting else at_once(now)

        def leave(_: Exchange, mark: Mark, response: Response) -> None:
            nonlocal last
            verdict, headers = response.verdict, response.headers
            if (
                (verdict is OK or verdict is None)
                and not pacer.busy
                and not mark[3]
                and (headers is last or not learns or known(id(headers)) is headers)
            ):
                last = headers
                passed()
            else:
                learn(mark, response)
            if turns.waiting:
                turns.serve()

        def fail(_: Exchange, mark: Mark, error: BaseException) -> BaseException:
            pacer.lost(mark, sent=not isinstance(error, ConnectFailed | Rejection))
            if turns.waiting:
                turns.serve()
            return error

        return Guard(enter, leave, fail, self._look if self._shadow else self._wait)

    async def _wait(self, exchange: Exchange) -> Mark:
        now = self._clock.now()
        low = priority_of(exchange.request.headers, self._priority) is Priority.LOW
        until = now + (self._batch_patience if low else self._patience)
        deadline = exchange.deadline
        reason = "patience"
        if deadline is not None and deadline < until:
            until, reason = deadline, "deadline"
        try:
            mark = await self._turns.turn(
                now, low=low, started=exchange.started, attempts=exchange.attempts, until=until
            )
        except QuotaHeld:
            self._refused(exchange, "held")
            raise
        except PaceExceeded:
            self._refused(exchange, reason)
            raise
        waited = self._clock.now() - now
        if waited > 0:
            exchange.note("pace", f"waited={waited:.3f}")
            self._cells.waited(waited, low=low)
        return mark

    def _refused(self, exchange: Exchange, reason: str) -> None:
        exchange.note("pace", f"rejected={reason}")
        self._route.pace_rejected(reason)

    async def _look(self, exchange: Exchange) -> Mark:
        """Shadow mode: what would have been done is noted, and the request goes."""
        now = self._clock.now()
        pacer = self._pacer
        low = priority_of(exchange.request.headers, self._priority) is Priority.LOW
        until = now + (self._batch_patience if low else self._patience)
        if exchange.deadline is not None and exchange.deadline < until:
            until = exchange.deadline
        held = pacer.hold.left(now)
        expected = now if held else pacer.expected(now, low=low, ahead=0)
        if held or until < expected != NEVER:
            if exchange.would_reject("pace"):
                self._route.would_reject("pace")
            return pacer.go_anyway(now, low=low)
        if now < expected != NEVER:
            exchange.note("pace", f"would-wait={expected - now:.3f}")
        return pacer.take(now, low=low)

    def _learn(self, mark: Mark, response: Response) -> None:
        pacer, headers = self._pacer, response.headers
        verdict = response.verdict or OK
        lines = [line for line in headers if line.name in NAMES] if self._learns else ()
        if not lines and isinstance(headers, tuple):
            if len(self._silent) >= MOST_SILENT:
                self._silent.clear()
            self._silent[id(headers)] = headers
        if verdict is OK and not lines and not pacer.busy and not mark[3]:
            pacer.passed()
            return
        wall = self._clock.wall()
        stated = read_quotas(lines, wall) if lines else NOTHING
        asked = None
        if verdict is RATE_LIMITED:
            asked = retry_after_of(headers, wall)
        elif verdict is QUOTA:
            asked = asked_wait(headers, wall)
        pacer.answered(mark, self._clock.now(), verdict, stated, asked)
