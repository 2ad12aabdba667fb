"""Conditional requests: a client's conditions on a stored response, and ours on the origin.

Facts. Conditions are looked at in the order of RFC 9110, 13.2.2, and only where the answer without
them would be a 200 (13.2.1; RFC 9111, 4.3.2). `If-None-Match` compares weakly, `If-Match` strongly
(RFC 9110, 8.8.3.2). `If-Match` and `If-Unmodified-Since` guard what only the origin knows: a cache
that finds them true can go on, one that finds them false asks the origin (13.1.1, 13.1.4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final

from sidecar.decisions.cache_dates import cache_date

if TYPE_CHECKING:
    from sidecar.headers import Line

CONDITIONS: Final = frozenset(
    {b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range", b"range"}
)
"""Fields of a client's request that our own validation leaves out: it asks for the whole (RFC 9111, 4.3)."""
_BODY_FIELDS: Final = frozenset(
    {b"content-length", b"content-type", b"content-encoding", b"content-language", b"content-range"}
)
_TAG: Final = re.compile(rb'(?:[Ww]/)?"[^"]*"|[^,\s]+')


class Condition(Enum):
    """What the conditions of a request make of the stored response."""

    ANSWER = "answer"
    """Answer with it."""
    NOT_MODIFIED = "not-modified"
    """Answer 304."""
    ASK_ORIGIN = "ask-origin"
    """Forward the request as it is."""


def evaluate(
    request: Iterable[Line],
    stored: Sequence[Line],
    *,
    status: int = 200,
    method: str = "GET",
    received: float,
    now: float,
) -> Condition:
    """The conditions in `request` on a stored response that may be used as it is.

    `received` (Unix seconds): when it was stored, for want of any date in it; `now`: Unix seconds.
    """
    if status != 200 or method not in {"GET", "HEAD", "QUERY"}:
        return Condition.ANSWER
    conditions: dict[bytes, list[bytes]] = {}
    for line in request:
        if line.name in CONDITIONS:
            conditions.setdefault(line.name, []).append(line.value)
    if not conditions:
        return Condition.ANSWER
    etag = _first(stored, b"etag")
    tags = conditions.get(b"if-match")
    if tags is not None:
        if not _any_matches(tags, etag, strong=True):
            return Condition.ASK_ORIGIN
    elif b"if-unmodified-since" in conditions:
        limit = _date(conditions[b"if-unmodified-since"], now)
        if limit is not None and _changed(stored, received, now) > limit:
            return Condition.ASK_ORIGIN
    tags = conditions.get(b"if-none-match")
    if tags is not None:
        return Condition.NOT_MODIFIED if _any_matches(tags, etag, strong=False) else Condition.ANSWER
    if b"if-modified-since" in conditions:
        values = conditions[b"if-modified-since"]
        if len(values) == 1 and values[0] == _first(stored, b"last-modified"):
            return Condition.NOT_MODIFIED
        since = _date(values, now)
        if since is not None and _changed(stored, received, now) <= since:
            return Condition.NOT_MODIFIED
    return Condition.ANSWER


def validators(stored: Iterable[Line]) -> list[tuple[bytes, bytes]]:
    """Names and values to put on the request that validates a stored response (RFC 9111, 4.3.1).

    They take the place of the client's `CONDITIONS`. Empty where there is nothing to ask with.
    """
    lines = list(stored)
    conditions: list[tuple[bytes, bytes]] = []
    etag = _first(lines, b"etag")
    if etag:
        conditions.append((b"If-None-Match", etag))
    modified = _first(lines, b"last-modified")
    if modified:
        conditions.append((b"If-Modified-Since", modified))
    return conditions


def not_modified_headers(stored: Iterable[Line]) -> list[Line]:
    """The lines of a 304 made from a stored response: without those of a body (RFC 9110, 15.4.5)."""
    return [line for line in stored if line.name not in _BODY_FIELDS]


def is_strong(etag: bytes) -> bool:
    """Whether an entity tag names the bytes, not just the meaning (RFC 9110, 8.8.1)."""
    return etag[:1] == b'"'


def opaque(etag: bytes) -> bytes:
    """The tag without its weakness, for weak comparison (RFC 9110, 8.8.3.2)."""
    return etag[2:] if etag[:2] in {b"W/", b"w/"} else etag


def _any_matches(values: Sequence[bytes], etag: bytes | None, *, strong: bool) -> bool:
    for value in values:
        if value.strip(b" \t") == b"*":
            return True
        if etag is None:
            continue
        for tag in _TAG.findall(value):
            if strong:
                if tag == etag and is_strong(tag):
                    return True
            elif opaque(tag) == opaque(etag):
                return True
    return False


def _date(values: Sequence[bytes], now: float) -> float | None:
    """Of a field that is not a list: several, or no date, are as if it were not there (13.1.3)."""
    return cache_date(values[0], now) if len(values) == 1 else None


def _changed(stored: Iterable[Line], received: float, now: float) -> float:
    """When it last changed, or the next best: `Date`, else when it was received (RFC 9111, 4.3.2)."""
    dates: dict[bytes, bytes] = {}
    for line in stored:
        if line.name in {b"last-modified", b"date"}:
            dates.setdefault(line.name, line.value)
    for name in (b"last-modified", b"date"):
        date = cache_date(dates[name], now) if name in dates else None
        if date is not None:
            return date
    return received


def _first(lines: Iterable[Line], name: bytes) -> bytes | None:
    for line in lines:
        if line.name == name:
            return line.value
    return None
