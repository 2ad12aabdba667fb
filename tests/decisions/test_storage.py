from __future__ import annotations

from dataclasses import replace
from email.utils import formatdate

import pytest

from sidecar.decisions.asked import PLAIN, Asked
from sidecar.decisions.cache_control import RequestDirectives
from sidecar.decisions.cache_rules import PURE, CacheRules
from sidecar.decisions.freshness import Reply
from sidecar.decisions.storage import Storing, may_store, storable_headers
from sidecar.decisions.verdict import BY_STATUS, Verdict
from sidecar.headers import Line

NOW = 1_700_000_000.0
AUTHORIZED = Asked(authorized=True)
TTL = CacheRules(ttl=60.0)
OLD = ("Last-Modified", formatdate(NOW - 86400, usegmt=True))
ETAG = ("ETag", '"a"')


def storing(
    *fields: tuple[str, str],
    method: str = "GET",
    asked: Asked = PLAIN,
    status: int = 200,
    rules: CacheRules = PURE,
    verdict: Verdict | None = None,
    names_itself: bool = False,
) -> Storing:
    lines = [Line(name.encode(), value.encode()) for name, value in fields]
    reply = Reply(status, lines, sent=NOW, received=NOW, rules=rules)
    said = BY_STATUS[status] if verdict is None else verdict
    return may_store(method, asked, reply, rules, said, names_itself=names_itself)


def control(value: str) -> tuple[str, str]:
    return ("Cache-Control", value)


@pytest.mark.parametrize(
    ("status", "fields", "expected"),
    [
        *[
            (status, [control("max-age=60")], Storing.EXPLICIT)
            for status in (
                200,
                203,
                204,
                299,
                301,
                302,
                303,
                307,
                308,
                400,
                404,
                410,
                499,
                500,
                502,
                503,
                504,
                599,
            )
        ],
        (100, [control("max-age=60")], Storing.INTERIM),
        (206, [control("max-age=60")], Storing.PARTIAL),
        (416, [control("max-age=60")], Storing.PARTIAL),
        (304, [control("max-age=60")], Storing.CONDITIONAL),
        (412, [control("max-age=60")], Storing.CONDITIONAL),
        *[(status, [OLD], Storing.HEURISTIC) for status in (200, 203, 204, 404, 405, 410, 414, 501)],
        *[(status, [OLD], Storing.STATUS) for status in (201, 202, 302, 403, 500, 502, 503, 504, 599)],
        (599, [OLD, control("public")], Storing.HEURISTIC),
        (200, [], Storing.NO_FRESHNESS),
        (200, [ETAG], Storing.VALIDATOR),
        (404, [ETAG], Storing.NO_FRESHNESS),
    ],
)
def test_statuses(status: int, fields: list[tuple[str, str]], expected: Storing) -> None:
    """RFC 9111, 3; RFC 9110, 15.1: explicit freshness stores any final status, a guess only some."""
    assert storing(*fields, status=status) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("no-store", Storing.NO_STORE),
        ("max-age=10000, no-store", Storing.NO_STORE),
        ("private, max-age=60", Storing.PRIVATE),
        ('private="set-cookie", max-age=60', Storing.EXPLICIT),
        ("max-age=60, no-store, must-understand", Storing.EXPLICIT),
        ("max-age=0", Storing.USELESS),
        ("max-age=nonsense", Storing.USELESS),
        ("max-age=0, stale-while-revalidate=9", Storing.EXPLICIT),
        ("max-age=0, stale-if-error=9", Storing.EXPLICIT),
        ("max-age=0, stale-if-error=9, must-revalidate", Storing.USELESS),
        ("s-maxage=0, stale-if-error=9", Storing.USELESS),
        ("no-cache", Storing.USELESS),
        ("no-cache, max-age=60", Storing.USELESS),
        ("public", Storing.NO_FRESHNESS),
    ],
)
def test_directives(value: str, expected: Storing) -> None:
    """RFC 9111, 5.2.2: what the origin forbids, and what is of no use without a validator."""
    assert storing(control(value)) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("max-age=0", Storing.VALIDATOR),
        ("no-cache", Storing.VALIDATOR),
        ("no-cache, max-age=60", Storing.EXPLICIT),
        ("no-store", Storing.NO_STORE),
    ],
)
def test_a_validator_makes_the_unusable_useful(value: str, expected: Storing) -> None:
    """RFC 9111, 3 and 4.3: what must be asked for each time can be asked for cheaply."""
    assert storing(control(value), ETAG) is expected


