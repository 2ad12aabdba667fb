"""The one timer: an attempt may take what its policy gives it, or what is left to the deadline.

Must be below `circuit_breaker`, which counts the timeout, and around everything that an attempt may
wait for: connecting, sending, the response headers. It cancels the attempt only.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.decisions.verdict import Verdict
from sidecar.errors import AttemptTimeout, DeadlineExceeded
from sidecar.guards import Guard, Guarded

if TYPE_CHECKING:
    from sidecar.clock import Timer
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Layer, Place


def layer(place: Place) -> Layer | None:
    own = place.route.attempt_timeout
    if own is None and place.route.deadline is None:
        return None
    clock = place.services.clock
    cells = place.services.metrics.upstream(place.upstream)
    current_task = asyncio.current_task

    def bind() -> Guard[Timer]:
        loop = asyncio.get_running_loop()  # asked anew each time it costs a system call in Python 3.11

        def enter(exchange: Exchange, now: float) -> Timer:
            exchange.attempt_started = now
            at = exchange.deadline
            if at is None or (own is not None and now + own < at):
                assert own is not None
                at = now + own
            elif at <= now:
                exchange.note("attempt_timeout", "rejected")
                raise DeadlineExceeded
            task = current_task(loop)
            assert task is not None
            return clock.arm(at, task.cancel)

        def leave(_: Exchange, timer: Timer, __: Response) -> None:
            timer.cancel()

        def fail(exchange: Exchange, timer: Timer, error: BaseException) -> BaseException:
            timer.cancel()
            if not timer.fired or not isinstance(error, asyncio.CancelledError):
                return error
            # As asyncio.timeout does: only a cancellation that is all ours becomes an error.
            task = current_task(loop)
            assert task is not None
            if task.uncancel():
                return error
            exchange.upstream_seconds = seconds = clock.now() - exchange.attempt_started
            exchange.verdict = Verdict.TRANSIENT
            cells.attempt(Verdict.TRANSIENT, seconds)
            exchange.note("attempt_timeout", "expired")
            return AttemptTimeout(f"no response within {seconds:.3g} s")

        return Guard(enter, leave, fail)

    return Guarded(bind, clock.now)
