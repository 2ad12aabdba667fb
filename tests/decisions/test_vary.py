from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.vary import ANY, VariantKeys, normalised, variant_digest, vary_names
from sidecar.headers import Line


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([], ()),
        ([""], ()),
        (["Foo"], (b"foo",)),
        (["Foo, Bar", "bar ,baz"], (b"bar", b"baz", b"foo")),
        (["*"], ANY),
        (["*, *"], ANY),
        (["*", "*"], ANY),
        ([", *"], ANY),
        (["", "*"], ANY),
        (["*, Foo"], ANY),
        (["Foo, *"], ANY),
    ],
)
def test_vary_names(values: list[str], names: tuple[bytes, ...]) -> None:
    """RFC 9110, 12.5.5: a set of names, or `*` however it is mixed with others."""
    assert vary_names([Line(b"Vary", value.encode()) for value in values]) == names


def key(names: tuple[bytes, ...], *fields: tuple[str, str]) -> bytes:
    return VariantKeys().key(b"k", names, [Line(name.encode(), value.encode()) for name, value in fields])


@pytest.mark.parametrize(
    ("names", "one", "other", "same"),
    [
        ((b"foo",), [("Foo", "1")], [("Foo", "1"), ("Other", "2")], True),
        ((b"foo",), [("Foo", "1")], [("Foo", "2")], False),
        ((b"foo",), [("Foo", "1")], [], False),
        ((b"foo",), [("Foo", "")], [], False),
        ((b"foo",), [("Foo", "a")], [("Foo", "A")], False),
        ((b"foo",), [("Foo", "1, 2")], [("Foo", "1"), ("Foo", "2")], True),
        ((b"foo",), [("Foo", "1,2")], [("Foo", " 1, 2 ")], True),
        ((b"foo",), [("Foo", "1,2")], [("Foo", "2,1")], False),
        ((b"foo",), [("Foo", '"a, b"')], [("Foo", '"a,b"')], False),
        ((b"bar", b"foo"), [("Foo", "1"), ("Bar", "2")], [("Bar", "2"), ("Foo", "1")], True),
        ((b"bar", b"foo"), [("Foo", "1"), ("Bar", "2")], [("Bar", "1"), ("Foo", "2")], False),
        ((b"bar", b"foo"), [("Foo", "1")], [("Bar", "1")], False),
        ((b"bar", b"baz", b"foo"), [("Foo", "1"), ("Baz", "2")], [("Foo", "1"), ("Baz", "2")], True),
    ],
)
def test_variants(
    names: tuple[bytes, ...], one: list[tuple[str, str]], other: list[tuple[str, str]], same: bool
) -> None:
    """RFC 9111, 4.1: lines are joined, white space is removed, what is missing matches what is missing."""
    assert (key(names, *one) == key(names, *other)) is same


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        (b"accept-language", "en, de", "de, en", True),
        (b"accept-language", "en, de", "eN, De", True),
        (b"accept-language", "en, de", " en ,   de", True),
        (b"accept-language", "en, de;q=0.5", "de; q=0.50, en;q=1.0", True),
        (b"accept-language", "en, de;q=0.5", "en;q=0.5, de", False),
        (b"accept-language", "en", "en, de", False),
        (b"accept-encoding", "gzip, br", "BR,gzip", True),
        (b"accept-encoding", "gzip;q=0", "gzip", False),
        (b"accept-encoding", "gzip", "", False),
        (b"accept", "text/html;level=1, */*;q=0.1", "*/*;q=0.1,Text/HTML; level=1", True),
        (b"accept", "text/html;level=1", "text/html;level=2", False),
        (b"accept", 'a/b;x="A"', 'a/b;x="a"', False),
        (b"accept-language", "en;q=2", "EN;q=2", False),
    ],
)
def test_negotiation(name: bytes, one: str, other: str, same: bool) -> None:
    """RFC 9110, 12.5: case, order and the spelling of weights mean nothing; weights do."""
    assert (normalised(name, one.encode()) == normalised(name, other.encode())) is same


def test_no_variants() -> None:
    """A response that does not vary is stored under its own key."""
    assert VariantKeys().key(b"k", (), [Line(b"A", b"1")]) == b"k"


def test_no_value_shows() -> None:
    """A cookie that a response varies by is in no key."""
    found = key((b"cookie",), ("Cookie", "session=hunter2"))
    assert b"hunter2" not in found
    assert found.startswith(b"k:")
    assert len(found) == 2 + 24


_VALUES = st.one_of(
    st.none(), st.binary(max_size=8).map(lambda value: value.replace(b"\n", b"").replace(b"\0", b""))
)


@given(st.lists(_VALUES, min_size=2, max_size=2), st.lists(_VALUES, min_size=2, max_size=2))
def test_digests_tell_apart(one: list[bytes | None], other: list[bytes | None]) -> None:
    """Equal digests: equal values once normalised, and missing where missing."""
    names = (b"a", b"b")

    def normal(values: list[bytes | None]) -> list[bytes | None]:
        return [None if value is None else normalised(b"a", value) for value in values]

    assert (variant_digest(names, one) == variant_digest(names, other)) is (normal(one) == normal(other))


def test_memory_is_bounded() -> None:
    """However many values come by, what is remembered of them stays small, and keys stay the same."""
    keys = VariantKeys()
    first = keys.key(b"k", (b"a",), [Line(b"A", b"0")])
    for number in range(VariantKeys.MOST + 10):
        keys.key(b"k", (b"a",), [Line(b"A", b"%d" % number)])
    keys.key(b"k", (b"a",), [Line(b"A", b"x" * 10_000)])
    assert len(keys._known) <= VariantKeys.MOST
    assert keys.key(b"k", (b"a",), [Line(b"A", b"0")]) == first


@pytest.mark.timeout(5)
@pytest.mark.parametrize("unit", [b'"', b'"\\', b" ", b",", b";", b";q=", b"\\"])
def test_hostile_values(unit: bytes) -> None:
    """The longest value is normalised in a time that grows with it, not with its square."""
    normalised(b"accept", unit * (32_768 // len(unit)))
