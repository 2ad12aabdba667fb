"""What an app may have kept of a fallback: held against the texts of a request."""

from __future__ import annotations

import pytest

from sidecar.decisions.kept import MOST, Kept, asked_for, texts


@pytest.mark.parametrize(
    ("query", "body"),
    [
        (b"key=k&address=1+Rue+%C3%A9toile", '{"a": [{"b": "1  rue \u00c9TOILE "}]}'),
        (b"address=50%25+%26+more", '{"a": "50% & more"}'),
    ],
)
def test_the_same_text_in_a_query_and_in_json(query: bytes, body: str) -> None:
    """Escapes, case and white space do not tell them apart."""
    asked, said = asked_for(query, b"address"), texts(body.encode())
    assert asked is not None
    assert said is not None
    assert asked in said


def test_what_says_nothing() -> None:
    """A query without the parameter asks for nothing; what is no JSON may say anything."""
    assert asked_for(b"origin=1,2", b"address") is None
    assert texts(b"--boundary") is None
    assert texts(b"[1, null]") == frozenset()


def test_until_its_time_or_until_it_was_asked_for_again() -> None:
    """Held to the second, and dropped at once where the provider has answered since."""
    kept = Kept()
    kept.put(b"a", 10.0)
    kept.put(b"b", 20.0)
    assert kept.any(9.9)
    assert kept.holds(frozenset({b"a", b"x"}))
    assert not kept.holds(frozenset({b"x"}))
    assert kept.any(10.0)
    assert not kept.holds(frozenset({b"a"}))
    kept.drop(b"b")
    assert not kept.any(10.0)


def test_more_than_is_remembered() -> None:
    """Then every text counts as kept, for as long as the one that was given up."""
    kept = Kept()
    for number in range(MOST + 1):
        kept.put(b"%d" % number, 10.0 if number == 0 else 5.0)
    assert kept.any(9.0)
    assert kept.holds(frozenset({b"never"}))
    assert not kept.any(10.0)
