from __future__ import annotations

from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.cache_dates import cache_date
from sidecar.decisions.cache_rules import PURE, CacheRules
from sidecar.decisions.freshness import (
    Basis,
    Lifetime,
    Reply,
    age,
    heuristic_freshness,
    initial_age,
    lifetime_of,
    stated_freshness,
    ttl,
)
from sidecar.headers import Line

NOW = 1_700_000_000.0


def date(seconds: float) -> str:
    """An IMF-fixdate, seconds from now."""
    return formatdate(NOW + seconds, usegmt=True)


def reply(*fields: tuple[str, str], status: int = 200, took: float = 0.0, rules: CacheRules = PURE) -> Reply:
    lines = [Line(name.encode(), value.encode("latin-1")) for name, value in fields]
    return Reply(status, lines, sent=NOW - took, received=NOW, rules=rules)


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ([], None),
        ([("Cache-Control", "max-age=60")], 60),
        ([("Cache-Control", "s-maxage=5, max-age=60")], 5),
        ([("Cache-Control", "max-age=60"), ("Cache-Control", "s-maxage=5")], 5),
        ([("Cache-Control", "max-age=0, s-maxage=3600"), ("Expires", date(-10))], 3600),
        ([("Cache-Control", "max-age=60"), ("Expires", date(-7200)), ("Date", date(0))], 60),
        ([("Cache-Control", "max-age=60"), ("Expires", "0")], 60),
        ([("Cache-Control", "max-age=0"), ("Expires", date(3600)), ("Date", date(0))], 0),
        ([("Cache-Control", "public"), ("Expires", date(3600)), ("Date", date(0))], 3600),
        ([("Expires", date(3600)), ("Date", date(0))], 3600),
        ([("Expires", date(3600)), ("Date", date(-100))], 3700),
        ([("Expires", date(300)), ("Date", date(400))], 0),
        ([("Expires", date(0)), ("Date", date(0))], 0),
        ([("Expires", date(10)), ("Date", "foo")], 10),
        ([("Expires", date(10))], 10),
        ([("Expires", "0"), ("Date", date(0))], 0),
        ([("Expires", ""), ("Date", date(0))], 0),
        ([("Expires", date(60)), ("Expires", date(3600)), ("Date", date(0))], 60),
        ([("Expires", "Sun, 21 Nov 9286 04:46:39 GMT"), ("Date", date(0))], 2**31),
        ([("CDN-Cache-Control", "max-age=7"), ("Expires", date(-9)), ("Cache-Control", "max-age=1")], 7),
        ([("CDN-Cache-Control", "public"), ("Expires", date(3600)), ("Date", date(0))], None),
        ([("Cache-Control", "max-age=abc"), ("Expires", date(3600)), ("Date", date(0))], 0),
    ],
)
def test_stated_freshness(fields: list[tuple[str, str]], seconds: float | None) -> None:
    """RFC 9111, 4.2.1 and 5.3; RFC 9213, 2.2: s-maxage, max-age, Expires − Date, in this order."""
    assert stated_freshness(reply(*fields)) == seconds


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (b"Thu, 18 Aug 2050 02:01:18 GMT", True),
        (b"Thursday, 18-Aug-50 02:01:18 GMT", True),
        (b"Thu Aug 18 02:01:18 2050", True),
        (b"THU, 18 Aug 2050 02:01:18 GMT", True),
        (b"Thu, 18 AUG 2050 02:01:18 GMT", True),
        (b"Thu, 18 Aug 2050 02:01:18 gMT", True),
        (b"THURSDAY, 18-AUG-50 02:01:18 gmt", True),
        (b"Thu, 18 Aug 2050 02:01:18 UTC", False),
        (b"Thu, 18 Aug 2050 02:01:18 AEST", False),
        (b"Thu, 18 Aug 2050 02:01:18 +0000", False),
        (b"Thu, 18 Aug 50 02:01:18 GMT", False),
        (b"Thu 18 Aug 2050 02:01:18 GMT", False),
        (b"Thu, 18  Aug  2050 02:01:18 GMT", False),
        (b"Thu, 18-Aug-2050 02:01:18 GMT", False),
        (b"Thu, 18 Aug 2050 02.01.18 GMT", False),
        (b"Thu, 18 Aug 2050 2:01:18 GMT", False),
        (b"Thu, 31 Feb 2050 02:01:18 GMT", False),
        (b"0", False),
        (b"-1", False),
        (b"", False),
    ],
)
def test_dates(value: bytes, valid: bool) -> None:
    """RFC 9111, 4.2 relaxes the case of RFC 9110, 5.6.7, and nothing else."""
    assert cache_date(value, NOW) == (2_544_400_878.0 if valid else None)


