"""Acting on the cache: statistics, purging, warming."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from sidecar.decisions.invalidation import Uri
from sidecar.exchange import Exchange, Request, Response, Stream
from sidecar.headers import Line
from sidecar.telemetry.redact import redact_url

if TYPE_CHECKING:
    from sidecar.caching.cache import Caching
    from sidecar.clock import Ids
    from sidecar.config.addresses import Url
    from sidecar.pipeline import Handler


def purging(caching: Caching) -> Handler:
    """Answers PURGE: 200 where something was stored for the URL, 404 where nothing was (as Varnish does)."""

    async def purge(exchange: Exchange) -> Response:
        request = exchange.request
        count = await caching.remove(Uri(request.scheme, request.host, request.target))
        exchange.note("cache", f"purged={count}")
        return Response(
            200 if count else 404, [Line(b"Content-Type", b"application/json")], b'{"purged": %d}' % count
        )

    return purge


MOST_WARMED: Final = 1000
"""URLs that one call warms."""
WARM_PAUSE: Final = 0.02
"""Seconds between two requests of a warming, one after the other: it never crowds out traffic."""


class Control:
    """What the admin listener, PURGE and the start may do with the cache."""

    def __init__(
        self,
        caching: Caching,
        route: Callable[[Exchange], Handler],
        ids: Ids,
        authority: str,
        homes: Mapping[str, Url] = MappingProxyType({}),
    ) -> None:
        """`authority`: the host of paths that are given without one; `homes`: the upstream that such a
        path is of, by the name of the route, where it is not the app.
        """
        self._homes = homes
        self._caching = caching
        self._route = route
        self._ids = ids
        self._authority = authority

    def stats(self) -> dict[str, object]:
        return {**self._caching.store.stats(), "fills": len(self._caching.fills)}

    async def purge(
        self,
        *,
        key: str | None = None,
        prefix: str | None = None,
        tag: str | None = None,
        url: str | None = None,
        namespace: str | None = None,
    ) -> int:
        """Drops what exactly one of these names; how many there were. Raises ValueError."""
        store = self._caching.store
        self._caching.fills.forget()
        if tag is not None:
            return await store.purge_tag(tag)
        if url is not None:
            return await self._caching.remove(self._uri(url))
        if namespace is not None:
            if namespace not in {route.namespace for route in self._caching.routes.values()}:
                raise ValueError(f'no route stores under the namespace "{namespace}"')
            return await store.purge_prefix(namespace.encode("ascii", "replace") + b":")
        named = (key if key is not None else prefix or "").encode("ascii", "replace")
        if b":" not in named:
            raise ValueError("keys begin with their namespace and a colon; see GET /admin/cache/stats")
        return await store.purge_prefix(named)

    def warm(self, urls: Sequence[str], route: str | None = None) -> int:
        """Begins to fetch `urls`, or else what is configured and what was most wanted. Raises ValueError."""
        if route is not None and route not in self._caching.routes:
            raise ValueError(f'"{route}" is no route with a cache')
        wanted = [self._uri(url) for url in urls] if urls else self._wanted(route)
        if len(wanted) > MOST_WARMED:
            raise ValueError(f"at most {MOST_WARMED} URLs at once")
        if wanted:
            self._caching.fills.background(self._fetch(wanted))
        return len(wanted)

    def _wanted(self, route: str | None) -> list[Uri]:
        configured = [
            self._uri(path, self._homes.get(name))
            for name, cache in self._caching.routes.items()
            if route in (None, name)
            for path in cache.settings.warm
        ]
        seen = [
            Uri(scheme, host, target)
            for name, scheme, host, target in self._caching.most_wanted(MOST_WARMED)
            if route in (None, name)
        ]
        return list(dict.fromkeys([*configured, *seen]))[:MOST_WARMED]

    def _uri(self, url: str, home: Url | None = None) -> Uri:
        if home is not None:
            url = f"{home.scheme}://{home.authority}{url}"
        parts = urlsplit(url)
        if parts.scheme not in ("", "http", "https") or not parts.path.startswith("/"):
            raise ValueError(f'"{redact_url(url)}" is neither a path nor an http URL')
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        host = parts.netloc or self._authority
        return Uri(
            parts.scheme or "http", host.encode("idna" if not host.isascii() else "ascii"), target.encode()
        )

    async def _fetch(self, uris: Sequence[Uri]) -> None:
        """One after the other, through each one's own route."""
        clock = self._caching.clock
        for uri in uris:
            request = Request("GET", uri.target, [], host=uri.host, scheme=uri.scheme)
            exchange = Exchange(request, "", clock.now())
            exchange.request_id = self._ids.request_id()
            exchange.id_line = Line(b"X-Request-ID", exchange.request_id.encode()).wire
            response = await self._route(exchange)(exchange)
            body = response.body
            if isinstance(body, Stream):
                while await body.read():
                    pass
            if exchange.on_sent is not None:
                exchange.on_sent(exchange, response, "done")
            await clock.sleep(WARM_PAUSE)
