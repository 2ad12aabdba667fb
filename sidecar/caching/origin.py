"""Asking the origin for a response that may be stored: what a fill does."""

from __future__ import annotations

import dataclasses
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

from sidecar.caching.broadcast import Broadcast
from sidecar.caching.fill import Fill, Filled, child_of
from sidecar.decisions.asked import PLAIN, asked_of
from sidecar.decisions.conditional import CONDITIONS, validators
from sidecar.decisions.freshening import freshen, freshen_by_head
from sidecar.decisions.freshness import Basis, Reply, lifetime_of, ttl
from sidecar.decisions.groups import cache_groups
from sidecar.decisions.invalidation import Uri, names_itself
from sidecar.decisions.refresh import next_ttl
from sidecar.decisions.reuse import is_error
from sidecar.decisions.storage import Storing, may_store, storable_headers
from sidecar.decisions.vary import vary_names
from sidecar.decisions.verdict import BY_STATUS, Verdict
from sidecar.errors import CircuitOpen, ConnectFailed, SidecarError, UpstreamError
from sidecar.exchange import Exchange, Response, Stream
from sidecar.headers import Kind, Line
from sidecar.stores.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.caching.cache import RouteCache
    from sidecar.clock import Clock
    from sidecar.decisions.asked import Asked
    from sidecar.decisions.freshness import Lifetime
    from sidecar.decisions.health import Health
    from sidecar.exchange import Request
    from sidecar.pipeline import Handler

LOCK_MOST: Final = 30.0
"""Seconds that one replica waits for the fill of another."""
CAPABILITY: Final = Line(b"Surrogate-Capability", b'sidecar="Surrogate/1.0"')
"""Tells the origin that its `Surrogate-Control` is heard (W3C, Edge Architecture Specification 1.0, 2.2)."""


