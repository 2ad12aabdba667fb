"""Replies are cut from the stream right, wherever the pieces end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.stores.resp import Parser, Reply, ReplyError, WireError, command

REPLIES = st.recursive(
    st.one_of(
        st.none(),
        st.integers(-(2**63), 2**63 - 1),
        st.binary(max_size=60),
        st.builds(ReplyError, st.text("ABC xyz", min_size=1, max_size=20)),
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


def written(reply: Reply) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case ReplyError():
            return b"-" + reply.text.encode() + b"\r\n"
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(written(each) for each in reply)


def plain(reply: Reply) -> object:
    match reply:
        case list():
            return [plain(each) for each in reply]
        case ReplyError():
            return ("error", reply.text)
    return reply


@given(st.lists(REPLIES, max_size=5), st.data())
def test_pieces(replies: list[Reply], data: st.DataObject) -> None:
    """However the stream is cut, the replies are the same."""
    stream = b"".join(written(reply) for reply in replies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser = Parser()
    found: list[Reply] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > start:
            found += parser.feed(stream[start:end])
    assert [plain(reply) for reply in found] == [plain(reply) for reply in replies]


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5))
def test_nonsense(pieces: list[bytes]) -> None:
    """Anything but RESP is a WireError or more to come, never another exception."""
    parser = Parser()
    try:
        for piece in pieces:
            parser.feed(piece)
    except WireError:
        pass


@pytest.mark.parametrize(
    "stream",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"$12x\r\n",
        b"$-2\r\n",
        b"$3\r\nabcde\r\n",
        b"$999999999999\r\n",
        b"*-5\r\n",
        b"*1\r\n" * 20,
        b":\r\n",
        b"+" + b"x" * 70_000,
    ],
)
def test_what_ends_a_connection(stream: bytes) -> None:
    """Nothing can be believed after one of these."""
    with pytest.raises(WireError):
        Parser().feed(stream)


def test_a_large_value_in_many_pieces_is_joined_once() -> None:
    """16 MiB in pieces of 16 KiB take no more than they must."""
    value = bytes(16 * 1024 * 1024)
    stream = memoryview(written(value))
    parser = Parser()
    found: list[Reply] = []
    for at in range(0, len(stream), 16 * 1024):
        found += parser.feed(bytes(stream[at : at + 16 * 1024]))
    assert found == [value]


def test_command() -> None:
    """An array of bulk strings, whatever is in them."""
    assert command((b"SET", b"k", b"a\r\nb")) == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n"


def test_an_error_names_its_kind() -> None:
    """The first word."""
    (error,) = Parser().feed(b"-OOM command not allowed\r\n")
    assert isinstance(error, ReplyError)
    assert (error.kind, error.text) == ("OOM", "OOM command not allowed")
