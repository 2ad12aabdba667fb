from __future__ import annotations

import pytest

from sidecar.decisions.groups import LONGEST, MOST, cache_groups, group_tag, invalidated_groups
from sidecar.decisions.invalidation import Uri, invalidated, names_itself, resolve
from sidecar.headers import Line

HERE = Uri("http", b"example.com", b"/a/b?x=1")


def uri(target: bytes) -> Uri:
    return Uri("http", b"example.com", target)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "post", "UNKNOWN"])
@pytest.mark.parametrize("status", [200, 201, 204, 301, 303])
def test_unsafe_methods(method: str, status: int) -> None:
    """RFC 9111, 4.4: a method not known to be safe, answered without an error, invalidates its target."""
    assert invalidated(method, status, HERE, []) == [HERE]


@pytest.mark.parametrize(
    ("method", "status"),
    [
        ("POST", 400),
        ("PUT", 404),
        ("DELETE", 500),
        ("POST", 100),
        ("GET", 200),
        ("HEAD", 200),
        ("QUERY", 200),
    ],
)
def test_errors_and_safe_methods(method: str, status: int) -> None:
    """RFC 9111, 4.4: what failed has changed nothing, what is safe neither."""
    assert invalidated(method, status, HERE, [Line(b"Location", b"/x")]) == []


def test_a_method_that_the_policy_caches() -> None:
    """A route that declares its POST to be a question does not invalidate by it."""
    assert invalidated("POST", 200, HERE, [], declared_safe=frozenset({"POST"})) == []


@pytest.mark.parametrize("field", [b"Location", b"Content-Location"])
@pytest.mark.parametrize(
    ("reference", "target"),
    [
        (b"/x", b"/x"),
        (b"c", b"/a/c"),
        (b"../c?y=2", b"/c?y=2"),
        (b"?y=2", b"/a/b?y=2"),
        (b"http://example.com/x", b"/x"),
        (b"http://EXAMPLE.com:80/x#f", b"/x"),
        (b"//example.com", b"/"),
    ],
)
def test_locations(field: bytes, reference: bytes, target: bytes) -> None:
    """RFC 9111, 4.4: Location and Content-Location of the same origin are invalidated too."""
    assert invalidated("POST", 201, HERE, [Line(field, reference)]) == [HERE, uri(target)]


@pytest.mark.parametrize(
    "reference",
    [
        b"http://other.com/x",
        b"https://example.com/x",
        b"http://example.com:81/x",
        b"//other.com/x",
        b"http://[",
        b"mailto:a@b",
    ],
)
def test_other_origins(reference: bytes) -> None:
    """RFC 9111, 4.4: nobody invalidates what is another's."""
    assert resolve(HERE, reference) is None
    assert invalidated("POST", 201, HERE, [Line(b"Location", reference)]) == [HERE]


@pytest.mark.parametrize(
    ("value", "itself"),
    [
        (b"/a/b?x=1", True),
        (b"?x=1", True),
        (b"http://example.com/a/b?x=1", True),
        (b"/a/b", False),
        (b"http://o/a/b?x=1", False),
    ],
)
def test_names_itself(value: bytes, itself: bool) -> None:
    """RFC 9110, 8.7 and 9.3.3: Content-Location that is the target URI."""
    assert names_itself(HERE, [Line(b"Content-Location", value)]) is itself


def test_names_nothing() -> None:
    """Without the field nothing is said."""
    assert not names_itself(HERE, [])


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([], ()),
        ([b'"a"'], ("a",)),
        ([b'"a", "B c"', b'"a", "d";x=1'], ("a", "B c", "d")),
        ([b"a"], ()),
        ([b'"a", b'], ()),
        ([b'"a", 1'], ()),
        ([b'"a", ("b")'], ()),
        ([b'"a'], ()),
        ([b""], ()),
    ],
)
def test_cache_groups(values: list[bytes], groups: tuple[str, ...]) -> None:
    """RFC 9875, 2: a List of Strings; anything else is ignored as a whole."""
    assert cache_groups([Line(b"Cache-Groups", value) for value in values]) == groups


def test_group_limits() -> None:
    """RFC 9875, 2: at least 32 groups of 32 characters; what is beyond our bounds is left out."""
    many = b", ".join(b'"%032d"' % number for number in range(MOST + 5))
    assert len(cache_groups([Line(b"Cache-Groups", many)])) == MOST
    assert cache_groups([Line(b"Cache-Groups", b'"%b"' % (b"a" * (LONGEST + 1)))]) == ()


@pytest.mark.parametrize(("method", "groups"), [("POST", ("a",)), ("GET", ()), ("HEAD", ()), ("X", ("a",))])
def test_invalidated_groups(method: str, groups: tuple[str, ...]) -> None:
    """RFC 9875, 3: only what changes something invalidates a group."""
    assert invalidated_groups(method, [Line(b"Cache-Group-Invalidation", b'"a"')]) == groups


def test_groups_of_a_method_that_the_policy_caches() -> None:
    """A POST that is a question invalidates no group."""
    lines = [Line(b"Cache-Group-Invalidation", b'"a"')]
    assert invalidated_groups("POST", lines, declared_safe=frozenset({"POST"})) == ()


def test_groups_belong_to_their_origin() -> None:
    """RFC 9875, 2.1: the same name at two origins is two groups."""
    assert group_tag(b"A.com", "x") == group_tag(b"a.com", "x") != group_tag(b"b.com", "x")
