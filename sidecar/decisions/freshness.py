"""How old a response is and how long it may be used: computed once, when it is stored.

Facts (RFC 9111, 4.2). The freshness lifetime is the first of `s-maxage`, `max-age`, `Expires` minus
`Date` that is there; a value that is invalid is in the past. A policy's `ttl` stands where the origin
states none of these; a heuristic (4.2.2) where the policy states none either. The age at arrival
(4.2.3) is what `Date` shows or what `Age` says plus the time that the exchange took, whichever is more.

All times are Unix seconds. Every moment in a `Lifetime` lies within what `max_age_total` allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from sidecar.decisions.cache_control import FOREVER, ResponseDirectives, delta_seconds, response_directives
from sidecar.decisions.cache_dates import cache_date
from sidecar.decisions.cache_rules import DAY, PURE, CacheRules

if TYPE_CHECKING:
    from sidecar.headers import Line

ROUNDING: Final = 1e-5
"""Seconds by which today's Unix time, as a double, is never off."""
HEURISTIC_SHARE: Final = 0.1
"""Of the time since the last modification (RFC 9111, 4.2.2 names this as typical)."""
HEURISTIC_MOST: Final = DAY
HEURISTIC_STATUSES: Final = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
"""Heuristically cacheable (RFC 9110, 15.1); 206 is as well, but is not stored here."""


@dataclass(slots=True)
class Lifetime:
    """When a stored response may be used for what: a look-up compares, nothing more."""

    born: float
    """When its age was 0."""
    fresh_until: float
    swr_until: float
    """Served stale until then, while it is refreshed in the background."""
    sie_until: float
    """Served stale until then in place of an error."""
    offline_until: float
    """Served stale until then when the origin cannot be reached."""
    kept_until: float
    """Of no use from then on."""
    obtained: float
    """When the content came from the origin; a validation does not change it."""
    always_validate: bool = False
    """`no-cache`: never used without asking, not even fresh."""
    must_revalidate: bool = False
    """Never used stale: `must-revalidate`, `proxy-revalidate` or `s-maxage` (RFC 9111, 5.2.2)."""
    explicit: bool = False
    """The origin stated how long it is fresh."""


class Basis(Enum):
    """What the freshness of a stored response rests on."""

    ORIGIN = "origin"
    POLICY = "policy"
    NEGATIVE = "negative"
    """The policy's `negative_ttl`."""
    HEURISTIC = "heuristic"
    NONE = "none"
    """Stored only to be validated."""


class Reply:
    """What a cache reads from the head of a response, in one pass. Not changed once made."""

    __slots__ = (
        "age",
        "date",
        "directives",
        "expires",
        "has_validator",
        "modified",
        "received",
        "sent",
        "sets_cookies",
        "status",
        "varies_on_all",
    )

    def __init__(
        self,
        status: int,
        headers: Sequence[Line],
        *,
        sent: float,
        received: float,
        rules: CacheRules = PURE,
    ) -> None:
        """`sent` and `received` (Unix seconds): when the request left, when the head was here."""
        self.status = status
        self.sent = sent
        self.received = received
        self.sets_cookies = False
        self.varies_on_all = False
        self.has_validator = False
        ages: list[bytes] = []
        dates: dict[bytes, bytes] = {}
        for line in headers:
            name = line.name
            if name in {b"date", b"expires", b"last-modified"}:
                # Of several the first counts (RFC 9111, 4.2.1).
                dates.setdefault(name, line.value)
            elif name == b"age":
                ages.append(line.value)
            elif name == b"etag":
                self.has_validator = True
            elif name == b"set-cookie":
                self.sets_cookies = True
            elif name == b"vary":
                self.varies_on_all |= any(member.strip(b" \t") == b"*" for member in line.value.split(b","))
        self.directives: ResponseDirectives = response_directives(headers, rules.targets)
        self.age = _age_value(ages, distrust=rules.distrust_age)
        """Seconds that `Age` says."""
        date = cache_date(dates[b"date"], received) if b"date" in dates else None
        self.date = received if date is None else date
        """When the origin made it; when it came, where `Date` is missing or invalid (RFC 9110, 6.6.1)."""
        self.modified = cache_date(dates[b"last-modified"], received) if b"last-modified" in dates else None
        self.has_validator |= b"last-modified" in dates
        self.expires: float | None = None
        """Freshness lifetime in seconds by `Expires`, 0 for an invalid one (RFC 9111, 5.3)."""
        if b"expires" in dates:
            expires = cache_date(dates[b"expires"], received)
            self.expires = 0.0 if expires is None else max(expires - self.date, 0.0)


def _age_value(values: list[bytes], *, distrust: bool) -> int:
    """Seconds of an `Age` field: its first member; 0 when that is invalid (RFC 9111, 5.1).

    A parameter, which the field does not have, does not hide the number before it.
    """
    if not values:
        return 0
    members = [member.partition(b";")[0].strip(b" \t") for member in values[0].split(b",")]
    seconds = delta_seconds(members[0])
    if distrust and (seconds is None or len(values) > 1 or members.count(members[0]) > 1):
        return int(FOREVER)
    return seconds or 0


