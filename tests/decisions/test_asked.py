from __future__ import annotations

import pytest

from sidecar.decisions.asked import PLAIN, asked_of
from sidecar.decisions.cache_control import NOTHING_ASKED
from sidecar.headers import Line


def test_plain() -> None:
    """A request that says nothing to a cache is the shared object."""
    assert asked_of([Line(b"Host", b"a"), Line(b"Accept", b"*/*"), Line(b"Cookie", b"a=b")]) is PLAIN


@pytest.mark.parametrize(
    ("name", "value", "attribute"),
    [
        (b"Authorization", b"Bearer x", "authorized"),
        (b"Range", b"bytes=0-1", "ranged"),
        (b"If-None-Match", b'"a"', "preconditions"),
        (b"If-Modified-Since", b"x", "preconditions"),
        (b"If-Match", b'"a"', "preconditions"),
        (b"If-Unmodified-Since", b"x", "preconditions"),
    ],
)
def test_fields(name: bytes, value: bytes, attribute: str) -> None:
    """Each field that a decision looks at shows, alone."""
    asked = asked_of([Line(b"Host", b"a"), Line(name, value)])
    shown = {name for name in ("authorized", "ranged", "preconditions") if getattr(asked, name)}
    assert shown == {attribute}
    assert asked.directives is NOTHING_ASKED


def test_directives() -> None:
    """All lines of Cache-Control count, and keep Pragma out."""
    asked = asked_of(
        [
            Line(b"Pragma", b"no-cache"),
            Line(b"Cache-Control", b"max-age=5"),
            Line(b"Cache-Control", b"no-store"),
        ]
    )
    assert (asked.directives.max_age, asked.directives.no_store, asked.directives.no_cache) == (
        5,
        True,
        False,
    )


def test_pragma_alone() -> None:
    """Without Cache-Control, Pragma is read."""
    assert asked_of([Line(b"Pragma", b"no-cache")]).directives.no_cache


def test_unknown_directives_ask_nothing() -> None:
    """So that the way to a hit stays short for clients that send them."""
    asked = asked_of([Line(b"Cache-Control", b"nothing-to-see-here"), Line(b"Pragma", b"foo")])
    assert asked.directives is NOTHING_ASKED
