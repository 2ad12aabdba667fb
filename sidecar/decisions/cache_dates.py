"""Dates in the fields that a cache reads.

RFC 9110, 5.6.7 makes HTTP-date case-sensitive; RFC 9111, 4.2 relaxes this for caches. Nothing else
is relaxed: another zone, a missing comma, a one-digit hour make the date invalid, and an invalid
`Expires` is in the past (RFC 9111, 5.3).
"""

from __future__ import annotations

from sidecar.decisions.retry_after import parse_http_date


def cache_date(value: bytes, wall: float) -> float | None:
    """Unix seconds of an HTTP-date in any of its three formats and in any case, else None.

    `wall` (Unix seconds) resolves a two-digit year.
    """
    date = parse_http_date(value, wall)
    if date is None:
        date = parse_http_date(value.strip(b" \t").title().replace(b"Gmt", b"GMT"), wall)
    return date
