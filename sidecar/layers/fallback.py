"""What is answered when there is no good answer: a ladder of other upstreams and templates.

Must be above `cache`: a stale answer goes first, and what a fallback says is never stored. Each request
that gets no good answer is counted by the rung that gave one: `stale` by the cache, here `upstream`,
`respond`, or `problem` where none fits and the failure itself goes to the client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.decisions.cache_status import Forward, member
from sidecar.decisions.ladder import FALLING, is_answer, skipped
from sidecar.decisions.replay import IDEMPOTENT
from sidecar.decisions.trail import ALTERNATE
from sidecar.decisions.verdict import Verdict
from sidecar.errors import ClientError, ConnectFailed, Rejection, SidecarError
from sidecar.exchange import Request, Response, Stream
from sidecar.headers import Line, every
from sidecar.replayable import Recording
from sidecar.responder import Responder

if TYPE_CHECKING:
    from sidecar.config.schema import Route, Rung
    from sidecar.exchange import Exchange
    from sidecar.pipeline import Handler, Layer, Place

MAX_BODY: Final = 1 << 20
"""Bytes of a streamed request body that are kept for another upstream, where `retry` does not say."""
NO_STORE: Final = Line(b"Cache-Control", b"no-store")
_FRESHNESS: Final = frozenset(
    {
        b"cache-control",
        b"cdn-cache-control",
        b"expires",
        b"pragma",
        b"sidecar-cache-control",
        b"surrogate-control",
    }
)
"""Fields by which another upstream's answer would be kept in the place of the real one."""

_FORWARDED: Final = {
    "": Forward.BYPASS,
    "bypass": Forward.BYPASS,
    "miss": Forward.MISS,
    "collapsed": Forward.MISS,
}
"""By what the cache did with a request; all else is a hit: an error that the origin wanted to be stored."""


def degraded(rung: str) -> Line:
    """A member of a Dictionary (RFC 9651, 3.2): `fallback`, with the rung as its parameter."""
    return Line(b"Sidecar-Degraded", b"fallback;rung=%b" % rung.encode())


class _Failure:
    """Why there is no good answer, and what there is of the request to ask somebody else."""

    __slots__ = ("body", "closed", "error", "recording", "response", "verdict")

    def __init__(
        self,
        verdict: Verdict,
        error: SidecarError | None,
        response: Response | None,
        body: bytes | Stream,
        recording: Recording | None,
    ) -> None:
        self.verdict = verdict
        self.error = error
        self.response = response
        self.body = body
        self.recording = recording
        self.closed = False
        """The response was given up before it was whole."""

    def discard(self) -> None:
        """Gives the response up: before anybody else is asked, or anything else is answered."""
        if self.response is not None and not isinstance(self.response.body, bytes):
            self.response.close()
            self.closed = True

    @property
    def nothing_sent(self) -> bool:
        return isinstance(self.error, ConnectFailed | Rejection)

    @property
    def replayable(self) -> bool:
        if isinstance(self.body, bytes):  # it came whole, or the cache has gathered it
            return True
        return self.recording is not None and self.recording.replayable

    def replayed(self) -> bytes | Stream:
        """The request's body from its start."""
        if self.recording is None or isinstance(self.body, bytes):
            return self.body
        self.recording.rewind()
        return self.recording


class _Template:
    """A rung that answers by itself, always."""

    rung = "respond"

    def __init__(self, rung: Rung, route: Route) -> None:
        assert rung.respond is not None
        self._responder = Responder(rung.respond, route.match, (NO_STORE, degraded(self.rung)))

    def skipped(self, _request: Request, _failure: _Failure) -> str:
        return ""

    async def ask(self, exchange: Exchange, _failure: _Failure, _now: float) -> Response:
        return self._responder.answer(exchange)


class _Alternate:
    """A rung that asks another upstream."""

    rung = "upstream"

    def __init__(self, rung: Rung, route: Route, handler: Handler) -> None:
        assert rung.upstream is not None
        self._handler = handler
        self._authority = rung.upstream.authority.encode()
        self._patient = rung.deadline is not None
        self._safe = frozenset(rung.methods) if rung.methods is not None else _safe(route)

    def skipped(self, request: Request, failure: _Failure) -> str:
        return skipped(
            request.method,
            self._safe,
            nothing_sent=failure.nothing_sent,
            replayable=failure.replayable,
        )

    async def ask(self, exchange: Exchange, failure: _Failure, now: float) -> Response:
        """Its answer, whatever it says. Raises SidecarError."""
        theirs = exchange.request
        request = Request(
            theirs.method,
            theirs.target,
            theirs.headers,
            failure.replayed(),
            host=self._authority,
            scheme=theirs.scheme,
            http10=theirs.http10,
            upgrade=theirs.upgrade,
        )
        request.ours, request.plain = theirs.ours, theirs.plain
        # The route's own deadline counts from the start of the request, a deadline of the rung from now.
        child = exchange.child(request, now if self._patient else exchange.started)
        try:
            return await self._handler(child)
        finally:
            exchange.attempts += child.attempts
            exchange.upstream = child.upstream or exchange.upstream
            exchange.upstream_seconds = child.upstream_seconds
            for layer, decision in child.note_list or ():
                exchange.note(layer, decision + ALTERNATE)
            exchange.verdict = child.verdict or exchange.verdict


