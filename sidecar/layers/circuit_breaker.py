"""Stops calling an upstream that fails, and lets single probes find out when it is back.

Must be above `attempt_timeout`, so that it sees timeouts, and below `retry`, so that attempts are
judged singly. A permit ends when the body does: a response that breaks off is a failure. Those that
may last for hours, tunnels and event streams, end theirs at the headers: as a probe one would keep
everybody else out.

In shadow mode nothing is refused, and the breaker still learns only what it would have learnt had it refused:
nothing of attempts that it would not have let through, nor of the repetitions that follow on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.decisions.breaker import Permit, State
from sidecar.decisions.verdict import OUTCOMES, Outcome, Verdict
from sidecar.errors import CircuitOpen, UpstreamError
from sidecar.exchange import End, Stream
from sidecar.guards import Guard, Guarded
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Layer, Place
    from sidecar.telemetry.metrics import BreakerCells

_NAME: Final = "circuit_breaker"
_WOULD_REJECT: Final = (_NAME, "would-reject")
_SUCCESS: Final = Outcome.SUCCESS
_UNCOUNTED: Final = Permit(State.CLOSED)
"""Of attempts in shadow mode that the breaker learns nothing of: it has given none such."""


class _Account:
    """A breaker together with those who are told what it does."""

    __slots__ = ("_cells", "_clock", "_log", "_scope", "breaker")

    def __init__(self, scope: str, cells: BreakerCells, clock: Clock) -> None:
        self.breaker = cells.breaker
        self._scope = scope
        self._cells = cells
        self._clock = clock
        self._log = get_logger("sidecar.circuit_breaker")

    def end(self, permit: Permit, outcome: Outcome, elapsed: float) -> None:
        self.breaker.end(permit, outcome, self._clock.now(), elapsed)
        if outcome is not Outcome.SUCCESS or permit.label != "closed":
            self.look()

    def look(self) -> None:
        """Counts and logs a transition, if the last step was one."""
        transition = self._cells.look()
        if transition is not None:
            self._log.warning(
                "circuit breaker",
                scope=self._scope,
                state=transition.target.value,
                before=transition.source.value,
                reason=transition.reason.value,
                mode=self._cells.mode,
            )


class _Ending:
    """Ends a permit together with a body that is still streaming."""

    __slots__ = ("account", "elapsed", "outcome", "permit")

    def __init__(self, account: _Account, permit: Permit, outcome: Outcome, elapsed: float) -> None:
        self.account = account
        self.permit = permit
        self.outcome = outcome
        self.elapsed = elapsed

    def __call__(self, end: End) -> None:
        outcome = Outcome.FAILURE if end is End.BROKEN else self.outcome
        self.account.end(self.permit, outcome, self.elapsed)


def layer(place: Place) -> Layer | None:
    settings = place.route.circuit_breaker
    if settings is None:
        return None
    clock = place.services.clock
    scope, breaker, watched = place.services.state.breaker(place.upstream, place.route.name, settings)
    cells = place.services.metrics.route(place.route.name, place.upstream)
    account = _Account(scope, watched, clock)
    ok = Verdict.OK
    shadow = settings.mode == "shadow"

    def enter(exchange: Exchange, started: float) -> Permit:
        if shadow and exchange.note_list is not None and _WOULD_REJECT in exchange.note_list:
            exchange.would_reject(_NAME)
            return _UNCOUNTED
        permit = breaker.acquire(started)
        if permit is None:
            exchange.breaker = breaker.state(started).value
            if shadow:
                exchange.would_reject(_NAME)
                cells.would_reject(_NAME)
                return _UNCOUNTED
            exchange.note(_NAME, "rejected")
            cells.breaker_rejected()
            raise CircuitOpen(f"{scope} failed repeatedly", retry_after=breaker.retry_after(started))
        exchange.breaker = label = permit.label
        if label != "closed":
            account.look()
            exchange.note(_NAME, label)
        return permit

    def leave(exchange: Exchange, permit: Permit, response: Response) -> None:
        # Waiting for a permit or a turn is not the upstream's time.
        elapsed = exchange.upstream_seconds
        verdict = response.verdict
        if verdict is ok and type(response.body) is bytes and permit.label == "closed":
            breaker.end(permit, _SUCCESS, exchange.attempt_started + elapsed, elapsed)
            return
        if permit is _UNCOUNTED:
            return
        outcome = _SUCCESS if verdict is None else OUTCOMES[verdict]
        if isinstance(response.body, Stream) and not response.lasting:
            response.on_end(_Ending(account, permit, outcome, elapsed))
        else:
            account.end(permit, outcome, elapsed)

    def fail(exchange: Exchange, permit: Permit, error: BaseException) -> BaseException:
        if permit is not _UNCOUNTED:
            outcome = Outcome.FAILURE if isinstance(error, UpstreamError) else Outcome.IGNORE
            account.end(permit, outcome, exchange.upstream_seconds)
        return error

    return Guarded(lambda: Guard(enter, leave, fail), clock.now)
