"""A part of a whole stored response (RFC 9110, 14).

One byte range is answered with 206, one that lies outside with 416. Several ranges, another unit or
a `Range` that is malformed are answered with the whole, which a server always may (14.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.decisions.cache_dates import cache_date
from sidecar.decisions.conditional import is_strong

if TYPE_CHECKING:
    from sidecar.headers import Line

_ONE: Final = re.compile(rb"bytes=[ \t]*(\d*)-(\d*)[ \t]*\Z", re.IGNORECASE)
_MOST_DIGITS: Final = 18
STRONG_AFTER: Final = 1.0
"""Seconds that `Last-Modified` has to lie before `Date` to be a strong validator (RFC 9110, 8.8.2.2)."""


class Part(NamedTuple):
    """What to answer: 206 with `body[start:stop]`, or 416 with nothing of it."""

    status: int
    start: int
    stop: int
    content_range: bytes
    """Value of `Content-Range` (RFC 9110, 14.4)."""


def select(request: Iterable[Line], stored: Iterable[Line], length: int, now: float) -> Part | None:
    """The part of a stored 200 that a GET asks for; None for the whole.

    `length`: bytes of the stored content. `now`: Unix seconds, to resolve two-digit years.
    """
    wanted: bytes | None = None
    condition: bytes | None = None
    for line in request:
        if line.name == b"range":
            if wanted is not None:
                return None
            wanted = line.value
        elif line.name == b"if-range":
            condition = line.value
    if wanted is None or (condition is not None and not _unchanged(condition, stored, now)):
        return None
    return part(wanted, length)


def part(value: bytes, length: int) -> Part | None:
    """The part of `length` bytes that a `Range` value names; None for the whole."""
    found = _ONE.match(value)
    if found is None:
        return None
    first, last = (_bounded(digits) for digits in found.groups())
    if first is None and last is None:
        return None
    if first is None:
        start, stop = max(0, length - (last or 0)), length
    else:
        if last is not None and last < first:
            return None
        start, stop = first, length if last is None else min(last + 1, length)
    if start >= stop:
        return Part(416, 0, 0, b"bytes */%d" % length)
    return Part(206, start, stop, b"bytes %d-%d/%d" % (start, stop - 1, length))


def _bounded(digits: bytes) -> int | None:
    if not digits:
        return None
    return int(digits) if len(digits.lstrip(b"0")) <= _MOST_DIGITS else 10**_MOST_DIGITS


def _unchanged(condition: bytes, stored: Iterable[Line], now: float) -> bool:
    """`If-Range` holds: by strong comparison of tags, or by the very date (RFC 9110, 13.1.5)."""
    fields: dict[bytes, bytes] = {}
    for line in stored:
        if line.name in {b"etag", b"last-modified", b"date"}:
            fields.setdefault(line.name, line.value)
    if b'"' in condition:
        return is_strong(condition) and fields.get(b"etag") == condition
    modified = fields.get(b"last-modified")
    if modified is None or modified != condition or b"date" not in fields:
        return False
    changed, made = cache_date(modified, now), cache_date(fields[b"date"], now)
    return changed is not None and made is not None and made - changed >= STRONG_AFTER
