"""The one timer: an attempt may take what its policy gives it, or what is left to the deadline.

Must be below `circuit_breaker`, which counts the timeout, and around everything that an attempt may
wait for: connecting, sending, the response headers. It cancels the attempt only.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.decisions.verdict import Verdict
from sidecar.errors import AttemptTimeout, DeadlineExceeded

if TYPE_CHECKING:
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler, Layer, Place


def layer(place: Place) -> Layer | None:
    own = place.route.attempt_timeout
    if own is None and place.route.deadline is None:
        return None
    clock = place.services.clock
    cells = place.services.metrics.upstream(place.upstream)
    current_task = asyncio.current_task

    def around(inner: Handler) -> Handler:
        loop = asyncio.get_running_loop()  # asked anew each time it costs a system call in Python 3.11

        async def attempt_timeout(exchange: Exchange) -> Response:
            now = exchange.attempt_started = clock.now()
            at = exchange.deadline
            if at is None or (own is not None and now + own < at):
                assert own is not None
                at = now + own
            elif at <= now:
                exchange.note("attempt_timeout", "rejected")
                raise DeadlineExceeded
            task = current_task(loop)
            assert task is not None
            timer = clock.arm(at, task.cancel)
            try:
                return await inner(exchange)
            except asyncio.CancelledError:
                # As asyncio.timeout does: only a cancellation that is all ours becomes an error.
                if timer.fired and task.uncancel() == 0:
                    exchange.upstream_seconds = seconds = clock.now() - now
                    exchange.verdict = Verdict.TRANSIENT
                    cells.attempt(Verdict.TRANSIENT, seconds)
                    exchange.note("attempt_timeout", "expired")
                    raise AttemptTimeout(f"no response within {seconds:.3g} s") from None
                raise
            finally:
                timer.cancel()

        return attempt_timeout

    return around
