"""How long providers ask to be left alone."""

from __future__ import annotations

import pytest

from sidecar.decisions.asked_wait import asked_wait, parse_span
from sidecar.decisions.retry_after import LONGEST
from sidecar.headers import Line

SPANS: list[tuple[bytes, float | None]] = [
    (b"6m0s", 360.0),
    (b"1s", 1.0),
    (b"250ms", 0.25),
    (b"1h2m3.5s", 3723.5),
    (b"1d", 86400.0),
    (b"20us", 20e-6),
    (b"12", 12.0),
    (b" 0.5 ", 0.5),
    (b"999999999999d", LONGEST),
    (b"", None),
    (b"soon", None),
    (b"6m 0s", None),
    (b"-1s", None),
    (b"1s!", None),
]


@pytest.mark.parametrize(("value", "seconds"), SPANS)
def test_spans(value: bytes, seconds: float | None) -> None:
    """Spans as Go writes them, or plain seconds; anything else means nothing."""
    assert parse_span(value) == (None if seconds is None else pytest.approx(seconds))


WAITS: list[tuple[list[tuple[bytes, bytes]], float | None]] = [
    ([], None),
    ([(b"Retry-After", b"7")], 7.0),
    ([(b"Retry-After", b"Thu, 01 Jan 1970 00:01:40 GMT")], 40.0),
    ([(b"Retry-After", b"1"), (b"Retry-After-Ms", b"1500")], 1.5),
    ([(b"Retry-After-Ms", b"soon"), (b"Retry-After", b"3")], 3.0),
    ([(b"X-RateLimit-Reset-Requests", b"6m0s"), (b"X-RateLimit-Remaining-Requests", b"0")], 360.0),
    ([(b"X-RateLimit-Reset-Requests", b"6m0s"), (b"X-RateLimit-Remaining-Requests", b"4")], None),
    (
        [
            (b"X-RateLimit-Reset-Requests", b"1s"),
            (b"X-RateLimit-Remaining-Requests", b"0"),
            (b"X-RateLimit-Reset-Tokens", b"2s"),
            (b"X-RateLimit-Remaining-Tokens", b"0"),
        ],
        2.0,
    ),
    (
        [
            (b"X-RateLimit-Reset-Requests", b"6m0s"),
            (b"X-RateLimit-Remaining-Requests", b"0"),
            (b"Retry-After", b"2"),
        ],
        2.0,
    ),
    ([(b"Retry-After", b"when it suits")], None),
]


@pytest.mark.parametrize(("pairs", "seconds"), WAITS)
def test_waits(pairs: list[tuple[bytes, bytes]], seconds: float | None) -> None:
    """The most exact statement counts, and a reset only where nothing remains."""
    assert asked_wait([Line(*pair) for pair in pairs], 60.0) == seconds
