"""`security_headers`: what browsers are told of every answer of ingress, unless the app told them already.

Wrapped around the route as `expose` is, so that the sidecar's own answers have them too. An answer that has a
field keeps it as it is: the app knows which of its pages may be framed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sidecar.headers import Line

if TYPE_CHECKING:
    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler

_LINES: Final = (
    Line(b"X-Content-Type-Options", b"nosniff"),  # Fetch Standard, 3.7
    Line(b"X-Frame-Options", b"DENY"),  # RFC 7034, 2.1
)
_HSTS: Final = Line(b"Strict-Transport-Security", b"max-age=31536000; includeSubDomains")
"""RFC 6797, 7.2: never over plain HTTP. A year, in seconds."""
_OVER_TLS: Final = (*_LINES, _HSTS)
_NAMES: Final = frozenset(line.name for line in _OVER_TLS)
_HTTPS: Final = re.compile(rb"\r\nX-Forwarded-Proto: https[ \t]*[,\r]", re.IGNORECASE)
"""In the lines that the listener vouches for. Of several schemes the first is the client's."""
ALWAYS: Final = b"".join(line.wire for line in _LINES)
"""As they are sent, whatever the scheme."""
_ALWAYS_OVER_TLS: Final = ALWAYS + _HSTS.wire


def hardening(route: Callable[[Exchange], Handler]) -> Callable[[Exchange], Handler]:
    """`route`, whose answers have the headers."""

    async def hardened(exchange: Exchange) -> Response:
        handler = route(exchange)
        secure = _HTTPS.search(exchange.forwarded) is not None
        response = await handler(exchange)
        there = {line.name for line in response.headers if line.name in _NAMES}
        if not there:
            exchange.told += _ALWAYS_OVER_TLS if secure else ALWAYS
        else:
            lines = _OVER_TLS if secure else _LINES
            exchange.told += b"".join(line.wire for line in lines if line.name not in there)
        return response

    return lambda _: hardened