def _mark(answer: Response) -> None:
    """Says whose answer it is, and takes away what would have it kept for the real one."""
    kept = [line for line in answer.headers if line.name not in _FRESHNESS]
    answer.headers = [*kept, NO_STORE, degraded(_Alternate.rung)]
    answer.plain = None


def _safe(route: Route) -> frozenset[str]:
    """Methods that two upstreams may get: idempotent, or said by another policy to bear repetition."""
    retried = route.retry.methods if route.retry is not None else ()
    cached = route.cache.methods if route.cache is not None else ()
    return frozenset({*IDEMPOTENT, *retried, *cached})


def _steps(place: Place) -> dict[Verdict, list[_Template | _Alternate]]:
    """The rungs for each verdict, in order."""
    route = place.route
    alternates = iter(place.alternates)
    steps: dict[Verdict, list[_Template | _Alternate]] = {verdict: [] for verdict in FALLING}
    for rung in route.fallback or ():
        step: _Template | _Alternate
        if rung.respond is not None:
            step = _Template(rung, route)
        else:
            step = _Alternate(rung, route, next(alternates))
        for word in rung.on:
            steps.setdefault(Verdict(word), []).append(step)
    return steps


def layer(place: Place) -> Layer | None:
    route = place.route
    if route.fallback is None:
        return None
    clock = place.services.clock
    cells = place.services.metrics.route(route.name, place.upstream)
    keeps_body = any(rung.upstream is not None for rung in route.fallback)
    max_body = route.retry.max_body if route.retry is not None else MAX_BODY
    cached = route.cache is not None
    ok = Verdict.OK

    def around(inner: Handler) -> Handler:
        steps = _steps(place)

        async def fallback(exchange: Exchange) -> Response:
            recording = None
            if keeps_body and isinstance(body := exchange.request.body, Stream):
                recording = exchange.request.body = Recording(body, max_body)
            try:
                response = await inner(exchange)
            except SidecarError as error:
                if error.verdict not in steps:
                    raise
                failure = _Failure(error.verdict, error, None, exchange.request.body, recording)
                return await descend(exchange, failure)
            verdict = response.verdict
            if verdict is ok or verdict is None or verdict not in steps:
                return response
            return await descend(
                exchange, _Failure(verdict, None, response, exchange.request.body, recording)
            )

        async def descend(exchange: Exchange, failure: _Failure) -> Response:
            """The answer of the first rung that has one. Raises SidecarError where none has."""
            last: Response | None = None
            trouble = failure.error
            for step in steps[failure.verdict]:
                why = step.skipped(exchange.request, failure)
                if why:
                    exchange.note("fallback", f"skipped={why}")
                    continue
                failure.discard()
                if last is not None:
                    last.close()
                    last = None
                try:
                    answer = await step.ask(exchange, failure, clock.now())
                except SidecarError as error:
                    if isinstance(error, ClientError):  # its body is broken, or it has left
                        exchange.note("fallback", f"error={error.code}")
                        raise
                    exchange.note("fallback", f"failed={error.code}")
                    trouble = trouble or error
                    continue
                if is_answer(answer.verdict):
                    settled(exchange, step.rung)
                    if step.rung == _Alternate.rung:
                        _mark(answer)
                    if cached:
                        answer.add(_cache_status(exchange, failure.response))
                    return answer
                assert answer.verdict is not None
                exchange.note("fallback", f"failed={answer.verdict.value}")
                last = answer
            settled(exchange, "problem")
            return unaided(failure, last, trouble)

        def settled(exchange: Exchange, rung: str) -> None:
            exchange.rung = rung
            exchange.note("fallback", f"rung={rung}")
            cells.fell_back(rung)

        return fallback

    return around


def unaided(failure: _Failure, last: Response | None, trouble: SidecarError | None) -> Response:
    """The failure itself, where it is still to be had; else that of the last rung. Raises SidecarError."""
    if failure.closed and last is not None:
        return last
    if last is not None:
        last.close()
    if failure.response is not None and not failure.closed:
        return failure.response
    assert trouble is not None
    raise trouble


def _cache_status(exchange: Exchange, discarded: Response | None) -> Line:
    """What our cache did before: it had nothing good, and what came instead is not its own (RFC 9211)."""
    said = every(discarded.headers, b"cache-status") if discarded is not None else []
    if said:  # the last member is ours
        _, others, ours = said[-1].rpartition(b", sidecar;")
        status = (b"sidecar;" + ours if others else ours) + b'; detail="fallback"'
    else:
        status = member(_FORWARDED.get(exchange.cache), detail="fallback")
    return Line(b"Cache-Status", status)
