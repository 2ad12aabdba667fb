"""The head of a request as the upstream gets it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.exchange import Exchange, Request, Stream
from sidecar.headers import Kind

if TYPE_CHECKING:
    from sidecar.clock import Ids
    from sidecar.upstreams.injection import Injection

VIA: Final = b"Via: 1.1 sidecar\r\n"
"""A gateway adds itself to `Via` on requests (RFC 9110, 7.6.3).

Not on the app's own calls: to their client and to the provider the sidecar is not there (an interception,
RFC 9110, 3.7), and servers treat a request with `Via` otherwise: nginx does not compress its answer."""
END: Final = VIA + b"\r\n"
_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", "PURGE"})
"""Methods for which no Content-Length means no body; others say so with a zero (RFC 9110, 8.6)."""


def request_head(
    exchange: Exchange, ids: Ids, *, egress: bool = False, inject: Injection | None = None
) -> bytes:
    """Lines as they came, without those of the client's hop, with ours added.

    A call of the app gets a new span in its `traceparent`, what its policy file injects, and no other line of
    ours.
    """
    request = exchange.request
    upgrade = request.upgrade
    if request.passed_on is not None and inject is None:
        parts = [*request.passed_on]
    else:
        parts = _lines(request, inject)
    body = request.body
    if isinstance(body, Stream):
        if body.length is None:
            parts.append(b"Transfer-Encoding: chunked\r\n")
        else:
            parts.append(b"Content-Length: %d\r\n" % body.length)
    elif body or request.method not in _BODILESS:
        parts.append(b"Content-Length: %d\r\n" % len(body))
    if inject is not None:
        parts.append(inject.lines)
    parts.append(exchange.forwarded)
    if not egress:
        parts.append(exchange.id_line)
    if exchange.traceparent is not None:
        trace, flags = exchange.traceparent
        span = exchange.span
        parent = ids.span_id() if span is None else span.current
        parts.append(b"traceparent: 00-%b-%b-%b\r\n" % (trace, parent, flags))
    if exchange.attempts > 1:
        parts.append(b"X-Sidecar-Retry: %d\r\n" % (exchange.attempts - 1))
    if not upgrade:
        parts.append(b"\r\n" if egress else END)
    else:
        parts.append(b"Connection: Upgrade\r\n\r\n" if egress else VIA + b"Connection: Upgrade\r\n\r\n")
    return b"".join(parts)


def _lines(request: Request, inject: Injection | None) -> list[bytes]:
    """The request line, and the lines that are forwarded."""
    target = request.target
    dropped: frozenset[bytes] = frozenset()
    upgrade = request.upgrade
    plain = request.plain
    if inject is not None:
        target = inject.target(target)
        if inject.fields:
            dropped, plain = inject.fields, None
    parts = [b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (request.method.encode(), target, request.host)]
    if plain is not None:
        parts.append(plain)
    for line in request.headers if plain is None else ():
        kind = line.kind
        if kind is Kind.PLAIN:
            parts.append(line.wire)
        elif kind is Kind.CONNECTION:
            dropped |= line.nominates
        elif kind is Kind.UPGRADE and upgrade:
            parts.append(line.wire)
    if dropped:
        parts = parts[:1] + [
            line.wire
            for line in request.headers
            if (line.kind is Kind.PLAIN and line.name not in dropped)
            or (line.kind is Kind.UPGRADE and upgrade)
        ]
    return parts
