"""Which route a request belongs to."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config.schema import Match
from sidecar.headers import Line
from sidecar.routing import Matcher, covers


def first(*matches: dict[str, Any]) -> Matcher:
    return Matcher([Match(**match) for match in matches])


def find(
    matcher: Matcher, method: str, path: str, host: bytes = b"app", headers: dict[str, str] | None = None
) -> int | None:
    lines = [Line(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return matcher.match(method, host, path, lines)


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/a", "/a", True),
        ("/a", "/a/", False),
        ("/a", "/A", False),
        ("/a.b", "/aXb", False),
        ("/a/{id}", "/a/7", True),
        ("/a/{id}", "/a/", False),
        ("/a/{id}", "/a/7/b", False),
        ("/a/{id}/b", "/a/7/b", True),
        ("/a/{id}.json", "/a/7.json", True),
        ("/a/{id}.json", "/a/.json", False),
        ("/a/*", "/a/", True),
        ("/a/*", "/a/b/c", True),
        ("/a/*", "/a", False),
        ("/a*", "/abc/d", True),
        ("/a/{id}/*", "/a/7/b/c", True),
        ("*", "/any/thing", True),
        ("*", "*", True),
        ("/a/*", "/a/line\nfeed", True),
    ],
)
def test_paths(pattern: str, path: str, fits: bool) -> None:
    """A variable is one segment or a part of one, a star any tail, all else is itself."""
    assert (find(first({"path": pattern}), "GET", path) == 0) is fits


@pytest.mark.parametrize(
    ("pattern", "host", "fits"),
    [
        ("example.com", b"example.com", True),
        ("example.com", b"EXAMPLE.com:8080", True),
        ("example.com", b"api.example.com", False),
        ("*.example.com", b"api.example.com", True),
        ("*.example.com", b"example.com", False),
        ("*.example.com", b"api.example.com.evil.org", False),
        ("[::1]", b"[::1]:80", True),
        ("[::1]", b"[::1]", True),
        ("example.com", b"", False),
    ],
)
def test_hosts(pattern: str, host: bytes, fits: bool) -> None:
    """Case and port do not matter."""
    assert (find(first({"host": pattern}), "GET", "/", host) == 0) is fits


@pytest.mark.parametrize(
    ("glob", "value", "fits"),
    [
        ("2", "2", True),
        ("2", "22", False),
        ("2*", "2.1", True),
        ("*a*b*", "xaxb", True),
        ("*a*b", "xbxa", False),
    ],
)
def test_headers(glob: str, value: str, fits: bool) -> None:
    """The value as a whole must fit, the name in any case."""
    matcher = first({"headers": {"X-Version": glob}})
    assert (find(matcher, "GET", "/", headers={"x-version": value}) == 0) is fits
    assert find(matcher, "GET", "/", headers={"x-other": value}) is None


def test_the_first_that_fits_wins() -> None:
    """Order decides, not how exact a path is."""
    matcher = first({"path": "/a/{id}"}, {"path": "/a/b"}, {"path": "/a/*"})
    assert find(matcher, "GET", "/a/b") == 0
    assert find(matcher, "GET", "/a/b/c") == 2


def test_methods_tell_routes_apart() -> None:
    """A route without a method takes every one, also those that no route names."""
    matcher = first(
        {"method": "GET", "path": "/a"}, {"method": ["PUT", "POST"], "path": "/a"}, {"path": "/a"}
    )
    assert [find(matcher, method, "/a") for method in ("GET", "POST", "PUT", "BREW")] == [0, 1, 1, 2]


def test_a_route_that_looks_at_headers_leaves_the_rest_to_the_next() -> None:
    """A literal path is found again by a later route, of any kind."""
    matcher = first({"path": "/a", "headers": {"x-v": "2"}}, {"path": "/a"}, {"path": "/{any}"})
    assert find(matcher, "GET", "/a", headers={"x-v": "2"}) == 0
    assert find(matcher, "GET", "/a") == 1
    assert find(matcher, "GET", "/b") == 2


def test_no_route() -> None:
    """None where nothing fits."""
    assert find(first({"path": "/a"}), "GET", "/b") is None
    assert find(first(), "GET", "/b") is None


def test_variables_are_what_stands_in_their_place() -> None:
    """As it is on the wire."""
    matcher = first({"path": "/a"}, {"path": "/{kind}/{id}.json"})
    assert matcher.variables(1, "/b/7%20.json") == {"kind": "b", "id": "7%20"}
    assert matcher.variables(0, "/a") == {}


@pytest.mark.timeout(5)
def test_a_long_path_does_not_keep_a_pattern_busy() -> None:
    """The time is linear in the path's length: 32 KiB of the worst are through within seconds."""
    matcher = first({"path": "/{a}-x/{b}-x/*"}, {"headers": {"x-v": "*a*a*a*a*a*b"}})
    assert find(matcher, "GET", "/" + "-" * 32768, headers={"x-v": "a" * 32768}) is None