@pytest.mark.parametrize("value", ["max-age=60, must-understand", "max-age=60, no-store, must-understand"])
def test_must_understand(value: str) -> None:
    """RFC 9111, 5.2.2.3: a status whose rules are unknown is not stored, whatever else is said."""
    assert storing(control(value), status=599) is Storing.NOT_UNDERSTOOD


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("max-age=60", Storing.AUTHORIZED),
        ("max-age=60, public", Storing.EXPLICIT),
        ("max-age=60, must-revalidate", Storing.EXPLICIT),
        ("s-maxage=60", Storing.EXPLICIT),
        ("max-age=60, proxy-revalidate", Storing.AUTHORIZED),
    ],
)
def test_authorization(value: str, expected: Storing) -> None:
    """RFC 9111, 3.5: only public, must-revalidate and s-maxage share an authorized answer."""
    assert storing(control(value), asked=AUTHORIZED) is expected


@pytest.mark.parametrize(
    ("fields", "asked", "rules", "expected"),
    [
        ([], PLAIN, TTL, Storing.POLICY),
        ([], AUTHORIZED, TTL, Storing.AUTHORIZED),
        ([], AUTHORIZED, replace(TTL, share_authorized=True), Storing.POLICY),
        ([control("private")], PLAIN, TTL, Storing.PRIVATE),
        ([control("private")], PLAIN, replace(TTL, respect_origin=False), Storing.PRIVATE),
        ([control("private")], PLAIN, replace(TTL, share_private=True), Storing.POLICY),
        ([control("private")], AUTHORIZED, replace(TTL, share_private=True), Storing.AUTHORIZED),
        ([control("no-store")], PLAIN, TTL, Storing.NO_STORE),
        ([control("no-store")], PLAIN, replace(TTL, respect_origin=False), Storing.POLICY),
        ([control("no-cache")], PLAIN, TTL, Storing.USELESS),
        ([control("max-age=0")], PLAIN, TTL, Storing.USELESS),
        ([control("max-age=0")], PLAIN, replace(TTL, respect_origin=False), Storing.POLICY),
        ([control("max-age=5")], PLAIN, TTL, Storing.EXPLICIT),
        ([OLD], PLAIN, TTL, Storing.POLICY),
        ([("Vary", "*")], PLAIN, TTL, Storing.VARIES_ON_ALL),
        ([("Vary", "a"), ("Vary", "b, *")], PLAIN, PURE, Storing.VARIES_ON_ALL),
        ([("Set-Cookie", "a=b")], PLAIN, TTL, Storing.SETS_COOKIES),
        ([("Set-Cookie", "a=b")], PLAIN, replace(TTL, share_private=True), Storing.POLICY),
        ([("Set-Cookie", "a=b"), OLD], PLAIN, PURE, Storing.SETS_COOKIES),
        ([("Set-Cookie", "a=b"), ETAG, control("max-age=0")], PLAIN, PURE, Storing.SETS_COOKIES),
        ([("Set-Cookie", "a=b"), control("max-age=5")], PLAIN, PURE, Storing.EXPLICIT),
        ([control("max-age=5")], Asked(RequestDirectives(no_store=True)), PURE, Storing.REQUEST_NO_STORE),
        ([], Asked(RequestDirectives(no_store=True)), TTL, Storing.REQUEST_NO_STORE),
    ],
)
def test_policy(fields: list[tuple[str, str]], asked: Asked, rules: CacheRules, expected: Storing) -> None:
    """A ttl stands where the origin says nothing; private and Authorization have settings of their own."""
    assert storing(*fields, asked=asked, rules=rules) is expected


BOTH = replace(TTL, negative_ttl=5.0)


