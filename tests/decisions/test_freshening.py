from __future__ import annotations

import pytest

from sidecar.decisions.freshening import freshen, freshen_by_head, selects
from sidecar.headers import Line


def lines(*fields: tuple[str, str]) -> list[Line]:
    return [Line(name.encode(), value.encode()) for name, value in fields]


def pairs(found: list[Line] | None) -> list[tuple[str, str]]:
    assert found is not None
    return [(line.name.decode(), line.value.decode()) for line in found]


@pytest.mark.parametrize(
    ("stored", "answer", "selected"),
    [
        ([("ETag", '"a"')], [("ETag", '"a"')], True),
        ([("ETag", '"a"')], [("ETag", '"b"')], False),
        ([("ETag", 'W/"a"')], [("ETag", '"a"')], True),
        ([("ETag", '"a"')], [("ETag", 'W/"a"')], True),
        ([("Last-Modified", "x")], [("ETag", '"a"'), ("Last-Modified", "x")], False),
        ([("ETag", '"a"'), ("Last-Modified", "x")], [("ETag", '"a"'), ("Last-Modified", "y")], True),
        ([("Last-Modified", "x")], [("Last-Modified", "x")], True),
        ([("Last-Modified", "x")], [("Last-Modified", "y")], False),
        ([("ETag", '"a"')], [], True),
        ([], [], True),
    ],
)
def test_selects(stored: list[tuple[str, str]], answer: list[tuple[str, str]], selected: bool) -> None:
    """RFC 9111, 4.3.4: by the tag that the 304 names, else by its date, else it is what we asked about."""
    assert selects(lines(*stored), lines(*answer)) is selected


@pytest.mark.parametrize(
    "name",
    [
        "Test-Header",
        "X-Test-Header",
        "Content-Foo",
        "Cache-Control",
        "Content-Location",
        "Content-Security-Policy",
        "Content-Type",
        "Expires",
        "Set-Cookie",
        "X-Frame-Options",
        "Vary",
        "Date",
    ],
)
def test_updated_fields(name: str) -> None:
    """RFC 9111, 3.2: a field of the 304 takes the place of the stored one."""
    found = freshen(lines(("ETag", '"a"'), (name, "old")), lines(("ETag", '"a"'), (name, "new")))
    assert pairs(found) == [("etag", '"a"'), (name.lower(), "new")]


@pytest.mark.parametrize("name", ["Content-Encoding", "Content-Length", "Content-MD5", "Content-Range"])
def test_fields_of_the_stored_bytes(name: str) -> None:
    """RFC 9111, 3.2: what describes the bytes that are stored stays."""
    found = freshen(lines(("ETag", '"a"'), (name, "old")), lines(("ETag", '"a"'), (name, "new")))
    assert pairs(found) == [("etag", '"a"'), (name.lower(), "old")]


@pytest.mark.parametrize("name", ["Connection", "Keep-Alive", "Proxy-Authenticate", "TE", "Upgrade"])
def test_fields_of_one_hop(name: str) -> None:
    """RFC 9111, 3.1 and 3.2: what is not stored does not arrive by an update."""
    assert pairs(freshen(lines(("A", "1")), lines((name, "x")))) == [("a", "1")]


def test_several_lines_are_replaced_together() -> None:
    """A field of several lines is one field."""
    stored = lines(("Set-Cookie", "a=1"), ("Set-Cookie", "b=1"), ("A", "1"))
    answer = lines(("Set-Cookie", "a=2"), ("Set-Cookie", "c=2"))
    assert pairs(freshen(stored, answer)) == [("a", "1"), ("set-cookie", "a=2"), ("set-cookie", "c=2")]


def test_age_of_the_304_is_there_to_be_read() -> None:
    """RFC 9111, 4.2.3: the age after a validation begins with what the 304 says."""
    assert pairs(freshen(lines(("A", "1")), lines(("Age", "5")))) == [("a", "1"), ("age", "5")]


def test_a_304_of_another_response_updates_nothing() -> None:
    """RFC 9111, 4.3.4: all that it tells of the stored one is when it was validated."""
    stored = lines(("ETag", '"a"'), ("Date", "old"), ("A", "1"))
    answer = lines(("ETag", '"b"'), ("Date", "new"), ("A", "2"), ("Cache-Control", "max-age=9"))
    assert pairs(freshen(stored, answer)) == [("etag", '"a"'), ("a", "1"), ("date", "new")]


@pytest.mark.parametrize(
    ("answer", "updated"),
    [
        ([("A", "2")], [("etag", '"a"'), ("last-modified", "x"), ("content-length", "5"), ("a", "2")]),
        (
            [("ETag", '"a"'), ("Last-Modified", "x"), ("Content-Length", "5"), ("A", "2")],
            [("etag", '"a"'), ("content-length", "5"), ("last-modified", "x"), ("a", "2")],
        ),
        ([("ETag", '"b"'), ("A", "2")], None),
        ([("ETag", 'W/"a"'), ("A", "2")], None),
        ([("Last-Modified", "y"), ("A", "2")], None),
        ([("Content-Length", "6"), ("A", "2")], None),
    ],
)
def test_freshen_by_head(answer: list[tuple[str, str]], updated: list[tuple[str, str]] | None) -> None:
    """RFC 9111, 4.3.5: each validator and length that came has to be the stored one."""
    stored = lines(("ETag", '"a"'), ("Last-Modified", "x"), ("Content-Length", "5"), ("A", "1"))
    found = freshen_by_head(stored, 5, lines(*answer))
    assert found is None if updated is None else pairs(found) == updated