SEGMENTS = st.sampled_from(["a", "b", "ab", "{x}", "a{x}", "{x}.b"])
PATHS = st.builds(
    lambda segments, tail: "/" + "/".join(re.sub("x", f"x{n}", it) for n, it in enumerate(segments)) + tail,
    st.lists(SEGMENTS, min_size=1, max_size=3),
    st.sampled_from(["", "*", "/*"]),
) | st.just("*")
MATCHES = st.builds(
    Match,
    method=st.lists(st.sampled_from(["GET", "POST", "PUT"]), max_size=2, unique=True),
    path=PATHS,
    host=st.none() | st.sampled_from(["a", "*.a", "*"]),
    headers=st.dictionaries(st.sampled_from(["h", "i"]), st.sampled_from(["1", "1*", "*"]), max_size=2),
)
REQUESTS = st.tuples(
    st.sampled_from(["GET", "POST", "BREW"]),
    st.lists(st.sampled_from(["a", "b", "ab", "x.b", ""]), min_size=1, max_size=4).map(
        lambda it: "/" + "/".join(it)
    ),
    st.sampled_from([b"a", b"b.a", b"c"]),
    st.dictionaries(st.sampled_from(["h", "i"]), st.sampled_from(["1", "12", "2"]), max_size=2),
)


def one_by_one(matches: list[Match], request: tuple[str, str, bytes, dict[str, str]]) -> int | None:
    """The same decision, made plainly: each route by itself."""
    for index, match in enumerate(matches):
        if find(Matcher([match]), *request) is not None:
            return index
    return None


@given(st.lists(MATCHES, max_size=5), REQUESTS)
def test_the_tables_decide_as_the_routes_one_by_one(
    matches: list[Match], request_: tuple[str, str, bytes, dict[str, str]]
) -> None:
    """Being compiled together changes no decision."""
    assert find(Matcher(matches), *request_) == one_by_one(matches, request_)


@given(MATCHES, MATCHES, REQUESTS)
def test_what_covers_takes_all(a: Match, b: Match, request_: tuple[str, str, bytes, dict[str, str]]) -> None:
    """Where `a` covers `b`, no request fits `b` alone."""
    if covers(a, b) and find(Matcher([b]), *request_) is not None:
        assert find(Matcher([a]), *request_) is not None


@pytest.mark.parametrize(
    ("a", "b", "yes"),
    [
        ({}, {"method": "GET"}, True),
        ({"method": "GET"}, {}, False),
        ({"method": ["GET", "POST"]}, {"method": "POST"}, True),
        ({"path": "/a/*"}, {"path": "/a/{id}"}, True),
        ({"path": "/a/{id}"}, {"path": "/a/*"}, False),
        ({"path": "/a/{id}"}, {"path": "/a/b"}, True),
        ({"path": "/a/{id}"}, {"path": "/a/b{id}"}, True),
        ({"path": "/a/b{id}"}, {"path": "/a/{id}"}, False),
        ({"host": "*.a"}, {"host": "b.a"}, True),
        ({"host": "b.a"}, {"host": "*.a"}, False),
        ({"headers": {"h": "*"}}, {"headers": {"h": "1", "i": "2"}}, True),
        ({"headers": {"h": "1"}}, {"headers": {"i": "1"}}, False),
        ({"headers": {"h": "1*"}}, {"headers": {"h": "*"}}, False),
    ],
)
def test_covers(a: dict[str, Any], b: dict[str, Any], yes: bool) -> None:
    """The cases that a person would check."""
    assert covers(Match(**a), Match(**b)) is yes
