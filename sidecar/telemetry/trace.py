"""Spans: one for each request, one for each attempt at an upstream; what the data plane does for them.

An exchange whose trace is sampled has a `Span`. Nothing else is made while its request passes: what a span
says is put together by the exporter's thread (`trace_export`), from what the exchange had recorded.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.errors import SidecarError
from sidecar.headers import every

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.clock import Clock, Ids, Random
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler, Place
    from sidecar.telemetry.access_lines import Stack

MOST: Final = 4096
"""Spans that may wait for the exporter; more are dropped."""
BATCH: Final = 256
"""Spans for which the exporter is woken."""

_SAMPLED: Final = frozenset(b"13579bdf")
"""Last digits of flags with the lowest bit set (W3C Trace Context, 3.2.2.5.1)."""


class Span:
    """Of one exchange, and of those that are made on its behalf."""

    __slots__ = ("current", "parent", "span_id", "trace_id")

    def __init__(self, trace_id: bytes, span_id: bytes, parent: bytes) -> None:
        """All in hexadecimal digits; `parent` is empty where the trace begins here."""
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent = parent
        self.current = span_id
        """What the upstream of the next attempt is told that its parent is."""


class Where(NamedTuple):
    """What the spans of a route have in common."""

    route: str
    path: str
    """The route's pattern; empty where it takes any path."""
    upstream: str
    plane: str
    policy: str


class Served(NamedTuple):
    """A request that is over."""

    span: Span
    where: Where
    stack: Stack
    started: float
    ended: float
    status: int
    how: str
    method: str
    scheme: str
    host: bytes
    target: bytes
    client: str
    request_id: str
    upstream: str
    attempts: int
    verdict: str
    breaker: str
    cache: str
    error: str
    rung: str
    notes: list[tuple[str, str]] | None


class Attempt(NamedTuple):
    """An attempt that is over, as far as the head of its response."""

    span: Span
    span_id: bytes
    where: Where
    started: float
    ended: float
    status: int
    """0: there was no response."""
    error: str
    """What there was instead."""
    method: str
    scheme: str
    host: bytes
    target: bytes
    address: str
    number: int
    """The first is 1."""


Ended = Served | Attempt
"""What the exporter gets."""


class Counts:
    """What became of spans."""

    __slots__ = ("dropped", "exported", "failed")

    def __init__(self) -> None:
        self.exported = 0
        self.dropped = 0
        """They found no room."""
        self.failed = 0
        """The collector did not take them."""


class Tracer:
    """One per process, where `tracing.otlp` is set. Times are of `Clock.now()`."""

    def __init__(self, clock: Clock, ids: Ids, random: Random, ratio: float) -> None:
        """`ratio`: share of the traces that begin here which are sampled."""
        self._now = clock.now
        self._ids = ids
        self._random = random.random
        self._ratio = ratio
        self._ended: deque[Ended] = deque()
        self.counts = Counts()
        self.wake: Callable[[], object] = lambda: None
        """Called when a batch is there."""

    def begin(self, exchange: Exchange) -> None:
        """Gives an exchange its span, if its trace is sampled, and one that is of no trace a trace."""
        known = exchange.traceparent
        if known is None:
            trace_id = self._ids.request_id().encode()
            if self._random() >= self._ratio:
                exchange.traceparent = (trace_id, b"00")
                return
            exchange.traceparent = (trace_id, b"01")
            parent = b""
        else:
            trace_id, flags = known
            if flags[1] not in _SAMPLED:
                return
            # The listener keeps no more of it than all need.
            parent = every(exchange.request.headers, b"traceparent")[-1][36:52]
        exchange.span = Span(trace_id, self._ids.span_id(), parent)

    def finish(self, place: Place) -> Callable[[Exchange, int, float, str, Stack], None]:
        """What takes the end of a route's sampled requests: status, time, how it ended."""
        where = _where(place)

        def finish(exchange: Exchange, status: int, ended: float, how: str, stack: Stack) -> None:
            span = exchange.span
            if span is None:
                return
            request = exchange.request
            verdict, error = exchange.verdict, exchange.error
            self._add(
                Served(
                    span,
                    where,
                    stack,
                    exchange.started,
                    ended,
                    status,
                    how,
                    request.method,
                    request.scheme,
                    request.host,
                    request.target,
                    exchange.client,
                    exchange.request_id,
                    exchange.upstream,
                    exchange.attempts,
                    "" if verdict is None else verdict.value,
                    exchange.breaker,
                    exchange.cache,
                    "" if error is None else error.code,
                    exchange.rung,
                    exchange.note_list,
                )
            )

        return finish

    def attempts(self, place: Place, upstream: Handler) -> Handler:
        """`upstream` with a span for each attempt.

        The head of an attempt is made before anything is waited for: so one slot does for hedges, too.
        """
        where = _where(place)
        now, span_id_of = self._now, self._ids.span_id

        async def attempt(exchange: Exchange) -> Response:
            span = exchange.span
            if span is None:
                return await upstream(exchange)
            span.current = span_id = span_id_of()
            started = now()
            status, failure = 0, ""
            try:
                response = await upstream(exchange)
                status = response.status
            except BaseException as error:
                failure = _reason(error)
                raise
            finally:
                request = exchange.request
                self._add(
                    Attempt(
                        span,
                        span_id,
                        where,
                        started,
                        now(),
                        status,
                        failure,
                        request.method,
                        request.scheme,
                        request.host,
                        request.target,
                        exchange.address,
                        exchange.attempts,
                    )
                )
            return response

        return attempt

    def _add(self, ended: Ended) -> None:
        waiting = self._ended
        if len(waiting) >= MOST:
            self.counts.dropped += 1
            return
        waiting.append(ended)
        if len(waiting) == BATCH:
            self.wake()

    def take(self) -> list[Ended]:
        """All that has ended since. From one thread at a time, while others add."""
        ended = self._ended
        return [ended.popleft() for _ in range(len(ended))]


def _reason(error: BaseException) -> str:
    if isinstance(error, SidecarError):
        return error.code
    return "cancelled" if isinstance(error, CancelledError) else "internal_error"


def _where(place: Place) -> Where:
    path = place.route.match.path
    return Where(
        place.route.name, "" if path == "*" else str(path), place.upstream, place.plane, place.policy
    )