class Origin:
    """How one route's cache asks its origin."""

    def __init__(self, route: RouteCache, inner: Handler, clock: Clock, health: Health) -> None:
        self._route = route
        self._inner = inner
        self._clock = clock
        self._health = health

    def start(
        self,
        exchange: Exchange,
        asked: Asked,
        key: bytes,
        line: bytes,
        entry: Entry | None,
        *,
        solo: bool,
    ) -> Fill:
        """A fill for `exchange`, which validates `entry` where there is one.

        `line` is where others may join it, if they may at all: not where it is `solo`.
        """
        route = self._route
        headers = [*exchange.request.headers, CAPABILITY]
        conditions = validators(entry.headers) if entry is not None else []
        if conditions or not solo:  # what others may have is the whole
            headers = [each for each in headers if each.name not in CONDITIONS]
        headers += [Line(*condition) for condition in conditions]
        validating = entry if conditions else None
        child = child_of(exchange, self._clock.now(), headers)

        async def run(fill: Fill) -> None:
            await self._run(fill, exchange, asked, key, line, validating, entry, solo=solo)

        return route.caching.fills.start(None if solo else line, Fill(child), run)

    async def _run(
        self,
        fill: Fill,
        exchange: Exchange,
        asked: Asked,
        key: bytes,
        line: bytes,
        validating: Entry | None,
        before: Entry | None,
        *,
        solo: bool,
    ) -> None:
        route = self._route
        claim = None
        shared = route.caching.store.shared
        if shared is not None and not solo and shared.ready and route.settings.terms_ack is not False:
            claim = await shared.locks.claim(line, LOCK_MOST)
            if claim is None and await shared.locks.wait(line, LOCK_MOST):
                place, found = await route.find(key, exchange.request.headers)
                if (
                    found is not None
                    and found is not before
                    and self._clock.wall() < found.lifetime.fresh_until
                ):
                    filled = Filled()
                    filled.entry, filled.key, filled.shared, filled.stored = found, place, True, True
                    fill.decided(filled)
                    return
        try:
            await self._fetch(fill, asked, key, line, validating, before, solo=solo)
        finally:
            if claim is not None:
                claim.release()

    async def _fetch(
        self,
        fill: Fill,
        asked: Asked,
        key: bytes,
        line: bytes,
        validating: Entry | None,
        before: Entry | None,
        *,
        solo: bool,
    ) -> None:
        route = self._route
        clock = self._clock
        filled = Filled()
        since = route.space.mark()
        sent = clock.wall()
        try:
            response = await self._inner(fill.exchange)
        except SidecarError as error:
            self._failed(before, error)
            filled.error = error
            filled.shared = True
            fill.decided(filled)
            return
        received = clock.wall()
        if is_error(response.status, response.verdict or BY_STATUS[response.status]):
            self._failed(before, None)
        else:
            self._health.succeeded()
        dated(response, received)
        if validating is not None and response.status == 304:
            self._validated(fill, filled, asked, key, validating, response, (sent, received, since))
            return
        judged = self._decide(fill, filled, asked, response, before, (sent, received))
        storing = filled.entry
        if storing is not None:
            filled.ttl = ttl(storing.lifetime, received)
        body = response.body
        most = route.settings.max_object
        if isinstance(body, Stream) and filled.shared and (body.length or 0) > most:
            storing = filled.entry = None
            filled.shared = filled.stored = False
        if not filled.shared:
            if not solo:
                route.caching.pass_on(line)
            fill.decided(filled)
            return
        if storing is not None:
            filled.key = route.place(key, filled.names, fill.exchange.request.headers)
        if isinstance(body, Stream):
            broadcast = filled.broadcast = Broadcast(body, most)
            filled.entry = None
            fill.decided(filled)
            await clock.sleep(0)  # those who wait take their seats before the first byte is read
            whole = await broadcast.run()
            if whole is None:
                route.caching.pass_on(line)
                return
            if storing is None:
                return
            if response.degraded:  # something went wrong while the body was on its way
                return
            storing.body = whole
            if judged is not None:
                storing.lifetime = judged(whole)
        elif storing is not None and len(body) > most:
            storing = filled.entry = None
            filled.stored = False
        if storing is not None:
            route.caching.share(line)
            filled.stored = route.put(key, filled.key, filled.names, storing, since)
        fill.decided(filled)

    def _failed(self, before: Entry | None, error: SidecarError | None) -> None:
        """Remembers it of the URL, and of the origin where it is the origin's fault."""
        now = self._clock.now()
        if before is not None:
            before.failed_at = now
        if error is None or isinstance(error, UpstreamError | CircuitOpen):
            self._health.failed(now, certain=isinstance(error, ConnectFailed | CircuitOpen))

    def _decide(
        self,
        fill: Fill,
        filled: Filled,
        asked: Asked,
        response: Response,
        before: Entry | None,
        times: tuple[float, float],
    ) -> Callable[[bytes], Lifetime] | None:
        """Whether the response is stored and shared.

        Returns what gives the lifetime once the body is here, where it depends on that.
        """
        route = self._route
        request = fill.exchange.request
        filled.response = response
        verdict = response.verdict or BY_STATUS[response.status]
        reply = Reply(response.status, response.headers, sent=times[0], received=times[1], rules=route.rules)
        uri = Uri(request.scheme, request.host, request.target)
        storing = may_store(
            request.method,
            asked,
            reply,
            route.rules,
            verdict,
            names_itself=names_itself(uri, response.headers),
        )
        basis = storing.basis
        if basis is not Basis.ORIGIN and _endless(response):
            return None
        if basis is None:
            # A request for the same would fail the same way, now; who waits has the same credentials.
            # But what is one client's own is not shared.
            personal = reply.directives.private or reply.sets_cookies
            filled.shared = is_error(response.status, verdict) and not personal
            return None
        if response.degraded or route.settings.terms_ack is False:
            # The next try may find what was missing; those who wait now would come to the same.
            filled.shared = not vary_names(response.headers)
            return None
        filled.names = vary_names(response.headers)

        def lifetime(body: bytes | None) -> Lifetime:
            ttl = self._learnt_ttl(before, body) if storing is Storing.POLICY else None
            return lifetime_of(reply, route.rules_after(ttl), basis)

        whole = response.body if isinstance(response.body, bytes) else None
        hidden = reply.directives.hidden
        filled.entry = Entry(
            status=response.status,
            reason=response.reason,
            headers=_stored(response.headers, hidden),
            body=whole or b"",
            lifetime=lifetime(whole),
            method=request.method,
            tags=route.tags_of(request, response.headers, cache_groups(response.headers)),
            verdict=verdict.value,
        )
        filled.shared = filled.stored = filled.entry.kept_until > times[1]
        if not filled.stored:
            filled.entry = None
        return lifetime if whole is None and route.settings.adaptive_ttl is not None else None

    def _learnt_ttl(self, before: Entry | None, body: bytes | None) -> float | None:
        """Longer where the last look found the same, shorter where it did not, or where none can tell yet."""
        adaptive = self._route.settings.adaptive_ttl
        if adaptive is None:
            return None
        if before is None:
            return min(max(self._route.rules.ttl or adaptive.min, adaptive.min), adaptive.max)
        last = _trusted_for(before.lifetime)
        return next_ttl(
            max(last, adaptive.min), changed=body != before.body, least=adaptive.min, most=adaptive.max
        )

    def _validated(
        self,
        fill: Fill,
        filled: Filled,
        asked: Asked,
        key: bytes,
        entry: Entry,
        answer: Response,
        times: tuple[float, float, int],
    ) -> None:
        """The origin said 304: the stored response is brought up to date (RFC 9111, 4.3.4)."""
        route = self._route
        request = fill.exchange.request
        sent, received, since = times
        merged = freshen(entry.headers, answer.headers)
        reply = Reply(entry.status, merged, sent=sent, received=received, rules=route.rules)
        storing = may_store(entry.method, asked, reply, route.rules, Verdict(entry.verdict))
        ttl = None
        adaptive = route.settings.adaptive_ttl
        if adaptive is not None and storing is Storing.POLICY:
            last = _trusted_for(entry.lifetime)
            ttl = next_ttl(max(last, adaptive.min), changed=False, least=adaptive.min, most=adaptive.max)
        basis = storing.basis
        lifetime = entry.lifetime
        if basis is not None:
            lifetime = lifetime_of(reply, route.rules_after(ttl), basis, entry.lifetime.obtained)
        fresh = Entry(
            status=entry.status,
            reason=entry.reason,
            headers=_stored(merged, reply.directives.hidden),
            body=entry.body,
            lifetime=lifetime,
            method=entry.method,
            tags=route.tags_of(request, merged, cache_groups(merged)),
            verdict=entry.verdict,
            unchanged=entry.unchanged + 1,
        )
        answer.close()
        filled.entry, filled.validated, filled.shared = fresh, True, True
        filled.names = vary_names(fresh.headers)
        filled.key = route.place(key, filled.names, request.headers)
        if answer.degraded:  # "the same as before" may be said without what it needs, too
            filled.stored = False
        elif basis is not None and lifetime.kept_until > received:
            filled.stored = route.put(key, filled.key, filled.names, fresh, since)
        else:
            route.drop(key)
        fill.decided(filled)

    def names_itself(self, request: Request, response: Response, sent: float) -> None:
        """Stores an answer to POST that is what a GET of the same URL would get (RFC 9110, 9.3.3)."""
        route = self._route
        uri = Uri(request.scheme, request.host, request.target)
        body = response.body
        if not isinstance(body, bytes) or response.degraded or not names_itself(uri, response.headers):
            return
        received = self._clock.wall()
        reply = Reply(response.status, response.headers, sent=sent, received=received, rules=route.rules)
        verdict = response.verdict or BY_STATUS[response.status]
        asked = asked_of(request.headers)
        basis = may_store("POST", asked, reply, route.rules, verdict, names_itself=True).basis
        if basis is None:
            return
        entry = Entry(
            status=response.status,
            reason=response.reason,
            headers=_stored(response.headers, reply.directives.hidden),
            body=body,
            lifetime=lifetime_of(reply, route.rules, basis),
            tags=route.tags_of(request, response.headers, cache_groups(response.headers)),
        )
        names = vary_names(response.headers)
        key = route.keys.url(uri.scheme, uri.host, uri.target, received)
        route.put(key, route.place(key, names, request.headers), names, entry, route.space.mark())

    def head_seen(self, request: Request, key: bytes, entry: Entry, response: Response) -> None:
        """A 200 to HEAD freshens the stored GET, or shows that it is out of date (RFC 9111, 4.3.5)."""
        route = self._route
        merged = freshen_by_head(entry.headers, len(entry.body), response.headers)
        if merged is None:
            route.drop(key)
            return
        now = self._clock.wall()
        reply = Reply(entry.status, merged, sent=now, received=now, rules=route.rules)
        basis = may_store("GET", PLAIN, reply, route.rules, Verdict(entry.verdict)).basis
        if basis is None:
            return
        fresh = dataclasses.replace(
            entry,
            headers=_stored(merged, reply.directives.hidden),
            lifetime=lifetime_of(reply, route.rules, basis, entry.lifetime.obtained),
            plain=None,
        )
        names = vary_names(fresh.headers)
        route.put(key, route.place(key, names, request.headers), names, fresh, route.space.mark())


def _stored(headers: Sequence[Line], hidden: frozenset[bytes]) -> list[Line]:
    return [line for line in storable_headers(headers, hidden) if line.kind is not Kind.FRAMING]


def _endless(response: Response) -> bool:
    """An event stream is of its moment: only the origin's own word could make one worth keeping."""
    kind = response.header(b"content-type")
    return kind is not None and kind.lower().startswith(b"text/event-stream")


def _trusted_for(lifetime: Lifetime) -> float:
    """Seconds of freshness that the last look at the origin gave."""
    return lifetime.fresh_until - max(lifetime.born, lifetime.obtained)


def dated(response: Response, received: float) -> None:
    """Adds the `Date` that the origin left out (RFC 9110, 6.6.1)."""
    if any(line.name == b"date" for line in response.headers):
        return
    line = Line(b"Date", formatdate(received, usegmt=True).encode("ascii"))
    response.headers = [*response.headers, line]
    if response.plain is not None:
        response.plain += line.wire
