from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.ranges import Part, part, select
from sidecar.headers import Line

NOW = 784_111_777.0
BODY = b"0123456789A"


@pytest.mark.parametrize(
    ("value", "content", "content_range"),
    [
        (b"bytes=0-1", b"01", b"bytes 0-1/11"),
        (b"bytes=1-", b"123456789A", b"bytes 1-10/11"),
        (b"bytes=-1", b"A", b"bytes 10-10/11"),
        (b"bytes=-99", BODY, b"bytes 0-10/11"),
        (b"bytes=0-99", BODY, b"bytes 0-10/11"),
        (b"bytes=10-10", b"A", b"bytes 10-10/11"),
        (b"BYTES=0-0", b"0", b"bytes 0-0/11"),
        (b"bytes= 0-1 ", b"01", b"bytes 0-1/11"),
        (b"bytes=0-" + b"9" * 9999, BODY, b"bytes 0-10/11"),
    ],
)
def test_one_range(value: bytes, content: bytes, content_range: bytes) -> None:
    """RFC 9110, 14.1.2 and 14.4: the bytes from one to another, from one on, or the last."""
    found = part(value, len(BODY))
    assert found is not None
    assert (found.status, BODY[found.start : found.stop], found.content_range) == (
        206,
        content,
        content_range,
    )


@pytest.mark.parametrize("value", [b"bytes=11-", b"bytes=11-20", b"bytes=-0", b"bytes=" + b"9" * 9999 + b"-"])
def test_unsatisfiable(value: bytes) -> None:
    """RFC 9110, 15.5.17: nothing of it is there."""
    assert part(value, len(BODY)) == Part(416, 0, 0, b"bytes */11")


@pytest.mark.parametrize(
    "value",
    [
        b"bytes=0-1,3-4",
        b"bytes=",
        b"bytes=-",
        b"bytes=2-1",
        b"bytes=a-b",
        b"items=0-1",
        b"0-1",
        b"",
        b"bytes=--1",
    ],
)
def test_the_whole(value: bytes) -> None:
    """RFC 9110, 14.2: what is malformed, of another unit or several ranges is answered with the whole."""
    assert part(value, len(BODY)) is None


def test_nothing_of_nothing() -> None:
    """RFC 9110, 14.1.1: an empty representation satisfies no range."""
    assert part(b"bytes=0-", 0) == Part(416, 0, 0, b"bytes */0")


DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"


@pytest.mark.parametrize(
    ("condition", "stored", "partial"),
    [
        ('"a"', [("ETag", '"a"')], True),
        ('"b"', [("ETag", '"a"')], False),
        ('W/"a"', [("ETag", 'W/"a"')], False),
        ('"a"', [], False),
        (EARLIER, [("Last-Modified", EARLIER), ("Date", DATE)], True),
        (DATE, [("Last-Modified", EARLIER), ("Date", DATE)], False),
        (DATE, [("Last-Modified", DATE), ("Date", DATE)], False),
        (EARLIER, [("Last-Modified", EARLIER)], False),
        (EARLIER, [("Last-Modified", EARLIER), ("Date", "foo")], False),
    ],
)
def test_if_range(condition: str, stored: list[tuple[str, str]], partial: bool) -> None:
    """RFC 9110, 13.1.5: a strong tag, or a date that is a strong validator, and exactly that one."""
    request = [Line(b"Range", b"bytes=0-1"), Line(b"If-Range", condition.encode())]
    held = [Line(name.encode(), value.encode()) for name, value in stored]
    assert (select(request, held, 11, NOW) is not None) is partial


def test_select() -> None:
    """One Range line asks for a part, none and several for the whole."""
    line = Line(b"Range", b"bytes=0-1")
    assert select([line], [], 11, NOW) == Part(206, 0, 2, b"bytes 0-1/11")
    assert select([], [], 11, NOW) is None
    assert select([line, line], [], 11, NOW) is None


@given(st.binary(max_size=30), st.integers(0, 50))
def test_parts_lie_within(value: bytes, length: int) -> None:
    """No Range, however odd, points outside of what is stored."""
    found = part(b"bytes=" + value, length)
    assert found is None or (0 <= found.start <= found.stop <= length)
