from __future__ import annotations

import re
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.cache_key import (
    HOST_MOST,
    MOST_KNOWN,
    PATH_MOST,
    BodyRule,
    CacheKeys,
    KeyRules,
)
from sidecar.decisions.canonical_url import QueryRules
from sidecar.headers import Line

PLAIN = CacheKeys("geo")
NOW = 1_700_000_000.0


def url(target: str, keys: CacheKeys = PLAIN, host: bytes = b"example.com", now: float = NOW) -> bytes:
    return keys.url("http", host, target.encode(), now)


def by_query(**rules: object) -> CacheKeys:
    return CacheKeys("geo", KeyRules(QueryRules(**rules)))  # type: ignore[arg-type]


def test_form() -> None:
    """Namespace, version, host, path and digest: printable, to be purged by prefix."""
    found = url("/maps/api/geocode/json?address=Paris&key=S3CRET")
    assert re.fullmatch(rb"geo:v1:example\.com:/maps/api/geocode/json:[0-9a-f]{40}", found)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/%7euser", "/~user"),
        ("/%41", "/A"),
        ("/%c3%a9", "/%C3%A9"),
        ("/\u00e9", "/%C3%A9"),
        ("/a?x=%7E", "/a?x=~"),
    ],
)
def test_same_url(one: str, other: str) -> None:
    """RFC 3986, 6.2.2: escapes in any case, and of characters that need none."""
    assert url(one) == url(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a", "/A"),
        ("/a", "/a/"),
        ("/a", "/a?"),
        ("/a%2Fb", "/a/b"),
        ("/a?x=1", "/a?x=2"),
        ("/a?x=1&y=2", "/a?y=2&x=1"),
        ("/a?x=%26", "/a?x=&"),
        ("/a?x=+", "/a?x=%20"),
        ("/a/../b", "/b"),
        ("/" + "a" * 200, "/" + "a" * 201),
    ],
)
def test_other_url(one: str, other: str) -> None:
    """Without rules nothing is taken for the same that RFC 3986 does not call the same."""
    assert url(one) != url(other)


@pytest.mark.parametrize(
    ("scheme", "host", "same"),
    [
        ("http", b"EXAMPLE.com", True),
        ("http", b"example.com:80", True),
        ("http", b"example.com:443", False),
        ("http", b"example.com:8080", False),
        ("https", b"example.com", False),
        ("http", b"example.org", False),
    ],
)
def test_origin(scheme: str, host: bytes, same: bool) -> None:
    """RFC 3986, 6.2.2.1 and 6.2.3: the case of the host and the scheme's port say nothing."""
    assert (PLAIN.url(scheme, host, b"/", NOW) == PLAIN.url("http", b"example.com", b"/", NOW)) is same


def test_namespaces_are_apart() -> None:
    """The same URL in two namespaces is two entries."""
    assert url("/", CacheKeys("a")) != url("/", CacheKeys("b"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/a?x=1&key=S", "/a?x=1&key=T", True),
        ("/a?key=S&x=1", "/a?x=1", True),
        ("/a?key=S", "/a", True),
        ("/a?k%65y=S", "/a", True),
        ("/a?utm_source=S&x=1&utm_id", "/a?x=1", True),
        ("/a?keys=S", "/a", False),
        ("/a?x=1", "/a?x=2", False),
    ],
)
def test_drop(one: str, other: str, same: bool) -> None:
    """A dropped parameter is as if it were not there, however its name is escaped."""
    keys = by_query(drop=frozenset({"key", "utm_*"}))
    assert (url(one, keys) == url(other, keys)) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a=10+Rue+de+Rivoli", "a=10%20rue%20DE%20rivoli", True),
        ("a=++Paris+%20++France%09", "a=paris+france", True),
        ("a=%C3%89cole", "a=%C3%A9COLE", True),
        ("a=Stra%C3%9Fe", "a=STRASSE", True),
        ("a=e%CC%81", "a=%C3%A9", True),
        ("a=A%FF", "a=a%ff", True),
        ("a=Paris", "a=Parish", False),
        ("a=a%26b", "a=a&b", False),
        ("b=Paris", "b=paris", False),
    ],
)
def test_fold(one: str, other: str, same: bool) -> None:
    """In a folded parameter neither case nor white space counts, in whatever escapes."""
    keys = by_query(fold=frozenset({"a"}))
    assert (url("/?" + one, keys) == url("/?" + other, keys)) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("t=1700000100", "t=1700000399", True),
        ("t=1700000100", "t=1700000400", False),
        ("t=1700000100.9", "t=1700000101", True),
        ("t=now", "t=1700000000", True),
        ("t=NOW", "t=now", True),
        ("t=soon", "t=now", False),
        ("t=soon", "t=later", False),
        ("t=-1", "t=-300", True),
        ("t=-1", "t=0", False),
    ],
)
def test_bucket(one: str, other: str, same: bool) -> None:
    """A bucketed number is rounded down to its period; `now` is the clock's; words stay what they are."""
    keys = by_query(bucket={"t": 300})
    assert (url("/?" + one, keys) == url("/?" + other, keys)) is same


