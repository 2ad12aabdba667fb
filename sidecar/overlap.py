"""Which answers of the app were made while a call of the app went wrong: the truth of both planes.

An app may hide the failure of a provider behind a 200. Only who sees both sides can tell: an answer whose
making overlapped in time with a call that failed, was refused, or was answered by something else than the
provider, may be made without it.

A call belongs to the request whose trace id it carries in its `traceparent`, where that request is in
flight, and to no other. All else is a matter of time. As a request that is being answered has begun before
now and is not over, a call that has gone wrong overlapped with it if it ended after the request began: one
number for each policy file is all that has to be remembered, however many calls there are.

An app may keep what a fallback told it, and use it later without a call. Where a policy file says so
(`app_keeps`), what was asked for is remembered until the app has forgotten it, or asks again and is
answered by the provider: an answer to a request that speaks of it is doubtful as well.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from sidecar.decisions.kept import Kept, asked_for, texts
from sidecar.decisions.verdict import BY_STATUS, Verdict
from sidecar.exchange import End, Stream

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.config.inject_policy import AppKeeps
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler

_WRONG: Final = frozenset({Verdict.TRANSIENT, Verdict.RATE_LIMITED, Verdict.QUOTA, Verdict.AUTH})
"""What a provider says, or we say for it, when it did not do what was asked."""

_INVENTED: Final = frozenset({"respond", "upstream"})
"""The rungs whose answer is another than the provider's; a stale one is its own."""


class Trace:
    """The calls that carry the trace id of requests in flight."""

    __slots__ = ("ended", "seen", "users")

    def __init__(self) -> None:
        self.users = 0
        """Requests in flight with this id."""
        self.seen = False
        """The app passes it on."""
        self.ended: dict[str, float] = {}


class Overlaps:
    """One per process; survives reloads."""

    __slots__ = ("_clock", "_ended", "_traces", "kept", "last", "seen")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.last = -math.inf
        """`Clock.now()` at the end of the last call that went wrong."""
        self.seen: set[str] = set()
        """Policy files whose calls come through the sidecar: some did."""
        self._ended: dict[str, float] = {}
        """The same of each policy file, for calls that carry no trace id of a request in flight."""
        self._traces: dict[bytes, Trace] = {}
        self.kept: dict[str, Kept] = {}
        """By policy file, what the app may have kept of fallbacks; empty until there was one."""

    # -- the app's calls -----------------------------------------------------------------------

    def noting(self, policy: str, handler: Handler, keeps: AppKeeps | None = None) -> Handler:
        """`handler`, whose calls are noted under the name of their policy file when they go wrong.

        `keeps`: what the app keeps of the answers, by what parameter of the query, and for how long.

        It has to be the whole pipeline of a call: what counts is what the app gets.
        """

        async def noted(exchange: Exchange) -> Response:
            self.seen.add(policy)
            trace = None
            if self._traces and exchange.traceparent is not None:
                trace = self._traces.get(exchange.traceparent[0])
                if trace is not None:
                    trace.seen = True
            try:
                response = await handler(exchange)
            except asyncio.CancelledError:  # the app gave up waiting
                self._note(policy, trace, exchange)
                raise
            if went_wrong(exchange, response):
                self._note(policy, trace, exchange)
                if keeps is not None and exchange.rung in _INVENTED:
                    self._keep(policy, exchange, keeps)
                return response
            if policy in self.kept and keeps is not None:
                self._drop(policy, exchange, keeps)
            if isinstance(response.body, Stream):

                def ended(how: End) -> None:
                    if how is End.BROKEN:
                        self._note(policy, trace, exchange)

                response.body.on_end(ended)
            return response

        return noted

    def _note(self, policy: str, trace: Trace | None, exchange: Exchange) -> None:  # for others
        self.last = now = self._clock.now()
        (self._ended if trace is None else trace.ended)[policy] = now

    def _keep(self, policy: str, exchange: Exchange, keeps: AppKeeps) -> None:
        asked = asked_for(exchange.request.query, keeps.parameter)
        if asked is not None:
            self.keep(policy, asked, self._clock.now() + keeps.ttl)

    def keep(self, policy: str, asked: bytes, until: float) -> None:
        """The app has been told by a fallback what it may remember until then (`Clock.now()`)."""
        self.kept.setdefault(policy, Kept()).put(asked, until)

    hear_kept = keep

    def _drop(self, policy: str, exchange: Exchange, keeps: AppKeeps) -> None:
        self.drop(policy, asked_for(exchange.request.query, keeps.parameter))

    def drop(self, policy: str, asked: bytes | None) -> None:
        """The app has been told by the provider itself."""
        kept = self.kept.get(policy)
        if kept is not None:
            kept.drop(asked)

    # -- requests of the app's clients ---------------------------------------------------------

    def enter(self, trace_id: bytes) -> Trace:
        """A request with this trace id goes to the app; `leave` when its answer is over."""
        trace = self._traces.get(trace_id)
        if trace is None:
            trace = self._traces[trace_id] = Trace()
        trace.users += 1
        return trace

    def leave(self, trace_id: bytes, trace: Trace) -> None:
        trace.users -= 1
        if not trace.users:
            self._traces.pop(trace_id, None)

    def blamed(self, since: float, trace: Trace | None, among: frozenset[str]) -> tuple[str, ...]:
        """The policy files, of those in `among`, a call of which went wrong since `since` (`Clock.now()`)."""
        ended = self._ended if trace is None or not trace.seen else trace.ended
        return tuple(sorted(name for name, end in ended.items() if end >= since and name in among))

    def remembered(self, body: bytes | Stream, among: frozenset[str]) -> tuple[str, ...]:
        """The policy files, of those in `among`, of which the app may use a fallback that it has kept.

        That is so where `body`, JSON, has a text that was asked for then. A body that is not here, or is
        no JSON, may speak of anything.
        """
        now = self._clock.now()
        for name in [name for name, kept in self.kept.items() if not kept.any(now)]:
            del self.kept[name]
        names = [name for name in self.kept if name in among]
        if not names or body == b"":
            return ()
        said = texts(body) if isinstance(body, bytes) else None
        return tuple(sorted(name for name in names if said is None or self.kept[name].holds(said)))


def went_wrong(exchange: Exchange, response: Response) -> bool:
    """Whether the app got something else than the provider's own good answer, fresh or refreshed since.

    A stale answer while it is refreshed is a good one; in place of an error it is not.
    """
    if exchange.error is not None:
        return exchange.error.verdict in _WRONG
    if exchange.rung:
        return True
    return (response.verdict or BY_STATUS[response.status]) in _WRONG
