"""Hedging: a second attempt beside one that is slow. The first good answer counts.

"The Tail at Scale" (Dean and Barroso, CACM 56(2), 2013) calls it a hedged request, Finagle a backup
request. As in gRPC (proposal A6) a failure that may be mended leaves the other attempts going, and all are
paid from the retry budget.

The first attempt runs where it would run anyway: in the request's own task, and costs an entry in a
dictionary; one timer for all of a route's attempts finds those that are slow. Only a hedge has a task, and
an exchange, of its own: the layers below write to both. When a hedge wins, the first attempt is cancelled
as `attempt_timeout` does it: by cancelling the task, and taking that back above it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sidecar.decisions.trail import HEDGE
from sidecar.decisions.verdict import OUTCOMES, Outcome, Verdict
from sidecar.errors import SidecarError, UpstreamError
from sidecar.exchange import Exchange, Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.clock import Clock, Timer
    from sidecar.decisions.quantile import Quantile
    from sidecar.pipeline import Handler
    from sidecar.telemetry.metrics import RouteCells

LEAST_DELAY: Final = 0.001
"""Seconds: as Finagle, no hedge is sent sooner."""
LONGEST_SWEEP: Final = 0.1
"""Seconds after which attempts are looked at again where the delay is an estimate, which may have fallen."""

_OF_AN_ATTEMPT: Final = ("address", "attempt_started", "breaker", "upstream", "upstream_seconds", "verdict")
"""Slots of an exchange that the last attempt writes."""


Flight = tuple[float, asyncio.Task[object] | None, int, int]
"""An attempt under way that is not slow yet: `Clock.now()` when it began, or before; the task that runs it;
the request's attempts, this one included; and how many of these are hedges.
"""


class Hedging:
    """The hedging of one route, bound when its pipeline is compiled."""

    __slots__ = (
        "attempts",
        "cells",
        "clock",
        "fixed",
        "flights",
        "inner",
        "land",
        "latency",
        "loop",
        "mendable",
        "most",
        "objection",
        "timer",
    )

    def __init__(
        self,
        inner: Handler,
        *,
        after: Quantile | float,
        most: int,
        attempts: int,
        mendable: Callable[[Response], bool],
        objection: Callable[[Exchange, float], str],
        clock: Clock,
        cells: RouteCells,
    ) -> None:
        """`after`: seconds, or what estimates them. `most`: hedges of one request; `attempts`: of all sorts.

        `mendable` says of an answer that another attempt may do better. `objection` says at `Clock.now()` why
        a request is not hedged; nothing when it may be, and then the hedge is paid for.
        """
        self.inner = inner
        self.loop = asyncio.get_running_loop()  # asked anew each time it costs a system call in Python 3.11
        self.latency = None if isinstance(after, float) else after
        self.fixed = after if isinstance(after, float) else 0.0
        self.most = most
        self.attempts = attempts
        self.mendable = mendable
        self.objection = objection
        self.clock = clock
        self.cells = cells
        self.flights: dict[Exchange, Flight | Race] = {}
        """Attempts under way, in the order of their beginning. Who begins one that may be hedged, there being
        hedges left, puts it here, and calls `watch` where nothing is watched. Who sees it end takes it out,
        and has the `Race` that it may have become decide."""
        self.timer: Timer | None = None
        """That of the watch; None: nothing is watched."""

    @property
    def delay(self) -> float:
        """Seconds after which an attempt is slow; 0 while that cannot be told."""
        seconds = self.fixed if self.latency is None else self.latency.value
        return seconds if seconds > LEAST_DELAY or not seconds else LEAST_DELAY

    def left(self, attempts: int, hedges: int) -> int:
        """Hedges that a request may still have after so many attempts, `hedges` of which were hedges."""
        return min(self.attempts - attempts, self.most - hedges)

    def watch(self, since: float) -> None:
        """Looks for slow attempts from now on; the oldest began at `since`."""
        if delay := self.delay:
            self.timer = self.clock.arm(since + delay, self._sweep)

    def _sweep(self) -> None:
        """Finds the attempts that are slow, and starts a race for each."""
        self.timer = None
        delay, now = self.delay, self.clock.now()
        slow: list[tuple[Exchange, Flight]] = []
        at = None
        for exchange, flight in self.flights.items():
            if isinstance(flight, Race):
                continue
            if flight[0] + delay > now:  # those that follow began later
                at = flight[0] + delay
                break
            slow.append((exchange, flight))
        if at is not None:
            if self.latency is not None and at > now + LONGEST_SWEEP:
                at = now + LONGEST_SWEEP
            self.timer = self.clock.arm(at, self._sweep)
        for exchange, flight in slow:
            race = self.flights[exchange] = Race(self, exchange, flight)
            race.start()

    async def attempt(self, exchange: Exchange) -> Response:
        return await self.inner(exchange)


class Race:
    """One attempt, and its hedges."""

    __slots__ = (
        "_beaten",
        "_delay",
        "_exchange",
        "_first_failed",
        "_hedging",
        "_last",
        "_left",
        "_running",
        "_task",
        "_timer",
        "_won",
        "sent",
    )

    def __init__(self, hedging: Hedging, exchange: Exchange, flight: Flight) -> None:
        self.sent = 0
        """Hedges."""
        self._hedging = hedging
        self._exchange = exchange
        _, self._task, attempts, hedges = flight
        self._left = hedging.left(attempts, hedges)
        self._delay = hedging.delay
        self._timer: Timer | None = None
        self._running: dict[asyncio.Task[Response], tuple[Exchange, int]] = {}
        """Hedges under way, each with its exchange and the attempts that one began with."""
        self._won: tuple[Response, Exchange] | None = None
        self._beaten = False
        """The first attempt is being cancelled, as a hedge has won."""
        self._first_failed: asyncio.Future[None] | None = None
        """Set once it has: done when the hedges are over, or one has won."""
        self._last: tuple[Response | UpstreamError, Exchange] | None = None
        """How the last hedge failed, where the first attempt had failed before."""

    def start(self) -> None:
        """The first attempt seems to be slow."""
        self._due()

    async def decide(self, ended: Response | BaseException) -> Response:
        """The answer that counts, once the first attempt has `ended`. Raises what the last one ended with.

        It must be called in the task that ran the first attempt.
        """
        hedging, task = self._hedging, self._task
        assert task is not None
        outcome: Response | UpstreamError
        try:
            if not isinstance(ended, Response | UpstreamError):
                raise ended
            outcome = ended
            if self._running and (isinstance(outcome, UpstreamError) or hedging.mendable(outcome)):
                outcome = await self._rest(outcome)
        except asyncio.CancelledError:
            # As in attempt_timeout: only a cancellation that is all ours becomes an answer.
            if self._beaten:
                self._beaten = False
                if task.uncancel() == 0:
                    return self._winner()
            raise
        finally:
            if self._beaten:  # cancelled, and ended otherwise: the task must not stay marked
                task.uncancel()
            self._end()
        if isinstance(outcome, UpstreamError):
            raise outcome
        return outcome

    async def _rest(self, first: Response | UpstreamError) -> Response | UpstreamError:
        """The first attempt failed while hedges are under way: the last one to end decides."""
        self._stop_timer()
        over = self._first_failed = self._hedging.loop.create_future()
        try:
            await over
        except asyncio.CancelledError:
            _close(first)
            raise
        if self._won is not None:
            _close(first)
            return self._winner()
        if self._last is None:
            return first
        _close(first)
        last, branch = self._last
        self._last = None
        _adopt(self._exchange, branch)
        return last

    def _winner(self) -> Response:
        assert self._won is not None
        response, branch = self._won
        self._won = None
        hedging, exchange = self._hedging, self._exchange
        if hedging.latency is not None and self._first_failed is None:
            # How long the first attempt would have taken nobody knows; that it is longer is enough.
            hedging.latency.record(hedging.clock.now() - exchange.attempt_started)
        _adopt(exchange, branch)
        return response

    def _end(self) -> None:
        """Whatever is under way now comes too late."""
        self._stop_timer()
        if self._won is not None:
            self._won[0].close()
        if self._last is not None:
            _close(self._last[0])
        if self._running:
            running, self._running = self._running, {}
            for hedge, (branch, attempts) in running.items():
                hedge.cancel()
                self._account(branch, attempts, "lost")

    # -- hedges --------------------------------------------------------------------------------

    def _arm(self, at: float) -> None:
        self._timer = self._hedging.clock.arm(at, self._due)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # it holds this race: a cycle would be left for the collector

    def _due(self) -> None:
        """The delay is over: sends a hedge, if the attempt is slow indeed and the request allows it."""
        hedging, exchange = self._hedging, self._exchange
        now = hedging.clock.now()
        # Time that it waited in our own queues is not the upstream's; a hedge would queue behind it.
        at = (exchange.attempt_started or now) + self._delay
        if at > now:
            self._arm(at)
            return
        objection = hedging.objection(exchange, now)
        if objection:
            exchange.note("retry", f"hedge-skipped={objection}")
            hedging.cells.retry_skipped(f"hedge-{objection}")
            return
        exchange.note("retry", "hedge")
        self.sent += 1
        self._left -= 1
        branch = _branch(exchange)
        hedge = hedging.loop.create_task(hedging.attempt(branch), name="hedge")
        self._running[hedge] = (branch, branch.attempts)
        hedge.add_done_callback(self._ended)
        if self._left > 0:
            self._arm(now + self._delay)

    def _ended(self, hedge: asyncio.Task[Response]) -> None:
        error = None if hedge.cancelled() else hedge.exception()
        response = None if hedge.cancelled() or error is not None else hedge.result()
        if error is not None and not isinstance(error, SidecarError):
            context = {"message": "a hedge failed", "exception": error, "task": hedge}
            self._hedging.loop.call_exception_handler(context)
        known = self._running.pop(hedge, None)
        if known is None or self._won is not None:
            # Given up, and over in the same turn; or the second to win.
            if response is not None:
                response.close()
            if known is not None:
                self._account(*known, "lost")
            return
        branch, attempts = known
        if response is not None and response.verdict is not None and _good(response.verdict):
            self._account(branch, attempts, "won")
            self._won = response, branch
            self._wake()
            return
        self._account(branch, attempts, "failed")
        if self._first_failed is None:  # it goes on, and decides
            if response is not None:
                response.close()
            return
        if self._last is not None:
            _close(self._last[0])
        self._last = None
        if response is not None:
            self._last = response, branch
        elif isinstance(error, UpstreamError):  # one that we refused ourselves is no answer
            self._last = error, branch
        if not self._running:
            self._wake()

    def _wake(self) -> None:
        if self._first_failed is None:
            assert self._task is not None
            self._beaten = True
            self._task.cancel()
        elif not self._first_failed.done():
            self._first_failed.set_result(None)

    def _account(self, branch: Exchange, attempts: int, outcome: str) -> None:
        """Takes over what the hedge did."""
        exchange = self._exchange
        exchange.attempts += branch.attempts - attempts
        for layer, decision in branch.note_list or ():
            exchange.note(layer, decision + HEDGE)
        exchange.note("retry", f"hedge-{outcome}")
        self._hedging.cells.hedge(outcome)


def _good(verdict: Verdict) -> bool:
    return OUTCOMES[verdict] is Outcome.SUCCESS


def _close(outcome: Response | UpstreamError) -> None:
    if not isinstance(outcome, UpstreamError):
        outcome.close()


def _branch(exchange: Exchange) -> Exchange:
    """An exchange for an attempt at the same request beside the one under way, at another address."""
    twin = Exchange.__new__(Exchange)
    for name in Exchange.__slots__:
        setattr(twin, name, getattr(exchange, name))
    twin.attempt_started = twin.upstream_seconds = 0.0
    twin.verdict = None
    twin.note_list = None
    twin.informational = None
    twin.on_sent = None
    if exchange.address:
        twin.avoid = (*exchange.avoid, exchange.address)
    return twin


def _adopt(exchange: Exchange, branch: Exchange) -> None:
    """What the branch came to counts as the last attempt's."""
    for name in _OF_AN_ATTEMPT:
        setattr(exchange, name, getattr(branch, name))
