"""Lines of batch files: what is accepted, and what is said of those that are not."""

from __future__ import annotations

import orjson
import pytest

from sidecar.batch.lines import LONGEST_LINE, Asked, BadLine, Splitter, asked_of, parse

GOOD = b'{"custom_id": "a", "method": "POST", "url": "/x?y=1", "headers": {"X-A": "b"}, "body": {"n": 1}}'


def known(asked: Asked) -> bool:
    if asked.url.startswith("/nowhere"):
        raise BadLine("no route of the policies is for GET /nowhere (`sidecar routes` lists them)")
    return asked.method == "GET"


def line(**members: object) -> bytes:
    return orjson.dumps({"custom_id": "a", "method": "GET", "url": "/x", **members})


BAD = [
    (b"{", "not JSON"),
    (b'{"custom_id": "a", "method": "GET" "url": "/x"}', "not JSON"),
    (b"{'custom_id': 'a'}", "not JSON"),
    (b'{"custom_id": "a", "method": "GET", "url": "/x",}', "not JSON"),
    (b'{"custom_id": "a", "method": "GET", "url": NaN}', "not JSON"),
    (b"GET /x", "write for example"),
    (b'[{"custom_id": "a"},', "one object a line"),
    (b"[1]", "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"custom_id": "\xe9", "method": "GET", "url": "/x"}', "UTF-8"),
    ("{}".encode("utf-16"), "UTF-16"),
    (line(custom_id=""), '"custom_id" is missing'),
    (line(custom_id=7), '"custom_id" is missing or no text'),
    (b'{"method": "GET", "url": "/x"}', '"custom_id" is missing'),
    (line(custom_id="a" * 257), "more than 256 characters"),
    (b'{"custom_id": "a", "url": "/x"}', '"method" is missing'),
    (line(method="get"), "write one of GET"),
    (line(method="CONNECT"), "write one of GET"),
    (line(method=["GET"]), "no text"),
    (b'{"custom_id": "a", "method": "GET"}', '"url" is missing'),
    (line(url="x"), "begin it with /"),
    (line(url="/x y"), "percent-encode"),
    (line(url="/é"), "percent-encode"),
    (line(url="/x#part"), "leave out #"),
    (line(url="ftp://host/x"), "http(s)"),
    (line(url="//host/x"), "http(s)"),
    (line(url="http://user:secret@host/x"), "user name"),
    (line(url="http://host:port/x"), "is no URL"),
    (line(url="/nowhere"), "no route"),
    (line(headers=["a"]), "not an object"),
    (line(headers={"a b": "c"}), "not the name of a header"),
    (line(headers={"A": 1}), "write it in quotes"),
    (line(headers={"A": "b\r\nC: d"}), "cannot have"),
    (line(headers={"A": "\u20ac"}), "cannot have"),
    (line(headers={"Host": "other"}), "leave it out"),
    (line(headers={"Content-Length": "5"}), "leave it out"),
    (line(body={"n": 1}), "has no body"),
    (line(params={}), '"params" is not known'),
    (b'{"custom_id": "a", "method": "POST", "url": "/x", "body": [18446744073709551616]}', "lose digits"),
    (
        b'{"custom_id": "a", "method": "POST", "url": "/x", "body": {"n": -9223372036854775809}}',
        "lose digits",
    ),
    (b'{"custom_id": "a", "method": "POST", "url": "/x", "body": ' + b"9" * 300 + b"}", "lose digits"),
]


@pytest.mark.parametrize(("text", "what"), BAD)
def test_what_is_wrong_is_said_with_the_mend(text: bytes, what: str) -> None:
    """Each malformed line gets a message that names the fault, and in brackets what to write instead."""
    with pytest.raises(BadLine) as raised:
        parse(1, text, known)
    message = str(raised.value)
    assert what in message
    assert message.endswith(")")
    assert "secret" not in message


def test_a_line_keeps_what_it_asks_for() -> None:
    """What is parsed, kept and read back asks for the same."""
    item = parse(1, GOOD, known)
    assert (item.number, item.custom_id, item.repeatable) == (1, "a", False)
    assert asked_of(item) == Asked("POST", "/x?y=1", {"X-A": "b"}, b'{"n":1}')


def test_text_goes_as_it_is_where_it_is_no_json() -> None:
    """A body that is text is JSON, unless the line names another type."""
    text = line(method="POST", body="ab")
    assert asked_of(parse(1, text, known)).body == b'"ab"'
    text = line(method="POST", body="ab", headers={"content-type": "text/plain"})
    assert asked_of(parse(1, text, known)).body == b"ab"


def test_whole_numbers_keep_their_digits() -> None:
    """The largest and the least of 64 bits go as they came, and so does any text of digits."""
    text = '{"n":[18446744073709551615,-9223372036854775808],"id":"123456789012345678901234567890"}'
    members = b'{"custom_id": "a", "method": "POST", "url": "/x", "body": %b}'
    assert asked_of(parse(1, members % text.encode(), known)).body.decode() == text


def test_a_byte_order_mark_is_passed_over() -> None:
    """The first line may begin with one, as files of some editors do."""
    assert parse(1, b"\xef\xbb\xbf" + GOOD, known).custom_id == "a"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_are_cut_whatever_the_pieces(size: int) -> None:
    """Pieces of any size give the same lines with the same numbers, a last one without its break too."""
    data = b"one\n\ntwo\r\nthree"
    splitter = Splitter()
    lines = []
    for start in range(0, len(data), size):
        lines += list(splitter.feed(data[start : start + size]))
    lines += list(splitter.end())
    assert lines == [(1, b"one"), (2, b""), (3, b"two\r"), (4, b"three")]


def test_a_line_too_long_is_not_held() -> None:
    """Of a line above the bound nothing is kept but its number, and those behind it are read."""
    splitter = Splitter()
    piece = b"x" * (1 << 20)
    lines: list[tuple[int, bytes | None]] = []
    for _ in range(LONGEST_LINE // len(piece) * 3):
        lines += list(splitter.feed(piece))
        assert len(splitter._rest) <= LONGEST_LINE + len(piece)
    lines += list(splitter.feed(b"\nnext\n"))
    assert lines == [(1, None), (2, b"next")]
