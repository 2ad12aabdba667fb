"""Whether a response is stored, and if not, for which reason (RFC 9111, 3 and 3.5).

The order of the checks is the order in which they can be explained: what the request is, what the
origin forbids, who may see it, how long it is of use. What a policy adds never overrides `private`
or `Authorization`; each of these has a setting of its own. A verdict that is not `ok` stops what
rests on the policy or on a guess, never what the origin said itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Final

from sidecar.decisions.asked import Asked
from sidecar.decisions.cache_rules import CacheRules
from sidecar.decisions.freshness import (
    HEURISTIC_STATUSES,
    Basis,
    Reply,
    heuristic_freshness,
    stale_windows,
    stated_freshness,
)
from sidecar.decisions.verdict import BY_STATUS, Verdict

if TYPE_CHECKING:
    from sidecar.headers import Line

UNDERSTOOD: Final = frozenset(
    {
        *(200, 201, 202, 203, 204, 205),
        *(300, 301, 302, 303, 305, 307, 308),
        *(400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 413, 414, 415, 417, 421, 422, 426),
        *(500, 501, 502, 503, 504, 505),
    }
)
"""Final statuses of RFC 9110, 15 whose caching rules are kept here; 206 and 304 are never stored."""
VALIDATED: Final = frozenset({200, 203})
"""Statuses that are worth storing only to be validated: a 304 stands for a 200 (RFC 9110, 15.4.5)."""
_SAFE_TO_REPEAT: Final = frozenset({"GET", "QUERY"})


class Storing(Enum):
    """What becomes of a response. The first five are stored."""

    EXPLICIT = "explicit"
    """Fresh, or of use while stale, by the origin's own word."""
    POLICY = "policy"
    NEGATIVE = "negative"
    HEURISTIC = "heuristic"
    VALIDATOR = "validator"
    """Never fresh; stored to be validated."""

    METHOD = "method"
    INTERIM = "interim"
    PARTIAL = "partial"
    """206, or 416 (RFC 9111, 3.3: a cache may leave partial content alone)."""
    CONDITIONAL = "conditional"
    """304 or 412: the answer to a condition, not to the request."""
    REQUEST_NO_STORE = "request-no-store"
    NO_STORE = "no-store"
    NOT_UNDERSTOOD = "not-understood"
    """`must-understand` with a status that is not."""
    PRIVATE = "private"
    AUTHORIZED = "authorized"
    """RFC 9111, 3.5."""
    VARIES_ON_ALL = "vary-any"
    SETS_COOKIES = "set-cookie"
    """Only the origin's explicit word shares a response that sets cookies."""
    VERDICT = "verdict"
    STATUS = "status"
    """Not cacheable without explicit freshness (RFC 9110, 15.1)."""
    NO_FRESHNESS = "no-freshness"
    """Neither freshness nor a validator."""
    USELESS = "useless"
    """The origin allows no use of it without asking, and gives nothing to ask with."""

    @property
    def basis(self) -> Basis | None:
        """What its freshness rests on; None when it is not stored."""
        return _BASES.get(self)