@pytest.mark.parametrize(
    ("fields", "status", "verdict", "rules", "expected"),
    [
        ([], 200, Verdict.OK, BOTH, Storing.POLICY),
        ([], 200, Verdict.NEGATIVE, BOTH, Storing.NEGATIVE),
        ([], 404, Verdict.NEGATIVE, BOTH, Storing.NEGATIVE),
        ([], 200, Verdict.NEGATIVE, TTL, Storing.VERDICT),
        ([], 200, Verdict.OK, CacheRules(negative_ttl=5.0), Storing.NO_FRESHNESS),
        *[
            ([], 200, verdict, BOTH, Storing.VERDICT)
            for verdict in (
                Verdict.TRANSIENT,
                Verdict.RATE_LIMITED,
                Verdict.QUOTA,
                Verdict.AUTH,
                Verdict.CLIENT,
            )
        ],
        ([], 404, Verdict.CLIENT, BOTH, Storing.VERDICT),
        ([], 302, Verdict.OK, BOTH, Storing.STATUS),
        ([control("max-age=5")], 200, Verdict.TRANSIENT, BOTH, Storing.EXPLICIT),
        ([control("max-age=5")], 200, Verdict.NEGATIVE, BOTH, Storing.EXPLICIT),
        ([OLD], 200, Verdict.TRANSIENT, PURE, Storing.VERDICT),
        ([ETAG], 200, Verdict.TRANSIENT, PURE, Storing.VERDICT),
        ([OLD], 404, Verdict.CLIENT, PURE, Storing.HEURISTIC),
        ([OLD], 404, Verdict.CLIENT, TTL, Storing.VERDICT),
    ],
)
def test_verdicts(
    fields: list[tuple[str, str]], status: int, verdict: Verdict, rules: CacheRules, expected: Storing
) -> None:
    """DESIGN 4: a verdict stops what rests on policy or guess; the origin's explicit word is obeyed."""
    assert storing(*fields, status=status, verdict=verdict, rules=rules) is expected


POST = replace(TTL, methods=frozenset({"POST"}))


@pytest.mark.parametrize(
    ("method", "fields", "rules", "names_itself", "expected"),
    [
        ("HEAD", [control("max-age=5")], PURE, False, Storing.METHOD),
        ("PUT", [control("max-age=5")], PURE, False, Storing.METHOD),
        ("POST", [control("max-age=5")], PURE, False, Storing.METHOD),
        ("POST", [control("max-age=5")], PURE, True, Storing.EXPLICIT),
        ("POST", [], TTL, True, Storing.METHOD),
        ("POST", [], POST, False, Storing.POLICY),
        ("POST", [control("max-age=5")], POST, False, Storing.EXPLICIT),
        ("POST", [control("max-age=0"), ETAG], POST, False, Storing.USELESS),
        ("POST", [OLD], replace(POST, ttl=None), False, Storing.NO_FRESHNESS),
        ("GET", [], POST, False, Storing.METHOD),
        ("QUERY", [OLD], CacheRules(methods=frozenset({"QUERY"})), False, Storing.HEURISTIC),
    ],
)
def test_methods(
    method: str, fields: list[tuple[str, str]], rules: CacheRules, names_itself: bool, expected: Storing
) -> None:
    """RFC 9110, 9.3.3: a POST is stored for GET when it says so explicitly, for POST when the policy does."""
    assert storing(*fields, method=method, rules=rules, names_itself=names_itself) is expected


def test_every_outcome_is_stored_or_not() -> None:
    """Exactly the first five outcomes have something that their freshness rests on."""
    assert [outcome for outcome in Storing if outcome.basis is not None] == list(Storing)[:5]


def test_storable_headers() -> None:
    """RFC 9111, 3.1: no field of one hop, none that Connection names or a directive hides, no Age."""
    dropped = [
        b"Connection",
        b"Keep-Alive",
        b"Proxy-Authenticate",
        b"Proxy-Authentication-Info",
        b"Proxy-Authorization",
        b"Proxy-Connection",
        b"TE",
        b"Trailer",
        b"Transfer-Encoding",
        b"Upgrade",
        b"Age",
        b"A",
        b"B",
        b"Hidden",
    ]
    kept = [b"Content-Length", b"Content-Type", b"Set-Cookie", b"Set-Cookie", b"C", b"Content-Range"]
    lines = [Line(name, b"A, b" if name == b"Connection" else b"x") for name in (*kept, *dropped)]
    stored = storable_headers(lines, frozenset({b"hidden"}))
    assert [line.name for line in stored] == [name.lower() for name in kept]