def test_now_moves() -> None:
    """`now` in the next period is another key, though the URL is the same."""
    keys = by_query(bucket={"t": 300})
    assert url("/?t=now", keys, now=NOW) == url("/?t=now", keys, now=NOW + 10)
    assert url("/?t=now", keys, now=NOW) != url("/?t=now", keys, now=NOW + 300)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("a=1&b=2", "b=2&a=1", True), ("a=1&a=2", "a=2&a=1", False), ("a=1&&b=2", "a=1&b=2", True)],
)
def test_sort(one: str, other: str, same: bool) -> None:
    """Sorted by name; the order of equal names may matter, and stays."""
    keys = by_query(sort=True)
    assert (url("/?" + one, keys) == url("/?" + other, keys)) is same


def post(
    body: bytes, *fields: tuple[str, str], rule: BodyRule = BodyRule.JSON, method: str = "POST"
) -> bytes:
    keys = CacheKeys("m", KeyRules(body=rule))
    lines = [Line(name.encode(), value.encode()) for name, value in fields]
    return keys.request(method, "http", b"example.com", b"/q", lines, body, NOW)


TYPE = ("Content-Type", "application/json")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (post(b'{"a":1,"b":2}', TYPE), post(b'{ "b":2.0, "a":1e0 }', TYPE), True),
        (post(b'{"a":1}', TYPE), post(b'{"a":2}', TYPE), False),
        (post(b'{"a":1}', TYPE), post(b'{"a":1}', ("Content-Type", "Application/JSON; charset=utf-8")), True),
        (post(b'{"a":1}', TYPE), post(b'{"a":1}', ("Content-Type", "text/plain")), False),
        (post(b'{"a":1}', TYPE), post(b'{"a":1}', TYPE, ("Content-Encoding", "gzip")), False),
        (post(b'{"a":1,"a":2}', TYPE), post(b'{"a":2,"a":1}', TYPE), False),
        (post(b'{"a":1,"a":2}', TYPE), post(b'{ "a":1,"a":2}', TYPE), False),
        (post(b"{}", rule=BodyRule.BYTES), post(b"{ }", rule=BodyRule.BYTES), False),
        (post(b"a", rule=BodyRule.NONE), post(b"b", rule=BodyRule.NONE), False),
        (post(b"{}"), post(b"{}", method="QUERY"), False),
        (post(b"{}"), post(b"{}", method="GET"), False),
        (post(b"", method="GET"), post(b"", method="HEAD"), True),
        (post(b"a", method="GET", rule=BodyRule.NONE), post(b"b", method="GET", rule=BodyRule.NONE), True),
        (post(b"", method="GET"), CacheKeys("m").url("http", b"example.com", b"/q", NOW), True),
    ],
)
def test_bodies(one: bytes, other: bytes, same: bool) -> None:
    """RFC 10008: the key of a request with content has the content, and what describes it."""
    assert (one == other) is same


def authorized(value: str | None, *names: bytes) -> bytes:
    keys = CacheKeys("m", KeyRules(headers=names))
    lines = [] if value is None else [Line(b"Authorization", value.encode())]
    return keys.request("GET", "http", b"example.com", b"/q", lines, b"", NOW)


def test_selected_headers() -> None:
    """A header tells requests apart where the rules select it, missing or empty too."""
    assert authorized("A") == authorized("B")
    found = [authorized(value, b"authorization") for value in ("A", "B", "", None)]
    assert len(set(found)) == 4


