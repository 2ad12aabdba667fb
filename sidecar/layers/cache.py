"""Answers from what is stored, and asks the origin once for all who want the same.

Must be above `deadline` and `retry`: one coalesced fill, with a deadline of its own, retried once for
all who wait. It decides alone what is stored and who is given it; what the rules of RFC 9111 say is in
`decisions/`, and what a fill does in `caching/`.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.caching.again import Repeats
from sidecar.caching.answers import answer, marked, repeatable
from sidecar.caching.cache import RouteCache
from sidecar.caching.fill import report
from sidecar.caching.gathered import gather
from sidecar.caching.origin import Origin, dated
from sidecar.decisions.asked import PLAIN, asked_of
from sidecar.decisions.cache_control import NOTHING_ASKED
from sidecar.decisions.cache_status import NAME, Forward, hit, member
from sidecar.decisions.conditional import Condition, evaluate, not_modified_headers
from sidecar.decisions.freshness import ttl
from sidecar.decisions.groups import invalidated_groups
from sidecar.decisions.health import failed_lately
from sidecar.decisions.invalidation import SAFE, Uri, invalidated
from sidecar.decisions.refresh import refresh_due
from sidecar.decisions.reuse import Use, is_error, judge_use, may_serve_on_error
from sidecar.decisions.verdict import BY_STATUS
from sidecar.errors import CacheMissed, ConnectFailed, ConnectionReset, SidecarError, UpstreamError
from sidecar.exchange import Response, Stream
from sidecar.headers import Line
from sidecar.stores.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sidecar.caching.cache import Caching
    from sidecar.caching.fill import Filled
    from sidecar.decisions.asked import Asked
    from sidecar.exchange import Exchange, Request
    from sidecar.pipeline import Handler, Layer, Place

_ERRORS: Final = frozenset({"transient", "rate_limited", "quota"})
_FRESH: Final = Use.FRESH  # a global is found faster than a member of an Enum
NOT_ASKED = NAME + b'; detail="only-if-cached"'
MOST_ROUNDS = 3
"""Fills that a request joins in vain (other variants, answers for one client) before it goes alone."""


def layer(place: Place) -> Layer | None:
    caching = place.services.caching
    if place.route.cache is None:
        if not caching.in_use or (place.route.match.method and SAFE.issuperset(place.route.match.method)):
            return None
        return _invalidating(caching)
    return _Cache(place, RouteCache(place.route, caching)).around


def _invalidating(caching: Caching) -> Layer:
    """For a route without `cache` whose methods may change what others have stored (RFC 9111, 4.4)."""

    def around(inner: Handler) -> Handler:
        async def changing(exchange: Exchange) -> Response:
            response = await inner(exchange)
            invalidate(caching, exchange.request, response)
            return response

        def cache(exchange: Exchange) -> Awaitable[Response]:
            return inner(exchange) if exchange.request.method in SAFE else changing(exchange)

        return cache

    return around


def invalidate(
    caching: Caching, request: Request, response: Response, declared_safe: frozenset[str] = frozenset()
) -> None:
    """Drops what an unsafe method's answer makes invalid."""
    uri = Uri(request.scheme, request.host, request.target)
    for changed in invalidated(
        request.method, response.status, uri, response.headers, declared_safe=declared_safe
    ):
        caching.invalidate(changed)
    for group in invalidated_groups(request.method, response.headers, declared_safe=declared_safe):
        caching.invalidate_group(request.host, group)


class _Found(NamedTuple):
    """What a look-up came to, where the origin has to be asked."""

    key: bytes
    line: bytes
    """Where others wait for the same."""
    entry: Entry | None
    """May be validated, or stand in for an error."""
    forward: Forward


def _forward(key: bytes, place: bytes, entry: Entry | None, now: float) -> Forward:
    """Why a request that nothing stored answers goes on (RFC 9211, 2.2)."""
    if entry is None:
        return Forward.URI_MISS if place is key else Forward.VARY_MISS
    fresh = now < entry.lifetime.fresh_until and not entry.lifetime.always_validate
    return Forward.REQUEST if fresh else Forward.STALE


