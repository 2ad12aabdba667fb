from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.canonical_json import canonical_json


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":[2,3]}', ' { "b" : [ 2 , 3 ] ,\n"a" : 1 } '),
        ("1", "1.0"),
        ("1", "1e0"),
        ("1", "10E-1"),
        ("100", "1e+2"),
        ("0.1", "1e-1"),
        ("0.10", "100e-3"),
        ("0", "-0"),
        ("0", "-0.00e7"),
        ("1e400", "1" + "0" * 400),
        ("1e5000", "1" + "0" * 5000),
        ("12345678901234567890.0", "12345678901234567890"),
        ('"\\u00e9"', '"\u00e9"'),
        ('"\\ud83d\\ude00"', '"\U0001f600"'),
        ('"\\/"', '"/"'),
        ('{"\\u0061":null}', '{"a":null}'),
    ],
)
def test_equal(one: str, other: str) -> None:
    """RFC 8259: white space, member order, escapes and the form of a number mean nothing."""
    assert canonical_json(one.encode()) == canonical_json(other.encode()) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", '"1"'),
        ("1", "true"),
        ("0", "false"),
        ("0", "null"),
        ("1", "[1]"),
        ("1", "-1"),
        ("0.1", "-0.1"),
        ("0.1", "0.10000000000000000000000001"),
        ("9007199254740992", "9007199254740993"),
        ("1" + "0" * 400, "1" + "0" * 399 + "1"),
        ("1e400", "1e401"),
        ("[1,2]", "[2,1]"),
        ('{"a":1}', '{"A":1}'),
        ('{"a":1}', '{"a":1,"b":null}'),
        ('"\u00e9"', '"e\u0301"'),
        ("0.5", '[NaN,"5",-1]'),
        ("[]", "{}"),
    ],
)
def test_different(one: str, other: str) -> None:
    """Digits count to the last, types differ, arrays have an order, Unicode is not normalised."""
    assert canonical_json(one.encode()) != canonical_json(other.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"[1,]",
        b"01",
        b"NaN",
        b"-Infinity",
        b'{"a":1,"a":1}',
        b'[{"a":{"b":1,"\\u0062":2}}]',
        b"\xef\xbb\xbf1",
        "1".encode("utf-16"),
        b'"\xff"',
        b'"\n"',
        b"[" * 100_000 + b"]" * 100_000,
        b"1e" + b"9" * 9999,
    ],
)
def test_ambiguous(body: bytes) -> None:
    """What is no JSON, or means different things to different readers, has no canonical form."""
    assert canonical_json(body) is None


_JSON: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.decimals(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def spelled(value: Any, draw: Any) -> str:
    """One of the many ways to write `value` as JSON."""
    if isinstance(value, dict):
        members = draw(st.permutations(list(value.items())))
        space: str = draw(st.sampled_from(["", " ", "\n\t"]))
        inner = ",".join(
            f"{space}{spelled(name, draw)}{space}:{spelled(item, draw)}" for name, item in members
        )
        return "{" + inner + space + "}"
    if isinstance(value, list):
        return "[ " + ",".join(spelled(item, draw) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=draw(st.booleans()))
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    number = Decimal(value)
    shift = draw(st.integers(-3, 3))
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)) + "0" * abs(shift)
    mark: str = draw(st.sampled_from(["e", "E"]))
    return f"{'-' if sign else ''}{text.lstrip('0') or '0'}{mark}{exponent - abs(shift)}"


def meaning(value: Any) -> Any:
    """Something that is equal exactly when the JSON values are: types apart, numbers exact."""
    if isinstance(value, dict):
        return ("object", frozenset((name, meaning(item)) for name, item in value.items()))
    if isinstance(value, list):
        return ("array", tuple(map(meaning, value)))
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return (type(value).__name__, value)
    # Decimals compare and hash by their exact value.
    return ("number", Decimal(value))


@given(_JSON, st.data())
def test_equal_json_equal_form(value: Any, data: st.DataObject) -> None:
    """Any two spellings of a value have one canonical form."""
    one, other = spelled(value, data.draw), spelled(value, data.draw)
    form = canonical_json(one.encode("utf-8", "surrogatepass"))
    assert form == canonical_json(other.encode("utf-8", "surrogatepass"))


@given(_JSON, _JSON, st.data())
def test_equal_form_equal_json(one: Any, other: Any, data: st.DataObject) -> None:
    """Two values with one canonical form are equal."""
    forms = [canonical_json(spelled(value, data.draw).encode()) for value in (one, other)]
    assert None not in forms
    assert (forms[0] == forms[1]) is (meaning(one) == meaning(other))