def test_prefix() -> None:
    """All URLs under a path share what `prefix` gives, which is the namespace's at least."""
    found = url("/api/v1/x{y}?q")
    assert found.startswith(PLAIN.prefix())
    assert found.startswith(PLAIN.prefix(b"Example.com"))
    assert found.startswith(PLAIN.prefix(b"example.com", b"/api/v1/"))
    assert found.startswith(PLAIN.prefix(b"example.com", b"/api/v1/x{y}"))


def test_memory_is_bounded() -> None:
    """However many URLs come by, few are remembered, and keys stay the same."""
    keys = CacheKeys("geo")
    first = url("/0", keys)
    for number in range(MOST_KNOWN + 10):
        url(f"/{number}", keys)
    url("/" + "x" * 5000, keys)
    assert keys._known is not None
    assert len(keys._known) <= MOST_KNOWN
    assert url("/0", keys) == first


_SECRET = st.text("0123456789abcdefABCDEF-_", min_size=12, max_size=40)


@given(_SECRET, _SECRET, st.text(max_size=20), st.booleans())
def test_no_secret_in_any_key(secret: str, other: str, text: str, first: bool) -> None:
    """A dropped parameter changes no byte of the key, wherever it stands; a credential shows nowhere."""
    keys = CacheKeys(
        "geo", KeyRules(QueryRules(drop=frozenset({"key"})), headers=(b"authorization",), body=BodyRule.JSON)
    )

    def key(value: str, credential: str) -> bytes:
        parts = [f"key={quote(value)}", f"q={quote_plus(text)}"]
        target = "/a?" + "&".join(parts if first else reversed(parts))
        lines = [Line(b"Authorization", f"Bearer {credential}".encode())]
        return keys.request("POST", "https", b"example.com", target.encode(), lines, b'{"key": 1}', NOW)

    found = key(secret, secret)
    assert secret.encode() not in found
    assert found == key(other, secret)
    assert (found == key(secret, other)) is (secret == other)


@given(
    st.binary(max_size=300),
    st.binary(max_size=300).map(lambda raw: raw.replace(b"\n", b"")),
    st.binary(max_size=50),
)
def test_bounds(host: bytes, target: bytes, body: bytes) -> None:
    """Keys are printable ASCII without blanks, patterns and hash tags, and never longer than their bound."""
    keys = CacheKeys("n" * 20, KeyRules(body=BodyRule.BYTES))
    found = keys.request("POST", "http", host, target, [], body, NOW)
    assert re.fullmatch(rb"[!-~]+", found)
    assert not set(b'*?[]{}\\"') & set(found)
    assert len(found) <= 20 + len(":v1:") + HOST_MOST + 1 + PATH_MOST + 1 + 40


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=5)), max_size=4), st.data())
def test_escapes_never_matter(parameters: list[tuple[str, str]], data: st.DataObject) -> None:
    """Any way to escape a query is the same query; another query is another key."""

    def escaped() -> str:
        parts = []
        for name, value in parameters:
            raw = "".join(
                f"%{byte:02X}"
                if data.draw(st.booleans()) or not chr(byte).isalnum() or byte > 127
                else chr(byte)
                for byte in value.encode()
            )
            parts.append(f"{name}={raw}")
        return "/?" + "&".join(parts)

    one, other = escaped(), escaped()
    assert url(one) == url(other)
    assert url(one) != url(one + "&d=1")


def test_directions_and_geocodes_of_a_day() -> None:
    """1,000 URLs with their own departure time, case and spaces are few keys; exact ones are 1,000."""
    rules = QueryRules(drop=frozenset({"key"}), fold=frozenset({"origin"}), bucket={"departure_time": 300})
    spellings = ["10 Rue de Rivoli", "10  RUE DE RIVOLI ", "10 rue de rivoli"]
    targets = [
        f"/maps/api/directions/json?origin={quote_plus(spellings[number % 3])}"
        f"&departure_time={1_700_000_100 + number}&key=K{number}"
        for number in range(1000)
    ]
    assert len({url(target) for target in targets}) == 1000
    assert len({url(target, CacheKeys("geo", KeyRules(rules))) for target in targets}) == 4
