from __future__ import annotations

from typing import Any

import pytest

from sidecar.decisions.cache_control import (
    FOREVER,
    LONGEST,
    SURROGATE,
    TARGETS,
    RequestDirectives,
    ResponseDirectives,
    delta_seconds,
    request_directives,
    response_directives,
)
from sidecar.headers import Line


def directives(*fields: tuple[str, str], targets: tuple[bytes, ...] = TARGETS) -> ResponseDirectives:
    lines = [Line(name.encode(), value.encode("latin-1")) for name, value in fields]
    return response_directives(lines, targets)


def cache_control(*values: str) -> ResponseDirectives:
    return directives(*(("Cache-Control", value) for value in values))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0),
        (b"3600", 3600),
        (b"003600", 3600),
        (b"2147483647", 2**31 - 1),
        (b"2147483648", LONGEST),
        (b"99999999999", LONGEST),
        (b"9" * 10_000, LONGEST),
        (b"0" * 10_000 + b"12", 12),
        (b"", None),
        (b"-1", None),
        (b"+1", None),
        (b"1.0", None),
        (b"1 ", None),
        (b"a1", None),
        (b"1a", None),
        (b"'1'", None),
        ("\u0661".encode(), None),
    ],
)
def test_delta_seconds(value: bytes, seconds: int | None) -> None:
    """RFC 9111, 1.2.2: digits only, and what is over 31 bits counts as 2^31."""
    assert delta_seconds(value) == seconds


@pytest.mark.parametrize(
    ("values", "max_age"),
    [
        (["max-age=3600"], 3600),
        (["MaX-aGe=3600"], 3600),
        (['max-age="3600"'], 3600),
        ([" foobar ,\tmax-age=3600 "], 3600),
        (["max-age=3600, max-age=1"], 3600),
        (["max-age=1, max-age=3600"], 1),
        (["max-age=1", "max-age=3600"], 1),
        (['extension="max-age=3600", max-age=1'], 1),
        (['max-age=1, extension="max-age=3600"'], 1),
        (['extension="a\\"b, max-age=3600", max-age=1'], 1),
        (["max-age=99999999999"], LONGEST),
        (["max-age=-3600"], 0),
        (["max-age=3600.0"], 0),
        (["max-age=3600.5"], 0),
        (["max-age='3600'"], 0),
        (["max-age=a3600"], 0),
        (["max-age=3600a"], 0),
        (["max-age =3600"], 0),
        (["max-age= 3600"], 0),
        (["max-age"], 0),
        (["max-age="], 0),
        (["max-ages=3600"], None),
        ([""], None),
        ([",,,"], None),
    ],
)
def test_max_age(values: list[str], max_age: int | None) -> None:
    """RFC 9111, 4.2.1 and 5.2: the first counts, quoted or not, in any case; an invalid one is stale."""
    assert cache_control(*values).max_age == max_age


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        ("s-maxage=60", "s_maxage", 60),
        ("stale-while-revalidate=30", "stale_while_revalidate", 30),
        ("stale-if-error=90", "stale_if_error", 90),
        ("no-store", "no_store", True),
        ("No-StOrE", "no_store", True),
        ("no-store=1", "no_store", True),
        ('x="a, no-store', "no_store", True),
        ('x="a, no-store"', "no_store", False),
        ("no-cache", "no_cache", True),
        ("private", "private", True),
        ("public", "public", True),
        ("public=yes", "public", False),
        ("must-revalidate", "must_revalidate", True),
        ("proxy-revalidate", "proxy_revalidate", True),
        ("must-understand", "must_understand", True),
    ],
)
def test_response_directives(value: str, name: str, expected: object) -> None:
    """RFC 9111, 5.2.2 and RFC 5861: what forbids counts however it is spelled, what allows does not."""
    assert getattr(cache_control(value), name) == expected


