"""`expose`: pages of the admin listener that ingress answers too, for probes that reach only that one.

They pass no layer and count as no request: a probe each second says nothing of the app's traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from sidecar.exchange import Exchange, Response
from sidecar.headers import Line

if TYPE_CHECKING:
    from sidecar.admin.pages import Showing
    from sidecar.pipeline import Handler

METHODS: Final = frozenset({"GET", "HEAD"})


def exposing(
    paths: Sequence[str], pages: Callable[[], Showing | None], route: Callable[[Exchange], Handler]
) -> Callable[[Exchange], Handler]:
    """`route`, but for `paths`; `pages` gives None until there are any."""
    exposed = frozenset(paths)
    if not exposed:
        return route

    async def show(exchange: Exchange) -> Response:
        request = exchange.request
        accept = b",".join(line.value for line in request.headers if line.name == b"accept")
        there = pages()
        page = None if there is None else await there.get(request.path, accept.decode("latin-1"))
        if page is None:
            return Response(503, [Line(b"Retry-After", b"1")], b"")
        return Response(
            page.status,
            [Line(b"Content-Type", page.content_type.encode()), Line(b"Cache-Control", b"no-store")],
            page.body,
        )

    def routed(exchange: Exchange) -> Handler:
        request = exchange.request
        if request.path in exposed and request.method in METHODS:
            return show
        return route(exchange)

    return routed