@pytest.mark.parametrize(
    ("fields", "took", "seconds"),
    [
        ([], 0.0, 0),
        ([], 3.0, 3),
        ([("Date", date(0))], 0.0, 0),
        ([("Date", date(-7200))], 0.0, 7200),
        ([("Date", date(7200))], 0.0, 0),
        ([("Date", "foo"), ("Age", "5")], 0.0, 5),
        ([("Age", "30")], 2.0, 32),
        ([("Date", date(-10)), ("Age", "25")], 0.0, 25),
        ([("Date", date(-100)), ("Age", "25")], 0.0, 100),
        ([("Age", "2147483647")], 0.0, 2**31 - 1),
        ([("Age", "2147483648")], 0.0, 2**31),
        ([("Age", "9" * 99)], 5.0, 2**31),
        ([("Age", "abc")], 0.0, 0),
        ([("Age", "-7200")], 0.0, 0),
        ([("Age", "7200.0")], 0.0, 0),
        ([("Age", "7200, 0")], 0.0, 7200),
        ([("Age", "0, 7200")], 0.0, 0),
        ([("Age", "7200"), ("Age", "0")], 0.0, 7200),
        ([("Age", "0"), ("Age", "7200")], 0.0, 0),
        ([("Age", "7200;foo=bar")], 0.0, 7200),
    ],
)
def test_initial_age(fields: list[tuple[str, str]], took: float, seconds: float) -> None:
    """RFC 9111, 4.2.3 and 5.1: the first Age counts, an invalid one does not, a fast Date shows none."""
    assert initial_age(reply(*fields, took=took)) == seconds


@pytest.mark.parametrize(
    ("ages", "trusted"),
    [
        (["0"], True),
        (["0, 7200"], True),
        (["abc"], False),
        (["-1"], False),
        (["1.0"], False),
        (["0, 0"], False),
        (["0", "0"], False),
        (["0", "7200"], False),
    ],
)
def test_distrusted_age(ages: list[str], trusted: bool) -> None:
    """By the rule `distrust_age` what RFC 9111, 5.1 ignores makes a response as old as can be."""
    fields = [("Age", value) for value in ages]
    found = initial_age(reply(*fields, rules=CacheRules(distrust_age=True)))
    assert found == (0 if trusted else 2**31)


@pytest.mark.parametrize(
    ("status", "fields", "seconds"),
    [
        (200, [("Last-Modified", date(-1000)), ("Date", date(0))], 100),
        (200, [("Last-Modified", date(-1000)), ("Date", date(-500))], 50),
        (200, [("Last-Modified", date(-(10**8)))], 86400),
        (200, [("Last-Modified", date(100)), ("Date", date(0))], 0),
        (200, [("Last-Modified", "foo")], 0),
        (200, [], 0),
        *[(status, [("Last-Modified", date(-1000))], 100) for status in (203, 204, 300, 301, 308)],
        *[(status, [("Last-Modified", date(-1000))], 100) for status in (404, 405, 410, 414, 501)],
        *[(status, [("Last-Modified", date(-1000))], 0) for status in (201, 202, 302, 307, 400, 403)],
        *[(status, [("Last-Modified", date(-1000))], 0) for status in (500, 502, 503, 504, 599)],
        (599, [("Last-Modified", date(-1000)), ("Cache-Control", "public")], 100),
    ],
)
def test_heuristic_freshness(status: int, fields: list[tuple[str, str]], seconds: float) -> None:
    """RFC 9111, 4.2.2; RFC 9110, 15.1: a tenth of the time since the change, where a guess is allowed."""
    assert heuristic_freshness(reply(*fields, status=status)) == pytest.approx(seconds)


def windows(found: Lifetime) -> tuple[float, float, float, float]:
    """Seconds from now: fresh, while revalidating, on error, offline."""
    return (
        found.fresh_until - NOW,
        found.swr_until - NOW,
        found.sie_until - NOW,
        found.offline_until - NOW,
    )