@pytest.mark.parametrize(
    ("value", "hidden", "no_cache", "private"),
    [
        ('no-cache="A, b"', {b"a", b"b"}, False, False),
        ('private="set-cookie"', {b"set-cookie"}, False, False),
        ("private=set-cookie", {b"set-cookie"}, False, False),
        ('no-cache="a", no-cache', {b"a"}, True, False),
        ('no-cache=""', set(), True, False),
        ('private="a b"', set(), False, True),
    ],
)
def test_qualified_directives(value: str, hidden: set[bytes], no_cache: bool, private: bool) -> None:
    """RFC 9111, 5.2.2.4 and 5.2.2.7: a list of fields concerns these; anything else concerns all."""
    found = cache_control(value)
    assert (set(found.hidden), found.no_cache, found.private) == (hidden, no_cache, private)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("CDN-Cache-Control", "max-age=60")], 60),
        ([("CDN-Cache-Control", "max-age=60"), ("Sidecar-Cache-Control", "max-age=5")], 5),
        ([("CDN-Cache-Control", "max-age=60, &&&"), ("Cache-Control", "max-age=1")], 1),
        ([("CDN-Cache-Control", 'max-age="60"'), ("Cache-Control", "max-age=1")], 1),
        ([("CDN-Cache-Control", "max-age=60.5"), ("Cache-Control", "max-age=1")], 1),
        ([("CDN-Cache-Control", "no-store=1"), ("Cache-Control", "max-age=1")], 1),
        ([("CDN-Cache-Control", "MaX-aGe=60"), ("Cache-Control", "max-age=1")], 1),
        ([("CDN-Cache-Control", "max-age =60"), ("Cache-Control", "max-age=1")], 1),
        ([("CDN-Cache-Control", "max-age= 60"), ("Cache-Control", "max-age=1")], 1),
        ([("CDN-Cache-Control", ""), ("Cache-Control", "max-age=1")], 1),
        ([("CDN-Cache-Control", "max-age=60,"), ("Cache-Control", "max-age=1")], 1),
        ([("Sidecar-Cache-Control", "&"), ("CDN-Cache-Control", "max-age=60")], 60),
        ([("CDN-Cache-Control", "foobar, max-age=60;x=1")], 60),
        ([("CDN-Cache-Control", "max-age=1"), ("CDN-Cache-Control", "max-age=60")], 60),
        ([("CDN-Cache-Control", "max-age=99999999999")], LONGEST),
        ([("CDN-Cache-Control", "max-age=-1")], 0),
        ([("CDN-Cache-Control", "private"), ("Cache-Control", "max-age=1")], None),
    ],
)
def test_targeted_fields(fields: list[tuple[str, str]], expected: int | None) -> None:
    """RFC 9213, 2.1 and 2.2: the first valid field of the list that is not empty stands in for all."""
    assert directives(*fields).max_age == expected


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        ("no-store", "no_store", True),
        ("no-store=?0", "no_store", False),
        ("private", "private", True),
        ('private="a"', "hidden", {b"a"}),
        ("must-understand", "must_understand", True),
        ("s-maxage=7", "s_maxage", 7),
        ("max-age=7", "targeted", True),
    ],
)
def test_targeted_directives(value: str, name: str, expected: object) -> None:
    """RFC 9213, 2.1: directives mean what they mean in Cache-Control, in the types of RFC 9651."""
    assert getattr(directives(("CDN-Cache-Control", value)), name) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("max-age=3600", (3600, None, False)),
        ("MaX-aGe=3600", (3600, None, False)),
        ("max-age=3600;sidecar", (3600, None, False)),
        ("max-age=3600;other", (1, None, False)),
        ("max-age=5;other, max-age=3600; sidecar", (3600, None, False)),
        ("max-age=600+60", (600, 60, False)),
        ("max-age= 100", (0, None, False)),
        ("foobar, no-store", (None, None, True)),
        ("no-store;other", (1, None, False)),
    ],
)
def test_surrogate_control(value: str, expected: tuple[int | None, int | None, bool]) -> None:
    """Edge Architecture 1.0, where it is in the target list: what names another surrogate is not ours."""
    found = directives(
        ("Surrogate-Control", value), ("Cache-Control", "max-age=1"), targets=(*TARGETS, SURROGATE)
    )
    assert (found.max_age, found.stale_while_revalidate, found.no_store) == expected


def test_surrogate_control_unasked() -> None:
    """It is not in the default target list."""
    assert directives(("Surrogate-Control", "max-age=9")) == ResponseDirectives()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("max-age=0", {"max_age": 0}),
        ("max-age=x", {"max_age": 0}),
        ("min-fresh=5", {"min_fresh": 5}),
        ("min-fresh=x", {"min_fresh": LONGEST}),
        ("max-stale", {"max_stale": FOREVER}),
        ("max-stale=10", {"max_stale": 10}),
        ("max-stale=x", {}),
        ("stale-if-error=10", {"stale_if_error": 10}),
        ("stale-if-error", {}),
        ("no-cache", {"no_cache": True}),
        ("no-store, only-if-cached", {"no_store": True, "only_if_cached": True}),
        ("max-age=1, max-age=9", {"max_age": 1}),
        ("nothing-to-see-here", {}),
    ],
)
def test_request_directives(value: str, expected: dict[str, Any]) -> None:
    """RFC 9111, 5.2.1 and RFC 5861, 4: what cannot be read never loosens what the client accepts."""
    assert request_directives([value.encode()]) == RequestDirectives(**expected)


@pytest.mark.parametrize(
    ("value", "pragma", "no_cache"),
    [([], b"no-cache", True), ([], b"foo", False), ([b"max-age=9"], b"no-cache", False)],
)
def test_pragma(value: list[bytes], pragma: bytes, no_cache: bool) -> None:
    """RFC 9111, 5.4: Pragma counts only where there is no Cache-Control."""
    assert request_directives(value, [pragma]).no_cache is no_cache


@pytest.mark.timeout(5)
@pytest.mark.parametrize("unit", [b'"', b'\\"', b'"\\', b" ", b",", b'",', b"=", b";"])
def test_hostile_values(unit: bytes) -> None:
    """A value of the greatest length is read in a time that grows with it, not with its square."""
    value = b'a="' + unit * (32_768 // len(unit))
    request_directives([value], [value])
    response_directives([Line(name, value) for name in (b"cache-control", b"cdn-cache-control")])
    response_directives([Line(b"surrogate-control", value)], (SURROGATE,))
