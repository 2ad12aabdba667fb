"""What is seen of a body: JSON, the first event, through content codings, within the limit."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.opening import MOST, NOTHING, FirstEvent, JsonBody, Opening, opening
from sidecar.headers import Line


def headers(kind: str | None = "application/json", *codings: str) -> list[Line]:
    lines = [Line(b"Date", b"now")]
    if kind is not None:
        lines.append(Line(b"Content-Type", kind.encode()))
    return lines + [Line(b"Content-Encoding", coding.encode()) for coding in codings]


def seen(lines: Iterable[Line], *chunks: bytes, length: int | None = None) -> tuple[Any, str, int]:
    """The value, the trouble, and how many chunks were wanted; one more than there are: the end too."""
    look = opening(lines, length)
    if isinstance(look, str):
        return NOTHING, look, 0
    for number, chunk in enumerate(chunks, 1):
        if look.feed(chunk):
            return look.value, look.trouble, number
    look.finish(b"".join(chunks))
    return look.value, look.trouble, len(chunks) + 1


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/problem+json",
        "text/json",
        "text/plain",
        None,
    ],
)
def test_json_is_seen(kind: str | None) -> None:
    """By its media type, or by its first byte where that says nothing; in however many pieces."""
    assert seen(headers(kind), b' \r\n{"a"', b": 1}") == ({"a": 1}, "", 3)
    assert seen(headers(kind), b"[1]") == ([1], "", 2)


@pytest.mark.parametrize(
    "kind", ["text/html", "image/png", "application/x-ndjson", "multipart/mixed", "json"]
)
def test_what_is_not_json_is_not_waited_for(kind: str) -> None:
    """Whatever it begins with."""
    assert seen(headers(kind), b'{"a": 1}') == (NOTHING, "", 0)


def test_text_that_begins_like_none_is_let_go() -> None:
    """At its first byte that is not white space, and no word about it."""
    assert seen(headers("text/plain"), b" \n", b"hello", b"more") == (NOTHING, "", 2)


@pytest.mark.parametrize(
    ("body", "trouble"),
    [
        (b"{", "not-json"),
        (b"<html>", "not-json"),
        (b'{"a": NaN}', "not-json"),
        (b'"\xff"', "not-json"),
        (b"", ""),
    ],
)
def test_json_that_is_none(body: bytes, trouble: str) -> None:
    """The trail is told, unless there is no body."""
    assert seen(headers(), body)[:2] == (NOTHING, trouble)
    assert seen(headers(None), body)[:2] == (NOTHING, "")


def test_a_byte_order_mark_is_no_part_of_it() -> None:
    """Some servers put one before their JSON."""
    for kind in ("application/json", None):
        assert seen(headers(kind), b'\xef\xbb\xbf{"a": 1}')[0] == {"a": 1}


def test_the_limit_counts_whole_bodies() -> None:
    """Exactly so many bytes are looked at; one more is too many."""
    fits = b'"' + b"x" * (MOST - 2) + b'"'
    assert seen(headers(), fits)[0] == "x" * (MOST - 2)
    assert seen(headers(), fits, length=MOST)[1] == ""
    assert seen(headers(), fits + b" ") == (NOTHING, "too-large", 1)
    assert seen(headers(), fits, b" ", b"more") == (NOTHING, "too-large", 2)


def test_a_length_that_is_too_large_is_not_waited_for() -> None:
    """Its header says so."""
    assert seen(headers(), length=MOST + 1) == (NOTHING, "too-large", 0)
    assert seen(headers("text/event-stream"), b"data: 1\n\n", length=MOST + 1) == (1, "", 1)


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("gzip", lambda data: gzip.compress(data[:3]) + gzip.compress(data[3:])),
        ("gzip", lambda data: gzip.compress(data) + b"\0\0\0"),
        ("identity", lambda data: data),
    ],
)
def test_codings_are_undone(coding: str, pack: Any) -> None:
    """Gzip in one or several members, deflate with and without its zlib wrapper."""
    packed = pack(b'{"a": 1}')
    assert seen(headers("application/json", coding), packed[:5], packed[5:])[:2] == ({"a": 1}, "")
    assert seen(headers(None, coding), packed)[:2] == ({"a": 1}, "")


@pytest.mark.parametrize("codings", [("br",), ("zstd",), ("gzip, gzip",), ("gzip", "br"), ("compress",)])
def test_other_codings_are_not_waited_for(codings: tuple[str, ...]) -> None:
    """The trail is told."""
    assert seen(headers("application/json", *codings), b"...") == (NOTHING, "unknown-encoding", 0)


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(b'{"a": 1}', mtime=0)[:-9],
        gzip.compress(b'{"a": 1}', mtime=0)[:3],
        b"not gzip",
        gzip.compress(b"1", mtime=0)[:-8] + b"\0" * 8,
    ],
    ids=["no trailer", "no header", "not gzip", "wrong checksum"],
)
def test_what_cannot_be_decoded(packed: bytes) -> None:
    """Cut short, or nothing of the kind: no value, and a word about it."""
    assert seen(headers("application/json", "gzip"), packed)[:2] == (NOTHING, "undecodable")


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_bomb_costs_no_more_than_the_limit(pack: Any) -> None:
    """Kilobytes that unpack to megabytes are too large, and are never unpacked."""
    coding = "gzip" if pack is gzip.compress else "deflate"
    packed = pack(b" " * (32 << 20))
    assert len(packed) < MOST
    tracemalloc.start()
    try:
        assert seen(headers("application/json", coding), packed)[1] == "too-large"
        assert seen(headers("text/event-stream", coding), packed)[1] == "too-large"
        assert tracemalloc.get_traced_memory()[1] < 8 * MOST
    finally:
        tracemalloc.stop()


def test_the_limit_counts_decoded_bytes() -> None:
    """Exactly so many come out, or one more."""
    fits = b'"' + b"x" * (MOST - 2) + b'"'
    assert seen(headers("application/json", "gzip"), gzip.compress(fits))[0] == "x" * (MOST - 2)
    assert seen(headers("application/json", "gzip"), gzip.compress(fits + b" "))[1] == "too-large"


EVENTS = headers("text/event-stream; charset=utf-8")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'data: {"error": 1}\n\n', {"error": 1}),
        (b'data:{"error": 1}\r\n\r\n', {"error": 1}),
        (b"data: 1\r\r", 1),
        (b'event: error\ndata: {"error": 1}\nid: 7\n\ndata: 2\n\n', {"error": 1}),
        (b'data: {"a":\ndata: 1}\n\n', {"a": 1}),
        (b"\xef\xbb\xbfdata: 1\n\n", 1),
        (b": hello\ndata: 1\n\n", 1),
        (b"\n\ndata: 1\n\n", 1),
        (b"data: [DONE]\n\n", NOTHING),
        (b": hello\n\ndata: 1\n\n", NOTHING),
        (b"retry: 3000\n\ndata: 1\n\n", NOTHING),
        (b"data\n\n", NOTHING),
    ],
)
def test_the_first_event(text: bytes, value: Any) -> None:
    """Its data, all lines of it, as JSON; however the lines end, and whatever comes after."""
    assert seen(EVENTS, text) == (value, "", 1)


@given(st.data())
def test_pieces_make_no_difference(data: st.DataObject) -> None:
    """However a stream of events is cut, and it is let go with the piece that ends the first."""
    ending = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    payload = {"a": data.draw(st.text("x\n:", max_size=5))}
    first = ending.join([b": comment", b"event: e", b"data: " + orjson.dumps(payload), b"", b""])
    text = first + b"data: 2" + ending * 2
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    value, trouble, wanted = seen(EVENTS, *pieces)
    assert (value, trouble) == (payload, "")
    assert len(b"".join(pieces[: wanted - 1])) < len(first)


def test_a_stream_that_ends_within_its_first_event() -> None:
    """What there is of it counts."""
    assert seen(EVENTS, b'data: {"error": 1}', b"\n") == ({"error": 1}, "", 3)
    assert seen(EVENTS, b"") == (NOTHING, "", 2)


def test_an_event_that_is_too_large() -> None:
    """Nobody waits for more than the limit."""
    assert seen(EVENTS, b"data: " + b"x" * MOST, b"\n\n") == (NOTHING, "too-large", 1)
    assert seen(EVENTS, *[b":" * 1024] * 100)[2] == 65


def test_packed_events_are_seen_as_they_come() -> None:
    """A coded stream is undone piece by piece."""
    packer = zlib.compressobj(wbits=31)
    first = packer.compress(b"data: 1\n") + packer.flush(zlib.Z_SYNC_FLUSH)
    second = packer.compress(b"\n") + packer.flush(zlib.Z_SYNC_FLUSH)
    third = packer.compress(b"data: 2\n\n") + packer.flush()
    packed = headers("text/event-stream", "gzip")
    assert seen(packed, first, second, third) == (1, "", 2)
    assert seen(packed, b"data: 1\n\n") == (NOTHING, "undecodable", 1)


def test_an_opening_is_one_of_two() -> None:
    """The rest of the code asks no further."""
    assert isinstance(opening(headers(), None), JsonBody)
    assert isinstance(opening(EVENTS, None), FirstEvent)
    with pytest.raises(NotImplementedError):
        Opening().feed(b"")
    with pytest.raises(NotImplementedError):
        Opening().finish(b"")