class _Cache:
    """The layer of one route."""

    def __init__(self, place: Place, route: RouteCache) -> None:
        self._route = route
        self._caching = route.caching
        self._clock = place.services.clock
        self._cells = place.services.metrics.route(place.route.name, place.upstream)
        self._methods = frozenset(place.route.cache.methods if place.route.cache else ())
        self._ahead = place.route.cache.refresh_ahead if place.route.cache else None
        self._health = place.services.state.health(place.upstream, place.route.name)
        self._probe = place.route.cache.probe_interval if place.route.cache else None
        self._simple = not route.settings.key.headers and route.settings.key.body is None
        self._repeats = (
            Repeats(route, self._cells, place.memo, self._ahead)
            if place.memo is not None and self._simple and not route.keys.timed
            else None
        )

    def around(self, inner: Handler) -> Handler:
        self._inner = inner
        self._origin = Origin(self._route, inner, self._clock, self._health)
        return self.handle

    async def handle(self, exchange: Exchange) -> Response:
        request = exchange.request
        method = request.method
        if (method not in self._methods and method != "HEAD") or request.upgrade:
            return await self._pass(exchange)
        body = request.body
        if isinstance(body, Stream):
            most = self._route.settings.max_object
            if body.length is not None and body.length > most:
                return await self._pass(exchange, Forward.BYPASS)
            body = request.body = await gather(body, most)
            if isinstance(body, Stream):
                return await self._pass(exchange, Forward.BYPASS)
        asked = asked_of(request.headers)
        now = self._clock.wall()
        if self._simple and not body and method in {"GET", "HEAD"}:
            key = self._route.keys.url(request.scheme, request.host, request.target, now)
        else:
            key = self._route.keys.request(
                method, request.scheme, request.host, request.target, request.headers, body, now
            )
        return await self._answer(exchange, asked, key, now)

    async def _answer(self, exchange: Exchange, asked: Asked, key: bytes, now: float) -> Response:
        request = exchange.request
        names: tuple[bytes, ...] = ()
        exchange.cached = (key, None)
        for _ in range(MOST_ROUNDS):
            place, entry = await self._route.find(key, request.headers)
            use = judge_use(entry.lifetime if entry is not None else None, asked.directives, now)
            if entry is not None and use in (Use.FRESH, Use.STALE_ALLOWED, Use.STALE_WHILE_REVALIDATE):
                left = ttl(entry.lifetime, now)
                if (
                    self._repeats is not None
                    and use is _FRESH
                    and asked is PLAIN
                    and entry.verdict == "ok"
                    and request.method == "GET"
                    and not request.body
                ):
                    response: Response | None = repeatable(entry, now, hit(left), self._repeats)
                else:
                    response = answer(entry, request, asked, now, hit(left))
                if response is not None:
                    exchange.cached = (place, left)
                    entry.used += 1
                    self._served(exchange, use, asked, key, place, entry, now)
                    return response
            if use is Use.VALIDATE and entry is not None and self._in_vain(entry, asked, now):
                response = self._stale(exchange, entry, asked, now, forward=None)
                if response is not None:
                    self._refresh(exchange, asked, key, place, entry)
                    return response
            if use is Use.ONLY_IF_CACHED:
                self._count(exchange, "miss")
                exchange.note("cache", f"miss;error={CacheMissed.code}")
                exchange.cache_status = NOT_ASKED
                raise CacheMissed
            if use is Use.BYPASS:
                return await self._pass(exchange, Forward.BYPASS)
            forward = _forward(key, place, entry, now)
            if request.method == "HEAD":
                return await self._head(exchange, key, forward, entry)
            if names and place is key:
                place = self._route.place(key, names, request.headers)
            line = self._line(request, asked, place)
            solo = (
                asked.directives is not NOTHING_ASKED
                or asked.preconditions
                or asked.ranged
                or self._caching.passes(line)
            )
            # What is not stale, and yet no answer, has a condition that is for the origin as it is.
            stale = entry if use is Use.VALIDATE else None
            found = _Found(key, line, stale, forward)
            outcome = await self._from_origin(exchange, asked, found, solo=solo)
            if isinstance(outcome, Response):
                return outcome
            names = outcome
            now = self._clock.wall()
        found = _Found(key, self._line(request, asked, key), None, Forward.MISS)
        outcome = await self._from_origin(exchange, asked, found, solo=True)
        assert isinstance(outcome, Response)
        return outcome

    def _line(self, request: Request, asked: Asked, place: bytes) -> bytes:
        """Where requests wait for the same fill: never those with different credentials."""
        return place + _credential(request) if asked.authorized else place

    def _served(
        self, exchange: Exchange, use: Use, asked: Asked, key: bytes, place: bytes, entry: Entry, now: float
    ) -> None:
        if use is Use.FRESH:
            self._count(exchange, "hit")
            if self._ahead is not None and refresh_due(entry.lifetime, self._ahead, now):
                self._refresh(exchange, asked, key, place, entry)
        elif use is Use.STALE_WHILE_REVALIDATE:
            self._count(exchange, "updating")
            self._refresh(exchange, asked, key, place, entry)
        else:
            self._count(exchange, "stale")

    def _refresh(self, exchange: Exchange, asked: Asked, key: bytes, place: bytes, entry: Entry) -> None:
        """Exactly one fill in the background; nobody waits for it. None while one failed just before."""
        if exchange.request.method == "HEAD" or not self._worth_asking(entry):
            return
        line = self._line(exchange.request, asked, place)
        if self._caching.fills.find(line) is None:
            self._caching.want(self._route.name, exchange.request, entry.used)
            self._origin.start(exchange, asked, key, line, entry, solo=False)

    def _in_vain(self, entry: Entry, asked: Asked, now: float) -> bool:
        """Asking the origin would most likely end in what is stored, after a wait.

        Only where the origin or the policy states `stale-if-error`, and the client asks for nothing else.
        """
        interval = self._probe
        if interval is None or asked.directives is not NOTHING_ASKED:
            return False
        at = self._clock.now()
        failing = self._health.failing(at, interval) or failed_lately(entry.failed_at, at, interval)
        return failing and _spare(entry, asked, now)

    def _worth_asking(self, entry: Entry) -> bool:
        interval = self._probe
        if interval is None:
            return True
        at = self._clock.now()
        if self._health.failing(at, interval):
            return self._health.may_probe(at, interval)
        return at - entry.failed_at >= interval or not entry.failed_at

    async def _from_origin(
        self, exchange: Exchange, asked: Asked, found: _Found, *, solo: bool
    ) -> Response | tuple[bytes, ...]:
        """The origin's answer, shared with who asks the same.

        Else look again: it was not for us, and varies by what is returned.
        """
        key, line, entry, forward = found
        fill = None if solo else self._caching.fills.find(line)
        joined = fill is not None
        if fill is None:
            fill = self._origin.start(exchange, asked, key, line, entry, solo=solo)
        filled = await fill.wait(first=not joined)
        if not joined:
            report(fill.exchange, exchange)
        if joined and not self._fits(filled, key, exchange.request):
            return filled.names
        now = self._clock.wall()
        error = filled.error
        if error is not None:
            if entry is not None and self._stands_in(entry, asked, now, error):
                return self._stale(exchange, entry, asked, now) or ()
            self._count(exchange, "miss")
            if joined and isinstance(error, SidecarError):
                exchange.note("cache", f"collapsed;error={error.code}")
            exchange.cache_status = member(forward, collapsed=joined)
            raise error
        if filled.entry is not None and (filled.validated or filled.response is None):
            return self._validated(exchange, asked, filled, now, forward, joined=joined) or ()
        exchange.cached = (filled.key or key, filled.ttl)
        response = filled.take()
        verdict = response.verdict or BY_STATUS[response.status]
        failed = response.degraded or is_error(response.status, verdict)
        if failed and entry is not None and _spare(entry, asked, now):
            status = response.status
            response.close()
            return self._stale(exchange, entry, asked, now, status=status) or ()
        self._count(exchange, "collapsed" if joined else "miss")
        return self._conditional(
            exchange,
            asked,
            marked(
                response,
                member(forward, forward_status=response.status, stored=filled.stored, collapsed=joined),
            ),
            now,
        )

    def _fits(self, filled: Filled, key: bytes, request: Request) -> bool:
        """Whether what another's fill brought is for this request too."""
        if filled.error is not None:
            return True
        if not filled.shared or (filled.broadcast is not None and not filled.broadcast.kept):
            return False
        return not filled.names or self._route.place(key, filled.names, request.headers) == filled.key

    def _validated(
        self, exchange: Exchange, asked: Asked, filled: Filled, now: float, forward: Forward, *, joined: bool
    ) -> Response | None:
        entry = filled.entry
        assert entry is not None
        left = ttl(entry.lifetime, now)
        exchange.cached = (filled.key, left)
        self._count(exchange, "collapsed" if joined else "revalidated" if filled.validated else "hit")
        status = (
            member(
                forward,
                forward_status=304,
                ttl=left,
                stored=filled.stored,
                collapsed=joined,
            )
            if filled.validated
            else hit(left)
        )
        return answer(entry, exchange.request, asked, now, status)

    def _stands_in(self, entry: Entry, asked: Asked, now: float, error: BaseException) -> bool:
        if not isinstance(error, SidecarError):
            return False
        disconnected = isinstance(error, ConnectFailed | ConnectionReset) or not isinstance(
            error, UpstreamError
        )
        return _spare(entry, asked, now, disconnected=disconnected)

    def _stale(
        self,
        exchange: Exchange,
        entry: Entry,
        asked: Asked,
        now: float,
        *,
        forward: Forward | None = Forward.STALE,
        status: int | None = None,
    ) -> Response | None:
        """In place of an error; `forward` None where the origin was not asked."""
        left = ttl(entry.lifetime, now)
        shown = member(forward, forward_status=status, ttl=left, detail="stale-if-error")
        response = answer(entry, exchange.request, asked, now, shown)
        if response is not None:
            self._count(exchange, "stale")
            self._cells.fell_back("stale")
            if exchange.cached is not None:
                exchange.cached = (exchange.cached[0], left)
            exchange.rung = "stale"
            response.add(Line(b"Sidecar-Degraded", b"stale"))
        return response

    def _conditional(self, exchange: Exchange, asked: Asked, response: Response, now: float) -> Response:
        """A client's condition holds for what the origin answered without it, too."""
        request = exchange.request
        if not asked.preconditions or response.status != 200:
            return response
        condition = evaluate(
            request.headers, response.headers, status=200, method=request.method, received=now, now=now
        )
        if condition is not Condition.NOT_MODIFIED:
            return response
        response.close()
        exchange.note("cache", "not_modified")
        return Response(304, not_modified_headers(response.headers))

    async def _pass(self, exchange: Exchange, forward: Forward = Forward.METHOD) -> Response:
        """Past the cache; an unsafe method may make what is stored invalid."""
        sent = self._clock.wall()
        exchange.cache = outcome = "bypass" if forward in (Forward.METHOD, Forward.BYPASS) else "miss"
        try:
            response = await self._inner(exchange)
        except SidecarError:
            self._count(exchange, outcome)
            exchange.cache_status = member(forward)
            raise
        dated(response, self._clock.wall())
        invalidate(self._caching, exchange.request, response, self._methods)
        if exchange.request.method == "POST":
            self._origin.names_itself(exchange.request, response, sent)
        self._count(exchange, outcome)
        return marked(response, member(forward, forward_status=response.status))

    async def _head(self, exchange: Exchange, key: bytes, forward: Forward, entry: Entry | None) -> Response:
        """A HEAD that nothing stored answers; what it says may bring a stored GET up to date."""
        response = await self._pass(exchange, forward)
        if entry is not None and response.status == 200:
            self._origin.head_seen(exchange.request, key, entry, response)
        return response

    def _count(self, exchange: Exchange, outcome: str) -> None:
        exchange.cache = outcome
        self._cells.cached(outcome)


def _spare(entry: Entry, asked: Asked, now: float, *, disconnected: bool = False) -> bool:
    """Whether it may stand in for an error. A stored error is no better than another."""
    if entry.verdict in _ERRORS:
        return False
    return may_serve_on_error(entry.lifetime, asked.directives, now, disconnected=disconnected)


def _credential(request: Request) -> bytes:
    """Tells the holders of credentials apart, without keeping any."""
    digest = blake2b(digest_size=12)
    for line in request.headers:
        if line.name == b"authorization":
            digest.update(line.value + b"\n")
    return digest.hexdigest().encode("ascii")
