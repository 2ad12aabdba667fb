"""Answers made from a stored response: whole, a part of it, or "not modified"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.decisions.asked import PLAIN, Asked
from sidecar.decisions.conditional import Condition, evaluate, not_modified_headers
from sidecar.decisions.freshness import age
from sidecar.decisions.ranges import select
from sidecar.decisions.verdict import Verdict
from sidecar.exchange import Response
from sidecar.headers import Kind, Line

if TYPE_CHECKING:
    from sidecar.caching.again import Repeats
    from sidecar.exchange import Request
    from sidecar.stores.entry import Entry


def answer(entry: Entry, request: Request, asked: Asked, now: float, status: bytes) -> Response | None:
    """The answer for `request`; None where only the origin can tell (RFC 9110, 13.1).

    `status` is the `Cache-Status` member, `now` in Unix seconds.
    """
    if asked is PLAIN and request.method != "HEAD":
        return whole(entry, now, status)
    headers = entry.headers
    if asked.preconditions:
        condition = evaluate(
            request.headers,
            headers,
            status=entry.status,
            method=request.method,
            received=entry.lifetime.obtained,
            now=now,
        )
        if condition is Condition.ASK_ORIGIN:
            return None
        if condition is Condition.NOT_MODIFIED:
            return Response(304, [*not_modified_headers(headers), *_ours(entry, now, status)])
    if asked.ranged and entry.status == 200 and request.method == "GET":
        part = select(request.headers, headers, len(entry.body), now)
        if part is not None:
            lines = [*headers, Line(b"Content-Range", part.content_range), *_ours(entry, now, status)]
            return Response(part.status, lines, entry.body[part.start : part.stop])
    if request.method == "HEAD":
        length = Line(b"Content-Length", b"%d" % len(entry.body))
        lines = [*headers, length, *_ours(entry, now, status)]
        return _judged(Response(entry.status, lines, reason=entry.reason), entry)
    return whole(entry, now, status)


class Repeatable(Response):
    """All of a fresh stored response, for a request that asked nothing of a cache: the next one that is just
    like it gets the same, from `source`, as long as that says so.
    """

    __slots__ = ("source",)

    source: Repeats


def repeatable(entry: Entry, now: float, status: bytes, source: Repeats) -> Repeatable:
    """As `whole`, of an entry whose verdict is ok."""
    response = Repeatable(
        entry.status, entry.headers, entry.body, reason=entry.reason, plain=_plain(entry, now, status)
    )
    response.source = source
    return response


def whole(entry: Entry, now: float, status: bytes) -> Response:
    """All of it. The lines that differ each time are written, not made into objects."""
    plain = _plain(entry, now, status)
    response = Response(entry.status, entry.headers, entry.body, reason=entry.reason, plain=plain)
    return response if entry.verdict == "ok" else _judged(response, entry)


def _plain(entry: Entry, now: float, status: bytes) -> bytes:
    plain = entry.plain
    if plain is None:
        plain = entry.plain = b"".join([line.wire for line in entry.headers if line.kind is Kind.PLAIN])
    return b"%bAge: %d\r\nCache-Status: %b\r\n" % (plain, age(entry.lifetime, now), status)


def _judged(response: Response, entry: Entry) -> Response:
    """An origin may have its errors stored: they are errors still."""
    response.verdict = Verdict(entry.verdict)
    return response


def _ours(entry: Entry, now: float, status: bytes) -> tuple[Line, Line]:
    return Line(b"Age", b"%d" % age(entry.lifetime, now)), Line(b"Cache-Status", status)


def marked(response: Response, status: bytes) -> Response:
    """`response`, which comes from the origin, with our member of `Cache-Status`."""
    before = [line.value for line in response.headers if line.name == b"cache-status"]
    line = Line(b"Cache-Status", b", ".join([*before, status]))
    if before:
        response.headers = [*(kept for kept in response.headers if kept.name != b"cache-status"), line]
        response.plain = None
    else:
        response.headers = [*response.headers, line]
        if response.plain is not None:
            response.plain += line.wire
    return response
