from __future__ import annotations

from email.utils import formatdate

import pytest

from sidecar.decisions.conditional import (
    CONDITIONS,
    Condition,
    evaluate,
    is_strong,
    not_modified_headers,
    validators,
)
from sidecar.headers import Line

NOW = 1_700_000_000.0
ANSWER, NOT_MODIFIED, ASK = Condition.ANSWER, Condition.NOT_MODIFIED, Condition.ASK_ORIGIN


def date(seconds: float) -> str:
    return formatdate(NOW + seconds, usegmt=True)


def lines(*fields: tuple[str, str]) -> list[Line]:
    return [Line(name.encode(), value.encode("latin-1")) for name, value in fields]


def judged(request: list[tuple[str, str]], stored: list[tuple[str, str]], status: int = 200) -> Condition:
    return evaluate(lines(*request), lines(*stored), status=status, received=NOW, now=NOW)


@pytest.mark.parametrize(
    ("condition", "etag", "expected"),
    [
        ('"abcdef"', '"abcdef"', NOT_MODIFIED),
        ('"abcdef"', '"abcdeg"', ANSWER),
        ('W/"abcdef"', 'W/"abcdef"', NOT_MODIFIED),
        ('W/"abcdef"', '"abcdef"', NOT_MODIFIED),
        ('"abcdef"', 'W/"abcdef"', NOT_MODIFIED),
        ('"abcdef", "1234", "5678"', '"abcdef"', NOT_MODIFIED),
        ('"1234", "abcdef", "5678"', '"abcdef"', NOT_MODIFIED),
        ('"1234","5678",W/"abcdef"', '"abcdef"', NOT_MODIFIED),
        ('"a, b", "c"', '"a, b"', NOT_MODIFIED),
        ('"a, b", "c"', '"b"', ANSWER),
        ('"abcdef\xfc"', '"abcdef\xfc"', NOT_MODIFIED),
        ("abcdef", "abcdef", NOT_MODIFIED),
        ("abcdef", '"abcdef"', ANSWER),
        ("*", '"a"', NOT_MODIFIED),
        ("", '"a"', ANSWER),
    ],
)
def test_if_none_match(condition: str, etag: str, expected: Condition) -> None:
    """RFC 9110, 13.1.2: any of the tags, by weak comparison."""
    assert judged([("If-None-Match", condition)], [("ETag", etag)]) is expected


@pytest.mark.parametrize(("condition", "expected"), [("*", NOT_MODIFIED), ('"a"', ANSWER)])
def test_if_none_match_without_a_tag(condition: str, expected: Condition) -> None:
    """RFC 9110, 13.1.2: `*` matches whatever there is."""
    assert judged([("If-None-Match", condition)], []) is expected


@pytest.mark.parametrize(
    ("condition", "stored", "expected"),
    [
        (date(-3000), [("Last-Modified", date(-3000))], NOT_MODIFIED),
        (date(-2000), [("Last-Modified", date(-3000))], NOT_MODIFIED),
        (date(-3001), [("Last-Modified", date(-3000))], ANSWER),
        (date(-2000), [("Last-Modified", "foo"), ("Date", date(-2500))], NOT_MODIFIED),
        (date(-2000), [("Date", date(-2000))], NOT_MODIFIED),
        (date(-2000), [("Date", date(-1000))], ANSWER),
        (date(0), [], NOT_MODIFIED),
        (date(-1), [], ANSWER),
        ("foo", [("Last-Modified", date(-3000))], ANSWER),
        (
            "Sunday, 06-Nov-94 08:49:37 GMT",
            [("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")],
            NOT_MODIFIED,
        ),
    ],
)
def test_if_modified_since(condition: str, stored: list[tuple[str, str]], expected: Condition) -> None:
    """RFC 9111, 4.3.2: against Last-Modified, else Date, else when it came; no date is no condition."""
    assert judged([("If-Modified-Since", condition)], stored) is expected


def test_several_dates_are_none() -> None:
    """RFC 9110, 13.1.3: a field that is not one date is ignored."""
    stored = [("Last-Modified", date(-3000))]
    assert judged([("If-Modified-Since", date(-3000)), ("If-Modified-Since", date(0))], stored) is ANSWER


