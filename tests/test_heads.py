"""Heads read with a memory: what is remembered changes no answer."""

from __future__ import annotations

import pytest

from sidecar.headers import REQUEST_KINDS
from sidecar.heads import MOST, RequestHeads

TRACE = b"00-%032x-%016x-01"


def raw(number: int, *more: bytes) -> bytes:
    trace = TRACE % (number, number)
    ids = (b"traceparent: " + trace, b"Accept: */*", b"X-Request-ID: %d" % number)
    return b"\r\n".join((b"Host: a", *ids, *more))


def test_ids_that_differ_are_each_requests_own() -> None:
    """What two requests have in common is read once, their ids each time."""
    heads = RequestHeads(REQUEST_KINDS)
    for number in range(1, 4):
        block = heads.block(raw(number, b"Content-Length: 3"))
        assert block is not None
        assert [(line.name, line.value) for line in block.ours] == [
            (b"traceparent", TRACE % (number, number)),
            (b"x-request-id", b"%d" % number),
        ]
        assert {line.name for line in block.headers} == {
            b"host",
            b"traceparent",
            b"accept",
            b"x-request-id",
            b"content-length",
        }
        assert (block.host, block.length, block.keep_alive) == (b"a", 3, True)
        assert block.plain == b"Accept: */*\r\n"


def test_lines_of_one_name_keep_their_order() -> None:
    """RFC 9110, 5.3: the order of fields of one name matters, and stays."""
    heads = RequestHeads(REQUEST_KINDS)
    for _ in range(2):
        block = heads.block(b"X-Forwarded-For: one\r\nHost: a\r\nX-Forwarded-For:two \t\r\nAccept: b")
        assert block is not None
        assert [line.value for line in block.ours] == [b"one", b"two"]


@pytest.mark.parametrize("value", [b"a\x00b", b"a\x7f", b"a\rb", b"\x0b"])
def test_a_known_name_makes_no_value_valid(value: bytes) -> None:
    """RFC 9110, 5.5: a control character is refused in a line whose name was seen before."""
    heads = RequestHeads(REQUEST_KINDS)
    for _ in range(2):
        assert heads.block(b"Host: a\r\nX-Request-ID: good") is not None
        assert heads.block(b"Host: a\r\nX-Request-ID: " + value) is None


@pytest.mark.parametrize("bad", [b"Host: b", b"Transfer-Encoding: chunked", b"Connection: x-request-id"])
def test_what_is_left_of_a_head_is_judged_with_new_ids_too(bad: bytes) -> None:
    """A head that is llhttp's affair stays so when only its ids are others."""
    heads = RequestHeads(REQUEST_KINDS)
    assert [heads.block(raw(number, bad)) for number in range(1, 4)] == [None] * 3


def test_memories_are_bounded() -> None:
    """Lines that always differ, beside ids that do, are forgotten."""
    heads = RequestHeads(REQUEST_KINDS)
    for number in range(1, 3 * MOST):
        assert heads.block(raw(number, b"Cookie: %d" % number)) is not None
    assert max(len(heads._lines), len(heads._blocks), len(heads._without_ours)) <= MOST