_BASES: Final = {
    Storing.EXPLICIT: Basis.ORIGIN,
    Storing.POLICY: Basis.POLICY,
    Storing.NEGATIVE: Basis.NEGATIVE,
    Storing.HEURISTIC: Basis.HEURISTIC,
    Storing.VALIDATOR: Basis.NONE,
}

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Never stored (RFC 9111, 3.1), nor is what `Connection` names."""
_NOT_STORED: Final = HOP_BY_HOP | {b"age"}


def may_store(
    method: str,
    asked: Asked,
    reply: Reply,
    rules: CacheRules,
    verdict: Verdict = Verdict.OK,
    *,
    names_itself: bool = False,
) -> Storing:
    """What becomes of a complete response.

    `names_itself`: its `Content-Location` is the request's own URI. A POST that does so, with explicit
    freshness, is stored as the answer to a GET (RFC 9110, 9.3.3), where the route does not cache POST.
    """
    as_get = method == "POST" and method not in rules.methods and names_itself
    if method == "HEAD" or (method not in rules.methods and not as_get):
        return Storing.METHOD
    settled = (
        _by_status(reply.status)
        or _by_directives(asked, reply, rules)
        or _by_audience(asked, reply, rules)
        or _by_origin(method, reply, rules)
    )
    if settled is not None:
        return settled
    if as_get:
        return Storing.METHOD
    if reply.sets_cookies and not rules.share_private:
        return Storing.SETS_COOKIES
    return _by_policy(method, reply, rules, verdict)


def _by_status(status: int) -> Storing | None:
    if status < 200:
        return Storing.INTERIM
    if status in {206, 416}:
        return Storing.PARTIAL
    if status in {304, 412}:
        return Storing.CONDITIONAL
    return None


def _by_directives(asked: Asked, reply: Reply, rules: CacheRules) -> Storing | None:
    directives = reply.directives
    if asked.directives.no_store:
        return Storing.REQUEST_NO_STORE
    if rules.respect_origin:
        if directives.must_understand:
            # With a status that is understood, no-store is for caches that do not know the directive.
            return None if reply.status in UNDERSTOOD else Storing.NOT_UNDERSTOOD
        if directives.no_store:
            return Storing.NO_STORE
    return None


def _by_audience(asked: Asked, reply: Reply, rules: CacheRules) -> Storing | None:
    directives = reply.directives
    if directives.private and not rules.share_private:
        return Storing.PRIVATE
    if asked.authorized and not rules.share_authorized:
        allowed = directives.public or directives.must_revalidate or directives.s_maxage is not None
        if not allowed:
            return Storing.AUTHORIZED
    if reply.varies_on_all:
        return Storing.VARIES_ON_ALL
    return None


def _by_origin(method: str, reply: Reply, rules: CacheRules) -> Storing | None:
    """What the origin's explicit word makes of it; None when it says nothing."""
    directives = reply.directives
    fresh = stated_freshness(reply)
    if not rules.respect_origin or (fresh is None and not directives.no_cache):
        return None
    if not directives.no_cache and (fresh or any(stale_windows(reply, rules))):
        return Storing.EXPLICIT
    if not reply.has_validator or reply.status not in VALIDATED or method not in _SAFE_TO_REPEAT:
        return Storing.USELESS
    if reply.sets_cookies and not rules.share_private:
        return Storing.SETS_COOKIES
    return Storing.EXPLICIT if fresh else Storing.VALIDATOR


def _by_policy(method: str, reply: Reply, rules: CacheRules, verdict: Verdict) -> Storing:
    cacheable = reply.status in HEURISTIC_STATUSES
    if verdict is Verdict.NEGATIVE and rules.negative_ttl is not None:
        return Storing.NEGATIVE
    if rules.ttl is not None or rules.negative_ttl is not None:
        if verdict is not Verdict.OK:
            return Storing.VERDICT
        if rules.ttl is not None and cacheable:
            return Storing.POLICY
    # The verdict that goes with a status says no more than RFC 9110 knew when it allowed the guess.
    if verdict is not Verdict.OK and verdict is not BY_STATUS[min(reply.status, 999)]:
        return Storing.VERDICT
    if method not in _SAFE_TO_REPEAT:
        return Storing.NO_FRESHNESS
    if rules.ttl is None and heuristic_freshness(reply) > 0.0:
        return Storing.HEURISTIC
    if not cacheable:
        return Storing.STATUS
    if reply.has_validator and reply.status in VALIDATED:
        return Storing.VALIDATOR
    return Storing.NO_FRESHNESS


def storable_headers(headers: Iterable[Line], hidden: frozenset[bytes] = frozenset()) -> list[Line]:
    """The lines that are stored (RFC 9111, 3.1): none of one hop, none that `no-cache="…"` or
    `private="…"` hides (`ResponseDirectives.hidden`), no `Age`, which is written anew for each use.
    """
    lines = list(headers)
    dropped = _NOT_STORED | hidden
    for line in lines:
        if line.name == b"connection":
            dropped |= {token.strip(b" \t").lower() for token in line.value.split(b",")}
    return [line for line in lines if line.name not in dropped]