@pytest.mark.parametrize(
    ("request_fields", "expected"),
    [
        ([("If-None-Match", '"a"'), ("If-Modified-Since", date(-9999))], NOT_MODIFIED),
        ([("If-None-Match", '"b"'), ("If-Modified-Since", date(0))], ANSWER),
        ([("If-Match", '"a"'), ("If-None-Match", '"a"')], NOT_MODIFIED),
        ([("If-Match", '"b"'), ("If-None-Match", '"a"')], ASK),
        ([("If-Match", '"a"'), ("If-Unmodified-Since", date(-9999))], ANSWER),
        ([("If-Match", '"a"')], ANSWER),
        ([("If-Match", "*")], ANSWER),
        ([("If-Match", 'W/"a"')], ASK),
        ([("If-Unmodified-Since", date(-3000))], ANSWER),
        ([("If-Unmodified-Since", date(-3001))], ASK),
        ([("If-Unmodified-Since", "foo")], ANSWER),
        ([("Range", "bytes=0-1"), ("If-Range", '"b"')], ANSWER),
        ([], ANSWER),
    ],
)
def test_precedence(request_fields: list[tuple[str, str]], expected: Condition) -> None:
    """RFC 9110, 13.2.2, in its order; a precondition that fails here is the origin's to judge."""
    stored = [("ETag", '"a"'), ("Last-Modified", date(-3000)), ("Date", date(0))]
    assert judged(request_fields, stored) is expected


def test_weak_tags_never_match_strongly() -> None:
    """RFC 9110, 8.8.3.2: If-Match needs both to be strong."""
    assert judged([("If-Match", 'W/"a"')], [("ETag", 'W/"a"')]) is ASK


@pytest.mark.parametrize("status", [203, 301, 404, 500])
def test_other_statuses_have_no_conditions(status: int) -> None:
    """RFC 9110, 13.2.1: where the answer would not be a 200, conditions are ignored."""
    assert judged([("If-None-Match", '"a"')], [("ETag", '"a"')], status) is ANSWER


def test_other_methods_have_no_conditions() -> None:
    """RFC 9111, 4.3.2: a cache does not judge what only the origin can."""
    request, stored = lines(("If-None-Match", "*")), lines(("ETag", '"a"'))
    assert evaluate(request, stored, method="POST", received=NOW, now=NOW) is ANSWER
    assert evaluate(request, stored, method="HEAD", received=NOW, now=NOW) is NOT_MODIFIED


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([("ETag", '"a"')], [(b"If-None-Match", b'"a"')]),
        ([("ETag", 'W/"a"')], [(b"If-None-Match", b'W/"a"')]),
        ([("Last-Modified", date(-9))], [(b"If-Modified-Since", date(-9).encode())]),
        (
            [("Last-Modified", date(-9)), ("ETag", "a")],
            [(b"If-None-Match", b"a"), (b"If-Modified-Since", date(-9).encode())],
        ),
        ([("ETag", "")], []),
        ([("Date", date(0))], []),
    ],
)
def test_validators(stored: list[tuple[str, str]], expected: list[tuple[bytes, bytes]]) -> None:
    """RFC 9111, 4.3.1: the tag as it came, and the date as it came."""
    assert validators(lines(*stored)) == expected


def test_a_client_s_conditions_are_named() -> None:
    """RFC 9111, 4.3.1: a validation asks for the whole, by our validators alone."""
    assert {b"if-none-match", b"if-modified-since", b"if-range", b"range"} <= CONDITIONS


def test_not_modified_headers() -> None:
    """RFC 9110, 15.4.5: a 304 has the fields that guide caches, and none of a body."""
    kept = ["ETag", "Date", "Cache-Control", "Expires", "Vary", "Content-Location", "Last-Modified", "X-A"]
    dropped = ["Content-Length", "Content-Type", "Content-Encoding", "Content-Language", "Content-Range"]
    found = not_modified_headers(lines(*((name, "x") for name in (*kept, *dropped))))
    assert [line.name for line in found] == [name.lower().encode() for name in kept]


@pytest.mark.parametrize(("etag", "strong"), [(b'"a"', True), (b'W/"a"', False), (b"a", False), (b"", False)])
def test_is_strong(etag: bytes, strong: bool) -> None:
    """RFC 9110, 8.8.3: quoted and not marked weak."""
    assert is_strong(etag) is strong


@pytest.mark.timeout(5)
@pytest.mark.parametrize("unit", [b'"', b" ", b",", b'W/"', b"W", b'" '])
def test_hostile_tags(unit: bytes) -> None:
    """The longest list of tags is read in a time that grows with it, not with its square."""
    request = [Line(b"If-None-Match", unit * (32_768 // len(unit)) + b"x")]
    assert evaluate(request, lines(("ETag", '"a"')), received=NOW, now=NOW) is ANSWER