POLICY = CacheRules(ttl=100, negative_ttl=20, stale_while_revalidate=10, stale_if_error=1000)


@pytest.mark.parametrize(
    ("control", "rules", "basis", "expected"),
    [
        ("max-age=60", PURE, Basis.ORIGIN, (60, 60, 60, 3660)),
        ("max-age=60, stale-while-revalidate=5", PURE, Basis.ORIGIN, (60, 65, 60, 3660)),
        ("max-age=60, stale-if-error=5", PURE, Basis.ORIGIN, (60, 60, 65, 65)),
        ("max-age=60, stale-if-error=5, must-revalidate", PURE, Basis.ORIGIN, (60, 60, 60, 60)),
        ("max-age=60, stale-if-error=5, proxy-revalidate", PURE, Basis.ORIGIN, (60, 60, 60, 60)),
        ("max-age=60, stale-if-error=5, no-cache", PURE, Basis.ORIGIN, (60, 60, 60, 60)),
        ("s-maxage=60, stale-if-error=5", PURE, Basis.ORIGIN, (60, 60, 60, 60)),
        ("s-maxage=60, stale-while-revalidate=5", PURE, Basis.ORIGIN, (60, 60, 60, 60)),
        ("max-age=60", POLICY, Basis.ORIGIN, (60, 70, 1060, 1060)),
        ("max-age=60, stale-if-error=5, stale-while-revalidate=1", POLICY, Basis.ORIGIN, (60, 61, 65, 65)),
        ("max-age=60, must-revalidate", POLICY, Basis.ORIGIN, (60, 60, 60, 60)),
        ("max-age=0", POLICY, Basis.ORIGIN, (0, 0, 1000, 1000)),
        ("", POLICY, Basis.POLICY, (100, 110, 1100, 1100)),
        ("", POLICY, Basis.NEGATIVE, (20, 30, 1020, 1020)),
        ("", replace(POLICY, stale_if_error=0), Basis.POLICY, (100, 110, 100, 100)),
        ("max-age=9", replace(POLICY, respect_origin=False), Basis.POLICY, (100, 110, 1100, 1100)),
        ("s-maxage=9", replace(POLICY, respect_origin=False), Basis.POLICY, (100, 110, 1100, 1100)),
        ("", replace(POLICY, max_age_total=105), Basis.POLICY, (100, 105, 105, 105)),
        ("max-age=9999", replace(POLICY, max_age_total=105), Basis.ORIGIN, (105, 105, 105, 105)),
        ("max-age=99999999999", PURE, Basis.ORIGIN, (2**31,) * 4),
        ("", PURE, Basis.NONE, (0, 0, 0, 3600)),
    ],
)
def test_windows(control: str, rules: CacheRules, basis: Basis, expected: tuple[float, ...]) -> None:
    """RFC 9111, 4.2.4; RFC 5861; DESIGN 3: the origin's word, else the policy's, all within the cap."""
    found = lifetime_of(reply(("Cache-Control", control), rules=rules), rules, basis)
    assert windows(found) == expected


def test_a_stored_error_stands_in_for_none() -> None:
    """A 5xx with explicit freshness is reused fresh, never stale."""
    found = lifetime_of(reply(("Cache-Control", "max-age=9"), status=503), POLICY, Basis.ORIGIN)
    assert windows(found) == (9, 9, 9, 9)


def test_origin_freshness_counts_from_the_start_of_its_age() -> None:
    """RFC 9111, 4.2: fresh while the lifetime exceeds the age, which does not begin here."""
    found = lifetime_of(reply(("Cache-Control", "max-age=60"), ("Age", "50")), PURE, Basis.ORIGIN)
    assert (found.born, found.fresh_until) == (NOW - 50, NOW + 10)


def test_policy_freshness_counts_from_now() -> None:
    """An origin with a slow clock and no cache headers does not void the policy's ttl."""
    found = lifetime_of(reply(("Date", date(-7200))), POLICY, Basis.POLICY)
    assert (found.born, found.fresh_until) == (NOW - 7200, NOW + 100)


