"""Which answers were made while a call went wrong, where the two may be in different workers.

As `Overlaps`, with what the other processes noted. One thing is coarser: a call with a trace id of a request
that is in flight elsewhere counts against what overlaps in time here, as nobody here knows that request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.decisions.kept import asked_for
from sidecar.overlap import Overlaps, Trace
from sidecar.workers.ledger import Ledger, Note

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.config.inject_policy import AppKeeps
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler


class SharedOverlaps(Overlaps):
    """Of one process among several."""

    __slots__ = ("_last", "_ledger", "_tell")

    def __init__(self, clock: Clock, ledger: Ledger, tell: Callable[..., None]) -> None:
        """`tell` gives the others hints: what the app may have kept is none of a moment."""
        self._ledger = ledger
        self._tell = tell
        super().__init__(clock)

    @property
    def last(self) -> float:  # there it is a plain slot, which costs less
        self.catch_up()
        return self._last

    @last.setter
    def last(self, value: float) -> None:
        self._last = value

    def noting(self, policy: str, handler: Handler, keeps: AppKeeps | None = None) -> Handler:
        inner = super().noting(policy, handler, keeps)

        async def noted(exchange: Exchange) -> Response:
            if policy not in self.seen:
                self._tell("seen", policy)
            parent = exchange.traceparent
            if parent is not None and parent[0] not in self._traces:
                self._ledger.write(Note(0.0, parent[0], ""))
            return await inner(exchange)

        return noted

    def _note(self, policy: str, trace: Trace | None, exchange: Exchange) -> None:
        super()._note(policy, trace, exchange)
        if trace is None:  # else the request that it belongs to is in flight here
            parent = exchange.traceparent
            self._ledger.write(Note(self._last, b"" if parent is None else parent[0], policy))

    def keep(self, policy: str, asked: bytes, until: float) -> None:
        super().keep(policy, asked, until)
        self._tell("kept", policy, asked, until)

    def _drop(self, policy: str, exchange: Exchange, keeps: AppKeeps) -> None:
        super()._drop(policy, exchange, keeps)
        asked = asked_for(exchange.request.query, keeps.parameter)
        if asked is not None:
            self._tell("unkept", policy, asked)

    def hear_kept(self, policy: str, asked: bytes, until: float) -> None:
        super().keep(policy, asked, until)

    # -- requests of the app's clients ---------------------------------------------------------

    def enter(self, trace_id: bytes) -> Trace:
        self.catch_up()
        return super().enter(trace_id)

    def blamed(self, since: float, trace: Trace | None, among: frozenset[str]) -> tuple[str, ...]:
        self.catch_up()
        return super().blamed(since, trace, among)

    def catch_up(self) -> None:
        """Takes in what the others have noted since the last time."""
        notes, lost = self._ledger.read()
        if lost:  # any call may have gone wrong until now
            self._last = now = self._clock.now()
            self._ended.update(dict.fromkeys(self.seen, now))
        for at, trace_id, policy in notes:
            trace = self._traces.get(trace_id) if trace_id else None
            if trace is not None:
                trace.seen = True
            if policy:
                ended = self._ended if trace is None else trace.ended
                ended[policy] = max(at, ended.get(policy, at))
                self._last = max(self._last, at)
