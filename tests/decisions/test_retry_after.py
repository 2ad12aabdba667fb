from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.retry_after import LONGEST, parse_http_date, parse_retry_after

WALL = 784111770.0
"""Sun, 06 Nov 1994 08:49:30 GMT: seven seconds before the date that RFC 9110 shows."""


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b"120", 120.0),
        (b" 120\t", 120.0),
        (b"007", 7.0),
        (b"1.5", 1.5),
        (b"-5", 0.0),
        (b"-0.1", 0.0),
        (b"2147483648", LONGEST),
        (b"99999999999", LONGEST),
        (b"9" * 10_000, LONGEST),
        (b"0" * 10_000 + b"12", 12.0),
    ],
)
def test_seconds(value: bytes, seconds: float) -> None:
    """delay-seconds, of any length; less than none is none."""
    assert parse_retry_after(value, WALL) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 7.0),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 7.0),
        (b"Sun Nov  6 08:49:37 1994", 7.0),
        (b"Wed Nov 16 08:49:30 1994", 10 * 86400.0),
        (b"Sun, 06 Nov 1994 08:49:29 GMT", 0.0),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        (b"Sun, 06 Nov 1994 08:49:60 GMT", 30.0),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", LONGEST),
    ],
)
def test_dates(value: bytes, seconds: float) -> None:
    """An HTTP-date in any of the three formats is the time until then; the past is now."""
    assert parse_retry_after(value, WALL) == seconds


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"soon",
        b"+5",
        b"5s",
        b"5,6",
        b"1e3",
        b"1_000",
        b"inf",
        b"nan",
        b"--5",
        b".5",
        b"0x10",
        b"12\n",
        "１２".encode(),
        b"Sun, 06 Nov 1994 08:49:37",
        b"Sun, 06 Nov 1994 08:49:37 CET",
        b"Sun, 06 Nov 1994 08:49:37 +0000",
        b"Sun, 6 Nov 1994 08:49:37 GMT",
        b"Sun, 31 Feb 1995 08:49:37 GMT",
        b"Sun, 06 Nov 1994 24:00:00 GMT",
        b"Sun, 06 Nov 1994 08:49:61 GMT",
        b"Sun, 06 Nov 0000 08:49:37 GMT",
        b"Sun, 06 Non 1994 08:49:37 GMT",
        b"Sunday, 06-Nov-1994 08:49:37 GMT",
        b"Sun Nov 06 08:49:37 1994 GMT",
        b"1994-11-06T08:49:37Z",
    ],
)
def test_garbage(value: bytes) -> None:
    """What is neither number nor HTTP-date says nothing, and raises nothing."""
    assert parse_retry_after(value, WALL) is None


@pytest.mark.parametrize(
    ("digits", "this_year", "year"),
    [
        ("94", 1994, 1994),
        ("44", 1994, 2044),
        ("45", 1994, 1945),
        ("26", 2026, 2026),
        ("76", 2026, 2076),
        ("77", 2026, 1977),
    ],
)
def test_two_digit_years(digits: str, this_year: int, year: int) -> None:
    """A two-digit year more than 50 years ahead is one of the past (RFC 9110, 5.6.7)."""
    wall = datetime(this_year, 6, 1, tzinfo=UTC).timestamp()
    date = parse_http_date(b"Sunday, 06-Nov-%b 08:49:37 GMT" % digits.encode(), wall)
    assert date == datetime(year, 11, 6, 8, 49, 37, tzinfo=UTC).timestamp()


@given(st.integers(0, 2**31), st.integers(0, 2**30))
def test_every_date_comes_back(wall: int, seconds: int) -> None:
    """Whatever date a conforming sender writes is read as the same number of seconds."""
    date = format_datetime(datetime.fromtimestamp(wall + seconds, UTC), usegmt=True)
    assert parse_retry_after(date.encode(), float(wall)) == float(seconds)


@given(st.binary(max_size=40), st.floats(0, 4e9))
def test_any_bytes_are_survived(value: bytes, wall: float) -> None:
    """No upstream can raise an error here, or ask for a negative or unbounded wait."""
    seconds = parse_retry_after(value, wall)
    assert seconds is None or 0.0 <= seconds <= LONGEST