@pytest.mark.parametrize(
    ("fields", "rules", "kept"),
    [
        ([("Cache-Control", "max-age=60, must-revalidate")], PURE, 60),
        ([("Cache-Control", "max-age=60, must-revalidate"), ("ETag", '"a"')], PURE, 86460),
        ([("Cache-Control", "max-age=60, must-revalidate"), ("Last-Modified", date(0))], PURE, 86460),
        ([("Cache-Control", "max-age=60"), ("ETag", '"a"')], CacheRules(max_age_total=70), 70),
        ([("Cache-Control", "max-age=60")], PURE, 3660),
    ],
)
def test_kept(fields: list[tuple[str, str]], rules: CacheRules, kept: float) -> None:
    """A response is kept as long as it can be used, and with a validator as long as it may be validated."""
    assert lifetime_of(reply(*fields, rules=rules), rules, Basis.ORIGIN).kept_until - NOW == kept


def test_a_validation_does_not_make_content_younger() -> None:
    """DESIGN 3: `max_age_total` counts from when the content came, however often it was validated."""
    rules = CacheRules(max_age_total=100)
    found = lifetime_of(
        reply(("Cache-Control", "max-age=60"), ("ETag", '"a"')), rules, Basis.ORIGIN, obtained=NOW - 90
    )
    assert (found.fresh_until, found.kept_until, found.obtained) == (NOW + 10, NOW + 10, NOW - 90)


@pytest.mark.parametrize(
    ("control", "flags"),
    [
        ("max-age=1", (False, False, True)),
        ("max-age=1, no-cache", (True, False, True)),
        ('max-age=1, no-cache="a"', (False, False, True)),
        ("max-age=1, must-revalidate", (False, True, True)),
        ("max-age=1, proxy-revalidate", (False, True, True)),
        ("s-maxage=1", (False, True, True)),
    ],
)
def test_flags(control: str, flags: tuple[bool, bool, bool]) -> None:
    """RFC 9111, 5.2.2: what forbids use without asking, and use when stale."""
    found = lifetime_of(reply(("Cache-Control", control)), PURE, Basis.ORIGIN)
    assert (found.always_validate, found.must_revalidate, found.explicit) == flags


@pytest.mark.parametrize(
    ("now", "seconds", "left"),
    [
        (99.0, 0, 11),
        (100.0, 0, 10),
        (100.9, 0, 9),
        (107.5, 7, 2),
        (110.0, 10, 0),
        (110.5, 10, -1),
        (4e9, 2**31, -3999999890),
    ],
)
def test_age_and_ttl(now: float, seconds: int, left: int) -> None:
    """RFC 9111, 5.1 and 1.2.2: whole seconds from 0 to 2^31; RFC 9211, 2.5: a ttl may be negative."""
    lifetime = Lifetime(100.0, 110.0, 110.0, 110.0, 110.0, 110.0, 100.0)
    assert (age(lifetime, now), ttl(lifetime, now)) == (seconds, left)


_FIELDS: Any = st.lists(
    st.sampled_from(
        [
            ("Cache-Control", "max-age=60"),
            ("Cache-Control", "s-maxage=5, stale-if-error=90"),
            ("Cache-Control", "max-age=99999999999, stale-while-revalidate=99999999999"),
            ("Cache-Control", "no-cache"),
            ("Expires", date(10**9)),
            ("Date", date(-5000)),
            ("Date", date(5000)),
            ("Age", "7200"),
            ("ETag", '"a"'),
            ("Last-Modified", date(-(10**6))),
        ]
    )
)


@given(_FIELDS, st.sampled_from(list(Basis)), st.floats(0, 10**6), st.floats(0, 10**7))
def test_nothing_outlives_the_cap(
    fields: list[tuple[str, str]], basis: Basis, before: float, most: float
) -> None:
    """DESIGN 3: `max_age_total` bounds every moment, whatever else says."""
    rules = CacheRules(
        ttl=10**6, negative_ttl=10**6, stale_while_revalidate=10**6, stale_if_error=10**6, max_age_total=most
    )
    found = lifetime_of(reply(*fields, rules=rules), rules, basis, obtained=NOW - before)
    end = NOW - before + most
    assert max(found.fresh_until, found.swr_until, found.sie_until, found.offline_until) <= end
    assert found.kept_until <= end
    assert found.kept_until >= found.fresh_until
