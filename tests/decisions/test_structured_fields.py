from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.structured_fields import (
    InnerList,
    Other,
    Token,
    parse_dictionary,
    parse_list,
    parse_members,
    string,
)


@pytest.mark.parametrize(
    ("value", "members"),
    [
        (b"", {}),
        (b"  ", {}),
        (b"a", {"a": True}),
        (b"a, b=1", {"a": True, "b": 1}),
        (b"a=1,\tb=?0 , c=?1", {"a": 1, "b": False, "c": True}),
        (b"a=1, a=2", {"a": 2}),
        (b"a=-15", {"a": -15}),
        (b'a="x\\"y\\\\"', {"a": 'x"y\\'}),
        (b"a=tok/en:x", {"a": "tok/en:x"}),
        (b'a;q=1;r, b=2;x="y"', {"a": True, "b": 2}),
        (b"*a.b-c_d=1", {"*a.b-c_d": 1}),
        (b'a=(1 "x" t;p);q', {"a": (1, "x", "t")}),
        (b"a=()", {"a": ()}),
    ],
)
def test_dictionary(value: bytes, members: dict[str, object]) -> None:
    """RFC 9651, 4.2.2: members in order, the last of equal keys, parameters understood and left out."""
    assert parse_dictionary(value) == members


@pytest.mark.parametrize(
    "value",
    [
        b"A=1",
        b"a =1",
        b"a= 1",
        b"a=",
        b"a=1,",
        b",a",
        b"a b",
        b"a=1.",
        b"a=1.2345",
        b"a=1234567890123456",
        b"a=+1",
        b"a=-",
        b'a="x',
        b'a="\\n"',
        b'a="\x7f"',
        'a="\u00e9"'.encode(),
        b"a=?2",
        b"a=(1 2",
        b"a=(1,2)",
        b"a=(1)2",
        b"a;=1",
        b"a;Q=1",
        b"a=&",
        b"a=:x y:",
        b"a=@",
        b'a=%"%GG"',
    ],
)
def test_malformed(value: bytes) -> None:
    """RFC 9651, 4.2: one mistake and the whole field is ignored."""
    assert parse_dictionary(value) is None


@pytest.mark.parametrize("value", [b":aGk=:", b"@1659578233", b'%"f%c3%bc"'])
def test_other_types(value: bytes) -> None:
    """RFC 9651, 3.3: the types that no field of ours uses are valid all the same."""
    members = parse_list(value)
    assert members is not None
    assert isinstance(members[0], Other)


def test_list() -> None:
    """RFC 9651, 4.2.1: strings, tokens and inner lists are told apart."""
    members = parse_list(b'"a", a, (a b);x, 1, -1.25')
    assert members == ["a", "a", ("a", "b"), 1, -1.25]
    assert [type(member) for member in members] == [str, Token, InnerList, int, float]


def test_members() -> None:
    """RFC 9651, 3.1.2: each with its parameters; of equal keys the last one counts."""
    assert parse_members(b'a;b;c=1, "x";d="e;f", (a b);g=?0;g=1.5') == [
        ("a", {"b": True, "c": 1}),
        ("x", {"d": "e;f"}),
        (("a", "b"), {"g": 1.5}),
    ]
    assert parse_members(b"a;=1") is None


def test_malformed_list() -> None:
    """A comma at the end is a mistake."""
    assert parse_list(b'"a",') is None


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
def test_strings_survive(text: str) -> None:
    """What `string` writes reads as it was."""
    assert parse_list(string(text)) == [text]


def test_string_replaces_what_it_cannot_hold() -> None:
    """RFC 9651, 3.3.3: printable ASCII only."""
    assert string("a\u00e9\n") == b'"a??"'


@given(st.binary(max_size=40))
def test_nothing_raises(value: bytes) -> None:
    """Bytes of any kind are a field or no field."""
    parse_dictionary(value)
    parse_list(value)
