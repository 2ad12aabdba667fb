"""`Retry-After`: how long the upstream asks to be left alone.

Facts (RFC 9110, 10.2.3): the value is delay-seconds or an HTTP-date. A recipient of an HTTP-date
accepts three formats (5.6.7): IMF-fixdate, the obsolete RFC 850 date with a two-digit year, which
means the past when it looks more than 50 years ahead, and the output of C's asctime. All are UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

LONGEST: Final = float(2**31)
"""Seconds; what is longer counts as this (RFC 9111, 1.2.2, on values too large)."""

# A minus sign and a fraction are outside the grammar. Both are seen, and both are clear.
_SECONDS: Final = re.compile(rb"(-?)(\d+)(\.\d*)?\Z")

_MONTHS: Final = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_MONTH: Final = rb"(?P<month>%b)" % b"|".join(_MONTHS)
_TIME: Final = rb"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>[0-5]\d|60)"
_DAY: Final = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY: Final = rb"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_FORMATS: Final = (
    re.compile(rb"%b, (?P<day>\d\d) %b (?P<year>\d{4}) %b GMT\Z" % (_DAY, _MONTH, _TIME)),
    re.compile(rb"%b, (?P<day>\d\d)-%b-(?P<year>\d\d) %b GMT\Z" % (_LONG_DAY, _MONTH, _TIME)),
    re.compile(rb"%b %b (?P<day>[ \d]\d) %b (?P<year>\d{4})\Z" % (_DAY, _MONTH, _TIME)),
)


def parse_retry_after(value: bytes, wall: float) -> float | None:
    """Seconds from `wall` (Unix seconds) on, zero or more; None when the value means nothing."""
    value = value.strip(b" \t")
    seconds = _SECONDS.match(value)
    if seconds is not None:
        minus, whole, fraction = seconds.groups(b"")
        if minus:
            return 0.0
        if len(whole.lstrip(b"0")) > len(b"2147483648"):
            return LONGEST
        return min(float(whole + fraction), LONGEST)
    date = parse_http_date(value, wall)
    if date is None:
        return None
    return min(max(date - wall, 0.0), LONGEST)


def parse_http_date(value: bytes, wall: float) -> float | None:
    """Unix seconds of an HTTP-date in any of its three formats, else None.

    `wall` (Unix seconds) resolves a two-digit year.
    """
    parts = next(filter(None, (pattern.match(value) for pattern in _FORMATS)), None)
    if parts is None:
        return None
    month = _MONTHS.index(parts["month"]) + 1
    # datetime knows no leap second, which the grammar allows: the first of the next minute.
    leap = parts["second"] == b"60"
    second = 59 if leap else int(parts["second"])
    try:
        year = int(parts["year"]) if len(parts["year"]) == 4 else _full_year(int(parts["year"]), wall)
        day, hour, minute = int(parts["day"]), int(parts["hour"]), int(parts["minute"])
        date = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return date.timestamp() + leap


def _full_year(two_digits: int, wall: float) -> int:
    """The latest year with these last digits that is at most 50 years ahead of `wall`."""
    latest = datetime.fromtimestamp(wall, UTC).year + 50
    return latest - (latest - two_digits) % 100
