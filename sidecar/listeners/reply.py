"""The answer, as bytes: status line, header lines of the next hop, framing (RFC 9112, 4 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from sidecar.exchange import Response, Stream
from sidecar.headers import Kind, Line

STATUS_LINES: Final = {
    (status.value, reason): b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
    for reason in (status.phrase.encode(), b"")
}
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
SMALL: Final = 4096
CONTENT_LENGTHS: Final = tuple(b"Content-Length: %d\r\n" % length for length in range(SMALL))
"""Of small bodies: to look it up is a third of what it costs to make."""
LAST_CHUNK: Final = b"0\r\n\r\n"


def status_line(status: int, reason: bytes) -> bytes:
    return STATUS_LINES.get((status, reason)) or b"HTTP/1.1 %d %b\r\n" % (status, reason)


def has_no_body(method: str, status: int) -> bool:
    """RFC 9112, 6.3: what can have no body, whatever its header says."""
    return (
        method == "HEAD"
        or status in (204, 304)
        or status < 200
        or (method == "CONNECT" and 200 <= status < 300)
    )


def is_chunked(response: Response, *, method: str, http10: bool) -> bool:
    """The body goes out in chunks: its size is not known, and the client speaks HTTP/1.1."""
    body = response.body
    return (
        isinstance(body, Stream)
        and body.length is None
        and not http10
        and not has_no_body(method, response.status)
    )


def ends_with_connection(response: Response, *, http10: bool) -> bool:
    """The body is over when the connection is: its size is not known, and the client knows no chunks."""
    return http10 and isinstance(response.body, Stream) and response.body.length is None


def head(response: Response, *, method: str, http10: bool, keep_alive: bool, ours: bytes) -> bytes:
    """The head of `response` for this client; `ours`: lines that the sidecar adds."""
    status = response.status
    parts = [status_line(status, response.reason)]
    bodiless = has_no_body(method, status)
    if response.plain is not None and not bodiless and status != 426:
        parts.append(response.plain)
        headers: Sequence[Line] = ()
    else:
        headers = response.headers
    dropped: frozenset[bytes] = frozenset()
    for line in headers:
        kind = line.kind
        if kind is Kind.PLAIN:
            parts.append(line.wire)
        elif kind is Kind.CONNECTION:
            dropped |= line.nominates
        elif (
            kind is Kind.FRAMING and bodiless and status not in (204, 101) and line.name == b"content-length"
        ):
            parts.append(line.wire)  # of a HEAD or a 304: the length a GET would have had
        elif kind is Kind.UPGRADE and status in (101, 426):
            parts.append(line.wire)
            if status == 426:  # RFC 9110, 7.8: `Upgrade` never goes without
                parts.append(b"Connection: Upgrade\r\n")
    if dropped:
        kept = [line for line in response.headers if line.kind is Kind.PLAIN and line.name in dropped]
        parts = [part for part in parts if not any(part is line.wire for line in kept)]
    if not bodiless:
        body = response.body
        if not isinstance(body, Stream):
            parts.append(b"Content-Length: %d\r\n" % len(body))
        elif body.length is not None:
            parts.append(b"Content-Length: %d\r\n" % body.length)
        elif not http10:
            parts.append(b"Transfer-Encoding: chunked\r\n")
    parts.append(ours)
    if status == 101:
        parts.append(b"Connection: Upgrade\r\n\r\n")
    elif bodiless and method == "CONNECT":
        parts.append(b"\r\n")  # what follows is the tunnel: there is nothing to say of the connection
    elif not keep_alive:
        parts.append(b"Connection: close\r\n\r\n")
    elif http10:
        parts.append(b"Connection: keep-alive\r\n\r\n")
    else:
        parts.append(b"\r\n")
    return b"".join(parts)


def opening(response: Response, size: int) -> bytes | None:
    """What `whole` writes before `ours`, for a body of `size` bytes; None where it is not as simple."""
    plain, status = response.plain, response.status
    if plain is None or status < 200 or status in (204, 304, 426):
        return None
    return b"%b%bContent-Length: %d\r\n" % (status_line(status, response.reason), plain, size)


def whole(response: Response, body: bytes, ours: bytes) -> bytes:
    """Head and body at once, for the usual case: HTTP/1.1, not a HEAD, the connection stays open."""
    plain = response.plain
    status = response.status
    if plain is None or status < 200 or status in (204, 304, 426):
        return head(response, method="GET", http10=False, keep_alive=True, ours=ours) + body
    line = STATUS_LINES.get((status, response.reason)) or status_line(status, response.reason)
    size = len(body)
    length = CONTENT_LENGTHS[size] if size < SMALL else b"Content-Length: %d\r\n" % size
    return b"".join((line, plain, length, ours, b"\r\n", body))


def informational(status: int, response_headers: Response) -> bytes:
    """An interim response (RFC 9110, 15.2), passed on."""
    lines = [line.wire for line in response_headers.headers if line.kind is Kind.PLAIN]
    return b"".join([status_line(status, b""), *lines, b"\r\n"])