def age(lifetime: Lifetime, now: float) -> int:
    """Seconds for the `Age` of a reused response (RFC 9111, 5.1)."""
    seconds = now - lifetime.born
    if seconds <= 0.0:
        return 0
    return int(seconds) if seconds < FOREVER else int(FOREVER)


def ttl(lifetime: Lifetime, now: float) -> int:
    """Seconds of freshness left; negative when stale (RFC 9211, 2.5)."""
    return int((lifetime.fresh_until - now) // 1.0)


def steady_until(lifetime: Lifetime, now: float) -> float:
    """Unix seconds until which a fresh response stays fresh, with the `age` and the `ttl` that it has `now`.

    A little too early rather than too late: sums of doubles are rounded.
    """
    older = lifetime.born + age(lifetime, now) + 1.0
    return min(older, lifetime.fresh_until - ttl(lifetime, now)) - ROUNDING


def initial_age(reply: Reply) -> float:
    """`corrected_initial_age` of RFC 9111, 4.2.3. A `Date` in the future shows no age."""
    apparent = max(0.0, reply.received - reply.date)
    corrected = reply.age + max(0.0, reply.received - reply.sent)
    return min(max(apparent, corrected), FOREVER)


def stated_freshness(reply: Reply) -> float | None:
    """Seconds that the origin says; None when it says nothing (RFC 9111, 4.2.1)."""
    directives = reply.directives
    if directives.s_maxage is not None:
        return float(directives.s_maxage)
    if directives.max_age is not None:
        return float(directives.max_age)
    if directives.targeted or reply.expires is None:
        return None
    return min(reply.expires, FOREVER)


def heuristic_freshness(reply: Reply) -> float:
    """Seconds that are likely by how long it has not changed (RFC 9111, 4.2.2); 0 when unknown."""
    if reply.modified is None:
        return 0.0
    if not reply.directives.public and reply.status not in HEURISTIC_STATUSES:
        return 0.0
    return min(max(0.0, (reply.date - reply.modified) * HEURISTIC_SHARE), HEURISTIC_MOST)


def forbids_stale(directives: ResponseDirectives) -> bool:
    """Never reused stale; `s-maxage` implies `proxy-revalidate` (RFC 9111, 5.2.2.10)."""
    return directives.must_revalidate or directives.proxy_revalidate or directives.s_maxage is not None


def stale_windows(reply: Reply, rules: CacheRules) -> tuple[float, float | None]:
    """Seconds past its freshness that a response is served while it is refreshed, and on errors.

    The origin's word counts, else the policy's; the second is None where neither says anything. They
    give way to what forbids stale use (RFC 9111, 4.2.4). A response that the origin calls stale from
    the start is not served in the background's stead because a policy would. A stored 5xx is no better
    than the error that it would stand in for.
    """
    directives = reply.directives
    if reply.status >= 500:
        return 0.0, 0.0
    if not rules.respect_origin:
        return rules.stale_while_revalidate or 0.0, rules.stale_if_error
    if directives.no_cache or forbids_stale(directives):
        return 0.0, 0.0
    swr: float | None = directives.stale_while_revalidate
    if swr is None and stated_freshness(reply) != 0.0:
        swr = rules.stale_while_revalidate
    sie: float | None = directives.stale_if_error
    return swr or 0.0, rules.stale_if_error if sie is None else sie


def lifetime_of(reply: Reply, rules: CacheRules, basis: Basis, obtained: float | None = None) -> Lifetime:
    """The lifetime of a response that is to be stored.

    `obtained` (Unix seconds) is that of the response it validates, where it is a 304: its content is no
    younger for it.
    """
    directives = reply.directives
    obtained = reply.received if obtained is None else obtained
    end = obtained + (FOREVER if rules.max_age_total is None else rules.max_age_total)
    born = reply.received - initial_age(reply)
    if basis is Basis.ORIGIN:
        fresh = born + (stated_freshness(reply) or 0.0)
    elif basis is Basis.HEURISTIC:
        fresh = born + heuristic_freshness(reply)
    elif basis is Basis.NONE:
        fresh = reply.received
    else:
        # The policy speaks of the time here: an origin whose clock is slow changes nothing.
        fresh = reply.received + ((rules.ttl if basis is Basis.POLICY else rules.negative_ttl) or 0.0)
    fresh = min(fresh, end)
    swr, sie = stale_windows(reply, rules)
    swr_until = min(fresh + swr, end)
    sie_until = min(fresh + (sie or 0.0), end)
    offline_until = min(fresh + rules.offline, end) if sie is None else sie_until
    kept = max(fresh, swr_until, sie_until, offline_until)
    if reply.has_validator:
        kept = max(kept, min(max(fresh, reply.received) + rules.keep, end))
    return Lifetime(
        born=born,
        fresh_until=fresh,
        swr_until=swr_until,
        sie_until=sie_until,
        offline_until=offline_until,
        kept_until=kept,
        obtained=obtained,
        always_validate=rules.respect_origin and directives.no_cache,
        must_revalidate=rules.respect_origin and forbids_stale(directives),
        explicit=basis is Basis.ORIGIN,
    )
