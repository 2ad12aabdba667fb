from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from sidecar.headers import REQUEST_KINDS, RESPONSE_KINDS, Kind, Line, Lines, every, first, tokens

HOP_BY_HOP = [
    (b"Connection", Kind.CONNECTION),
    (b"Keep-Alive", Kind.HOP),
    (b"Proxy-Connection", Kind.HOP),
    (b"Trailer", Kind.HOP),
    (b"Upgrade", Kind.UPGRADE),
    (b"Transfer-Encoding", Kind.FRAMING),
    (b"Content-Length", Kind.FRAMING),
]

REQUEST = [
    *HOP_BY_HOP,
    (b"TE", Kind.HOP),
    (b"Proxy-Authorization", Kind.HOP),
    (b"HTTP2-Settings", Kind.HOP),
    (b"Expect", Kind.EXPECT),
    (b"Host", Kind.HOST),
    (b"X-Forwarded-For", Kind.OURS),
    (b"X-Forwarded-Proto", Kind.OURS),
    (b"X-Forwarded-Host", Kind.OURS),
    (b"Forwarded", Kind.OURS),
    (b"X-Request-ID", Kind.OURS),
    (b"Traceparent", Kind.OURS),
    (b"Accept", Kind.PLAIN),
    (b"Authorization", Kind.PLAIN),
    (b"Cookie", Kind.PLAIN),
    (b"Via", Kind.PLAIN),
]

RESPONSE = [
    *HOP_BY_HOP,
    (b"Proxy-Authenticate", Kind.HOP),
    (b"X-Request-ID", Kind.OURS),
    (b"Set-Cookie", Kind.PLAIN),
    (b"Cache-Control", Kind.PLAIN),
    (b"WWW-Authenticate", Kind.PLAIN),
    (b"Host", Kind.PLAIN),
]


@pytest.mark.parametrize("spell", [bytes.lower, bytes.upper, bytes])
@pytest.mark.parametrize(
    ("kinds", "name", "kind"),
    [(REQUEST_KINDS, *row) for row in REQUEST] + [(RESPONSE_KINDS, *row) for row in RESPONSE],
)
def test_kinds(kinds: Mapping[bytes, Kind], name: bytes, kind: Kind, spell: Callable[[bytes], bytes]) -> None:
    """What a proxy does with a field depends on the direction, not on how its name is spelled."""
    assert Line(spell(name), b"x", kinds).kind is kind


def test_the_spelling_that_came_in_goes_out() -> None:
    """Names are compared in lower case and forwarded as they were."""
    line = Line(b"X-cUSTOM", b"Some Value")
    assert (line.name, line.value, line.wire) == (b"x-custom", b"Some Value", b"X-cUSTOM: Some Value\r\n")


def test_white_space_after_a_value_is_no_part_of_it() -> None:
    """RFC 9110, 5.5: it is removed before the value is looked at, or sent on."""
    line = Line(b"A", b"b c \t ")
    assert (line.value, line.wire) == (b"b c", b"A: b c\r\n")


@pytest.mark.parametrize("value", [b"", b"%s %d %b", b"caf\xe9", b"a: b"])
def test_any_value_survives(value: bytes) -> None:
    """A value is bytes: empty, with per cent signs, or not ASCII."""
    assert Line(b"A", value).wire == b"A: " + value + b"\r\n"


def test_a_line_is_made_once() -> None:
    """The second look-up of a pair finds the first one's line; another value has its own."""
    lines = Lines(REQUEST_KINDS)
    assert lines[b"A", b"1"] is lines[b"A", b"1"]
    assert lines[b"A", b"1"] is not lines[b"A", b"2"]
    assert lines[b"a", b"1"].wire == b"a: 1\r\n"


def test_a_memo_is_of_one_direction() -> None:
    """`Host` means something in a request only."""
    pair = (b"Host", b"example.org")
    assert Lines(REQUEST_KINDS)[pair].kind is Kind.HOST
    assert Lines(RESPONSE_KINDS)[pair].kind is Kind.PLAIN


def test_long_lines_are_not_kept() -> None:
    """Lines over the limit are used and forgotten: the memo's memory is bounded."""
    lines = Lines(REQUEST_KINDS)
    name = b"A"
    longest = b"x" * (Lines.LONGEST - len(b"A: \r\n"))
    assert lines[name, longest].value == longest
    assert len(lines) == 1
    assert lines[name, longest + b"x"].value == longest + b"x"
    assert len(lines) == 1


def test_a_full_memo_starts_again() -> None:
    """However many different values pass, no more than the most are kept, and all are right."""
    lines = Lines(REQUEST_KINDS)
    for n in range(2 * Lines.MOST + 7):
        assert lines[b"Id", b"%d" % n].value == b"%d" % n
        assert len(lines) <= Lines.MOST
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("value", "members"),
    [
        (b"", []),
        (b"close", [b"close"]),
        (b"Keep-Alive, Upgrade", [b"keep-alive", b"upgrade"]),
        (b" a ,\tb\t,c ", [b"a", b"b", b"c"]),
        (b",,a,, ,b,", [b"a", b"b"]),
    ],
)
def test_tokens(value: bytes, members: list[bytes]) -> None:
    """Members of a list, without white space, empty ones and capitals (RFC 9110, 5.6.1)."""
    assert tokens(value) == members


PAIRS = [(b"A", b"1"), (b"Set-Cookie", b"x"), (b"AA", b"2"), (b"set-cookie", b"y"), (b"a", b"3")]
HEADERS = [Line(*pair) for pair in PAIRS]


@pytest.mark.parametrize(("name", "value"), [(b"a", b"1"), (b"set-cookie", b"x"), (b"b", None), (b"", None)])
def test_first(name: bytes, value: bytes | None) -> None:
    """The first field of that name, in any spelling."""
    assert first(HEADERS, name) == value


def test_every() -> None:
    """All fields of a name, in order, and of no other name of the same length."""
    assert every(HEADERS, b"a") == [b"1", b"3"]
    assert every(HEADERS, b"set-cookie") == [b"x", b"y"]
    assert every(HEADERS, b"cookie-set") == []


@pytest.mark.parametrize(
    ("value", "members", "nominates"),
    [
        (b"close", {b"close"}, set()),
        (b"Keep-Alive, Upgrade", {b"keep-alive", b"upgrade"}, set()),
        (b"close, X-Secret", {b"close", b"x-secret"}, {b"x-secret"}),
        (b"TE,X-Other", {b"te", b"x-other"}, {b"te", b"x-other"}),
        (b"", set(), set()),
    ],
)
def test_connection_names_fields_of_this_hop(
    value: bytes, members: set[bytes], nominates: set[bytes]
) -> None:
    """What Connection names goes no further; its own options name no field (RFC 9110, 7.6.1)."""
    line = Line(b"Connection", value)
    assert set(line.tokens) == members
    assert set(line.nominates) == nominates


@pytest.mark.parametrize("name", [b"Host", b"Content-Length", b"Transfer-Encoding"])
def test_connection_cannot_name_what_the_message_needs(name: bytes) -> None:
    """Without host or framing it would be another message: a way to smuggle one."""
    assert Line(b"Connection", b"close, " + name).nominates == frozenset()


def test_other_lines_nominate_nothing() -> None:
    """Only Connection speaks of other fields."""
    assert Line(b"Vary", b"X-Secret").nominates == Line(b"Vary", b"X-Secret").tokens == frozenset()
